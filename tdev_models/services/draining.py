"""End this process's work at the next agent boundaries, and hand its sessions back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tdev_models import validation
from tdev_models.errors import ConfigurationError, InvalidRequest
from tdev_models.retry import CANCELLED_SECONDS, STOP_POLL_SECONDS
from tdev_models.workers.presence import Presence, stop_idle

GRACE_SECONDS = 25.0
"""Less than the 30 s that container platforms give a process."""


def handle_sigterm(grace_seconds: float = GRACE_SECONDS) -> None:
    """Let SIGTERM, as a deploy sends it, hand this process's sessions back to other workers.

    From the signal on no session and no agent begins: the task that would begin one is cancelled
    (in blocking code: SystemExit is raised; in a thread that a task awaits, it cancels that task),
    which hands its session back. Agents that run may end until the grace is over; then tasks are
    cancelled, threads go on. Once nothing is left, or two seconds later, the handler that was set
    before is called, or SystemExit raised in the main thread. A second SIGTERM does that at once.
    Handed-back sessions are taken by the next look of any worker, and nothing of it counts as a
    failure.

    Call it in the main thread, after other handlers (a web server's) were set. Sends nothing.

    Args:
        grace_seconds: how long running agents may take to end; 0 or more.

    Raises:
        InvalidRequest: not a number of at least 0.
        ConfigurationError: the event loop has a handler of SIGTERM (`loop.add_signal_handler`).
        ValueError: called in another thread, as by `signal.signal`.
    """
    seconds = validation.number("grace_seconds", grace_seconds)
    if seconds < 0:
        raise InvalidRequest("grace_seconds", "must be at least 0")
    before = signal.getsignal(signal.SIGTERM)
    if getattr(before, "__module__", "") == "asyncio.unix_events":
        # It hears of each signal, whatever handler is set, and would stop the program at once.
        raise ConfigurationError(
            "the event loop handles SIGTERM itself: call its remove_signal_handler(SIGTERM), and "
            "set that handler by signal.signal, before handle_sigterm (aiohttp: "
            "run_app(..., handle_signals=False))"
        )

    def handle(number: int, frame: Any) -> None:
        if not Presence.draining:
            begin_draining(seconds, lambda: os.kill(os.getpid(), signal.SIGTERM))
        elif callable(before):
            before(number, frame)
        elif before != signal.SIG_IGN:
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handle)


def begin_draining(grace_seconds: float, then: Callable[[], object]) -> None:
    """Begin no session or agent; call a function once none is left, or the grace is over."""
    Presence.draining = True
    # Python's own is silent of SystemExit itself, and not of one that is a cancellation, too.
    tell = threading.excepthook
    threading.excepthook = lambda of: None if issubclass(of.exc_type, SystemExit) else tell(of)

    def drain() -> None:
        _wait(Presence.all_held, grace_seconds)
        for lease in Presence.all_held():
            if lease.canceller is not None:
                lease.canceller.cancel()
        _wait(Presence.all_busy, CANCELLED_SECONDS)
        # Now: the handler before, as uvicorn's, may end the process without its exit functions.
        with suppress(Exception):  # of a hook, say: the program must end
            stop_idle()
        then()

    threading.Thread(target=drain, name="tdev-drain", daemon=True).start()


def _wait(left: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left() and time.monotonic() < deadline:
        time.sleep(min(STOP_POLL_SECONDS, seconds))
