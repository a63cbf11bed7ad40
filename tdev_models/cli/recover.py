"""`tdev recover`: the worker that resumes what others left, with a runner of yours."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from tdev_models import Recovery, recover_sessions, sync
from tdev_models.errors import InvalidRequest
from tdev_models.services.recovery import Runner


def run(runner_name: str, poll_seconds: float | None, options: dict[str, Any]) -> int:
    """Recover once, or until SIGTERM or Ctrl-C; sessions under way are finished first.

    Raises:
        InvalidRequest: there is no such function.
        TdevError: sessions could not be found.
    """
    runner = load(runner_name)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    options = {**options, "stop": stop, "poll_seconds": poll_seconds}
    if inspect.iscoroutinefunction(runner):
        done = asyncio.run(recover_sessions(runner, **options))
    else:
        done = sync.recover_sessions(runner, **options)
    sys.stdout.write(summary(done) + "\n")
    return 0


def load(name: str) -> Runner:
    """Return the function that `module:function` names; modules of this folder count."""
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        runner: Runner = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidRequest("runner", f"{name!r} is no module:function ({error})") from error
    return runner


def summary(done: Recovery) -> str:
    """Return what came of the sessions, in one line."""
    parts = ("completed", "failed", "abandoned", "lost")
    return ", ".join(f"{len(getattr(done, part))} {part}" for part in parts)
