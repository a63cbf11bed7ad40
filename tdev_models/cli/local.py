"""`tdev local`: the embedded engine in the foreground, with the tables."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from tdev_models import settings
from tdev_models.cli.engine import Engine
from tdev_models.errors import ConfigurationError, InvalidRequest


def run(data: Path, port: int | None) -> int:
    """Serve the tables of the current environment until it is interrupted; return 0.

    Raises:
        ConfigurationError: no engine is available, it does not start, or it ended by itself.
        TdevError: the tables could not be made.
    """
    if port is not None and not 0 < port < 65536:
        raise InvalidRequest("port", f"{port} is not from 1 to 65535")
    try:
        with Engine.start(data, port) as engine:
            prepare(engine)
            chosen = settings.current()
            kept = f"data in {data}" if engine.keeps_data else engine.notice
            exports = "\n".join(
                f"export {name}={shlex.quote(value)}" for name, value in engine.environ.items()
            )
            sys.stdout.write(
                f"# {engine.name} with the tables {chosen.table_name('*')}; {kept}\n"
                f"# in another terminal:\n{exports}\n# Ctrl-C ends it\n"
            )
            sys.stdout.flush()
            engine.wait()
    except KeyboardInterrupt:
        return 0
    raise ConfigurationError(f"{engine.name} ended by itself")


def prepare(engine: Engine) -> None:
    """Point this process, and its children, to the engine, and create or update its tables."""
    from tdev_models.migrations.apply import apply_all

    os.environ.update(engine.environ)
    apply_all(settings.current())
