"""Keeps an event loop answering while a thousand calls of this package are ready at once.

A loop runs everything that is ready before it looks at anything else. Each call is short, but a
thousand of them in one turn of the loop stop all else for as long as they take together. So calls
ask for their turn: when they have used up a turn of the loop, the others go on in its next ones.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable
from typing import Final

from tdev_models.forks import after_fork_in_child

# How long calls may run in one turn of the loop; the last one may take it beyond that.
_SECONDS: Final = 0.002
# How many go on in one turn, if time allows.
_AT_ONCE: Final = 16


class Pace:
    """The calls of one event loop that wait for their turn, first come, first served."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._waiting = loop, deque[asyncio.Future[None]]()
        self._begun: float | None = None
        self._sent_back, self._is_called = 0, False

    async def turn(self) -> None:
        """Go on at once where there is time, else in one of the loop's next turns."""
        if not self._waiting and self._has_time():
            return
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self._call()
        await waiter
        while not self._has_time():
            waiter = self._loop.create_future()
            self._waiting.insert(self._sent_back, waiter)
            self._sent_back += 1
            await waiter

    def _has_time(self) -> bool:
        if self._begun is None:
            self._begun = time.perf_counter()
            self._call()
            return True
        return time.perf_counter() - self._begun < _SECONDS

    def _call(self) -> None:
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn of the loop."""
        self._begun, self._sent_back, self._is_called = None, 0, False
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if self._waiting:
            self._call()


_paces: dict[asyncio.AbstractEventLoop, Pace] = {}


def turn() -> Awaitable[None]:
    """Wait for a turn in the running loop."""
    return (_paces.get(asyncio.get_running_loop()) or _made()).turn()


def _made() -> Pace:
    for known in [*_paces]:
        if known.is_closed():
            _paces.pop(known, None)
    loop = asyncio.get_running_loop()
    _paces[loop] = Pace(loop)
    return _paces[loop]


after_fork_in_child(_paces.clear)
