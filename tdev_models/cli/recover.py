"""`tdev recover`: a worker that resumes failed and stalled sessions with your runner."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from tdev_models import recover_sessions, sync, validation
from tdev_models.cli.logs import AsJson, AsText
from tdev_models.errors import InvalidRequest
from tdev_models.services.draining import GRACE_SECONDS, begin_draining
from tdev_models.services.resume import Runner
from tdev_models.workers.presence import Presence


def run(given: argparse.Namespace) -> int:
    """Recover once, or until Ctrl-C, which lets sessions under way finish first.

    SIGTERM lets running agents end, for 25 s, and hands the sessions back.

    How each session ended is printed at once. Returns 1 where one failed, was given up or cannot be
    read, unless watching.

    Raises:
        InvalidRequest: there is no such function.
        TdevError: sessions could not be found.
    """
    runner = load(given.runner)
    validation.above_zero("--poll", given.poll)
    try:
        older_than = timedelta(seconds=given.older_than)
    except (OverflowError, ValueError):  # of infinity, and of NaN
        raise InvalidRequest("--older-than", f"{given.older_than} s is no age") from None
    stop = threading.Event()
    options: dict[str, Any] = {
        "older_than": older_than,
        "max_attempts": given.max_attempts,
        "backoff_seconds": given.backoff,
        "concurrency": given.concurrency,
        "stop": stop,
        "poll_seconds": given.poll if given.watch else None,
    }
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGTERM, drain)
    log = logging.getLogger("tdev_models")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(AsJson() if given.json else AsText())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    if inspect.iscoroutinefunction(runner):
        done = asyncio.run(recover_sessions(runner, **options))
    else:
        done = sync.recover_sessions(runner, **options)
    counts = {part: len(value) for part, value in vars(done).items()}
    sys.stdout.write((json.dumps(counts) if given.json else summary(counts)) + "\n")
    not_well = done.failed or done.abandoned or done.unreadable
    return 1 if not_well and not given.watch else 0


def drain(number: int, frame: object) -> None:
    """Hand the sessions back at the next agent boundaries; at once, when the grace is over."""
    if Presence.draining:
        raise SystemExit(128 + number)

    def end_what_is_left() -> None:
        if Presence.all_held():
            os.kill(os.getpid(), number)

    begin_draining(GRACE_SECONDS, end_what_is_left)


def load(name: str) -> Runner:
    """Return the function that `module:function` names; modules of this folder count."""
    module_name, _, function_name = name.partition(":")
    if not (module_name.replace(".", "_") + function_name).isidentifier() or not function_name:
        raise InvalidRequest("runner", f"{name!r} is not of the form module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        runner: Runner = getattr(import_module(module_name), function_name)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is loaded
        problem = f"{name!r} cannot be loaded: {type(error).__name__}: {error}"
        raise InvalidRequest("runner", problem) from error
    return runner


def summary(counts: Mapping[str, int]) -> str:
    """Return how many sessions ended how, in one line."""
    return ", ".join(
        f"{count} {part}" for part, count in counts.items() if count or part != "unreadable"
    )
