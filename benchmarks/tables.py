"""Fresh tables on the embedded engine, whose capacity figures are DynamoDB's, for benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tdev_models import Settings, configure
from tdev_models.cli.engine import Engine
from tdev_models.migrations.apply import apply_all
from tdev_models.results import RequestEvent


@contextmanager
def fresh_tables() -> Iterator[list[RequestEvent]]:
    """Yield the list to which every request of the package is added."""
    with Engine.start() as engine:
        if engine.name != "dynoxide":
            raise SystemExit(f"only dynoxide counts units right: {engine.notice}")
        os.environ.update(engine.environ)
        events: list[RequestEvent] = []
        calm = Settings.from_env(engine.environ)
        apply_all(configure(calm, on_request=events.append, automatic_metrics=False))
        yield events
