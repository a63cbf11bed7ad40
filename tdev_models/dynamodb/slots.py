"""A bound on how much of one kind a process does at once: first come, first served."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.forks import after_fork_in_child


class Slots:
    """So many may be taken at once in this process, by all its threads and event loops.

    An `asyncio.Semaphore` bounds one event loop, a `threading.Semaphore` would block it.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._reset()
        after_fork_in_child(self._reset)

    def _reset(self) -> None:
        self._lock, self._free = threading.Lock(), self._count
        self._waiting, self._succeeded_at = deque[SharedFuture](), 0.0
        self._tasks = Counter[int]()  # that have a slot, or wait for one, by their loop's thread

    @asynccontextmanager
    async def taken(self, client: Client) -> AsyncIterator[None]:
        """Wait for a slot, and keep it inside the block.

        A blocking call in an event loop takes none: that loop's tasks could not give theirs back.
        """
        turn, thread = SharedFuture(), client.thread
        if not client.in_event_loop and self._tasks[thread] > 0:
            yield
            return
        with self._lock:
            self._tasks[thread] += client.in_event_loop
            if self._free:
                self._free -= 1
                turn.settle(None)
            else:
                self._waiting.append(turn)
        try:
            await client.wait_for(turn)
            yield
            self._succeeded_at = time.monotonic()
        finally:
            with self._lock:
                self._tasks[thread] -= client.in_event_loop
                self._give_back(turn)

    def seconds_left(self, budget_seconds: float, begun: float) -> float:
        """Return what is left of a budget that each block which succeeds gives to all others anew.

        Who waits for a slot while others get on has not waited in vain.
        """
        return max(begun, self._succeeded_at) + budget_seconds - time.monotonic()

    def _give_back(self, turn: SharedFuture) -> None:
        if turn in self._waiting:  # cancelled before it came
            self._waiting.remove(turn)
        elif self._waiting:
            self._waiting.popleft().settle(None)
        else:
            self._free += 1
