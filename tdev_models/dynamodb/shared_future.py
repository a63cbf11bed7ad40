"""One write's outcome for the many callers, in threads and in event loops, who wait for it.

Why not `concurrent.futures.Future`: it wakes each waiting task by a call of its own into the thread
of the event loop; here one call wakes all of them. 1,000 tasks are awake after 4 ms instead of 12
(`python -m benchmarks.shared_future`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol


class EventLoop(Protocol):
    """What is needed of an event loop."""

    def call_soon_threadsafe(self, callback: Any, *args: Any) -> object:
        """Call a function in the loop's thread."""


class LoopFuture(Protocol):
    """What is needed of an event loop's future."""

    def done(self) -> bool:
        """Return whether it has a result or was cancelled."""

    def set_result(self, result: None) -> None:
        """Wake the task that waits for it."""


class SharedFuture:
    """The outcome of a write that is still to come; settled once, by the thread that wrote.

    Attributes:
        error: why the write failed; None before it is settled, and when the write succeeded.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._waiters: dict[EventLoop, list[LoopFuture]] = {}

    def wait(self, seconds: float | None = None) -> bool:
        """Block the thread until settled; return False when the time is over first."""
        return self._settled.wait(seconds)

    def wake_when_settled(self, loop: EventLoop, waiter: LoopFuture) -> bool:
        """Register a loop's future to be woken; return False where the outcome is there already."""
        with self._lock:
            if self._settled.is_set():
                return False
            self._waiters.setdefault(loop, []).append(waiter)
            return True

    def settle(self, error: BaseException | None) -> None:
        """Set the outcome and wake every waiter."""
        with self._lock:
            self.error = error
            self._settled.set()
        for loop, waiters in self._waiters.items():
            with suppress(RuntimeError):  # in a closed loop nobody waits any more
                loop.call_soon_threadsafe(_wake, waiters)


def _wake(waiters: Iterable[LoopFuture]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
