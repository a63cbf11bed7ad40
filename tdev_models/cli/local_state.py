"""Which `tdev local` runs on a data file: a file beside it, locked as long as that one lives."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tdev_models.cli.engine import Engine
from tdev_models.errors import ConfigurationError


class LocalState:
    """What is known of the engine of one data file."""

    def __init__(self, data: Path) -> None:
        self._data, self._file = data, data.with_name(f"{data.name}.running")

    @contextmanager
    def held(self, engine: Engine) -> Iterator[None]:
        """Say that this process runs the engine, as long as the block lasts."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+") as file:
            if not _locked(file.fileno()):
                raise ConfigurationError(
                    f"{self._file}: another 'tdev local' runs; 'tdev local stop' ends it"
                )
            file.truncate(0)
            known = {
                "pid": os.getpid(),
                "engine_pid": engine.pid,
                "engine": engine.name,
                "endpoint": engine.endpoint,
                "environ": engine.environ,
            }
            file.write(json.dumps(known))
            file.flush()
            try:
                yield
            finally:
                self._file.unlink(missing_ok=True)

    def running(self) -> dict[str, Any] | None:
        """Return pid, engine, endpoint and environ of what runs it; None if nothing does.

        The locks say that the pid is still that process's: `tdev local`, or, where that was killed,
        the engine that it left, which holds the lock of the data. Without locks, as on Windows, the
        file alone says so.
        """
        try:
            with self._file.open("r+") as file:
                was_killed = _has_locks() and _locked(file.fileno())
                known: dict[str, Any] = json.loads(file.read())
        except (FileNotFoundError, ValueError):  # ValueError: it is being written
            return None
        if not was_killed:
            return known
        return {**known, "pid": known["engine_pid"]} if self._data_is_held() else None

    def _data_is_held(self) -> bool:
        try:
            with self._data.open("r+") as file:
                return not _locked(file.fileno())
        except FileNotFoundError:
            return False


def _has_locks() -> bool:
    try:
        import fcntl  # noqa: F401
    except ImportError:  # Windows has none
        return False
    return True


def _locked(descriptor: int) -> bool:
    """Lock a file until it is closed; return whether nobody else had."""
    if not _has_locks():
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
