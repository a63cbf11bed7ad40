"""A bound on how much of one kind a process does at once: first come, first served."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.forks import after_fork_in_child
from tdev_models.retry import LOOP_POLL_SECONDS

_Turn: TypeAlias = tuple[SharedFuture, Callable[[], bool]]
"""Who waits for a slot, and whether what it waits in runs."""


class Slots:
    """So many may be taken at once in this process, by all its threads and event loops.

    An `asyncio.Semaphore` bounds one event loop, a `threading.Semaphore` would block it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting, self._succeeded_at = deque[_Turn](), 0.0
        self._held = dict[SharedFuture, Callable[[], bool]]()
        self._tasks = Counter[int]()  # that have a slot, or wait for one, by their loop's thread

    @asynccontextmanager
    async def taken(self, client: Client) -> AsyncIterator[None]:
        """Wait for a slot, and keep it inside the block.

        A blocking call in an event loop takes none: that loop's tasks could not give theirs back.
        """
        thread, turn = client.thread, (SharedFuture(), client.runs())
        if not client.in_event_loop and self._tasks[thread] > 0:
            yield
            return
        with self._lock:
            self._tasks[thread] += client.in_event_loop
            self._waiting.append(turn)
            self._hand_out()
        try:
            while not await client.wait_for(turn[0], LOOP_POLL_SECONDS):
                self._take_back()
                await client.sleep(0)  # a job that nobody waits for stops there
            yield
            self._succeeded_at = time.monotonic()
        finally:
            with self._lock:
                self._tasks[thread] -= client.in_event_loop
                if turn in self._waiting:  # cancelled before it came
                    self._waiting.remove(turn)
                self._held.pop(turn[0], None)
                self._hand_out()

    def seconds_left(self, budget_seconds: float, begun: float) -> float:
        """Return what is left of a budget that each block which succeeds gives to all others anew.

        Who waits for a slot while others get on has not waited in vain.
        """
        return max(begun, self._succeeded_at) + budget_seconds - time.monotonic()

    def _hand_out(self) -> None:
        while self._waiting and len(self._held) < self._count:
            turn, runs = self._waiting.popleft()
            self._held[turn] = runs
            turn.settle(None)

    def _take_back(self) -> None:
        """Take the slots of event loops that were stopped: they may never go on."""
        with self._lock:
            for turn, runs in [*self._held.items()]:
                if not runs():
                    del self._held[turn]
            self._hand_out()
