"""What a run costs: every request of every process, in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tdev_models.results import RequestEvent


@dataclass(frozen=True)
class Bill:
    """An `on_request` hook that stores each request at once: its process may be killed."""

    file: Path
    who: str

    def __call__(self, event: RequestEvent) -> None:
        """Write one request down."""
        with self.file.open("a") as lines:
            lines.write(json.dumps([self.who, dict(event)]) + "\n")


def read(file: Path) -> Iterator[tuple[str, RequestEvent]]:
    """Yield who sent each request, and the request."""
    for line in file.read_text().splitlines():
        who, event = json.loads(line)
        yield who, RequestEvent(**event)
