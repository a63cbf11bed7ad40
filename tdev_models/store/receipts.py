"""What calls wait for that ride on one write, in threads and in event loops."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol


class Loop(Protocol):
    """What is needed of an event loop."""

    def call_soon_threadsafe(self, callback: Any, *args: Any) -> object:
        """Call a function in the loop's thread."""


class Waiter(Protocol):
    """What is needed of an event loop's future."""

    def done(self) -> bool:
        """Return whether it has a result or was cancelled."""

    def set_result(self, result: None) -> None:
        """Wake who waits for it."""


class Receipt:
    """The outcome of a write that is still to come; settled once, by the thread that wrote.

    Attributes:
        error: why the write failed; None before, and when it did not.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._settled = threading.Event()
        self._lock = threading.Lock()
        self._waiters: dict[Loop, list[Waiter]] = {}

    def wait(self, seconds: float | None = None) -> bool:
        """Block the thread until settled; return False when the time was over before."""
        return self._settled.wait(seconds)

    def join(self, loop: Loop, waiter: Waiter) -> bool:
        """Let a future of a loop be woken; return False where all is settled already."""
        with self._lock:
            if self._settled.is_set():
                return False
            self._waiters.setdefault(loop, []).append(waiter)
            return True

    def settle(self, error: BaseException | None) -> None:
        """Wake everyone."""
        with self._lock:
            self.error = error
            self._settled.set()
        for loop, waiters in self._waiters.items():
            with suppress(RuntimeError):  # a loop that is closed has nobody left who waits
                loop.call_soon_threadsafe(_wake, waiters)


def _wake(waiters: Iterable[Waiter]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
