"""The one place that decides when something is tried again, and how long to wait for it.

An error that is not in `FIRST_PAUSE_SECONDS`, or has no pause there, is never tried again. The
pause doubles with each try, up to `LONGEST_PAUSE_SECONDS`, and is drawn at random between nothing
and that (full jitter). It ends when a budget is spent: a number of seconds. Only agents that run as
a call, and writes that others' writes come in the way of, are tried a number of times.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from tdev_models.errors import (
    BudgetSpent,
    Conflict,
    EffectInDoubt,
    InvalidRequest,
    LeaseLost,
    TdevError,
    Throttled,
    Unavailable,
)

T = TypeVar("T")

# What draws pauses and orders. A seed that an application sets makes no two workers alike, and its
# own draws are left to it.
DICE: Final = random.SystemRandom()

FIRST_PAUSE_SECONDS: Final[Mapping[type[Exception], float | None]] = {
    # Another transaction was at work on the item: nothing was changed.
    Conflict: 0.02,
    # No answer: perhaps changed, and every write of this package may be sent twice.
    Unavailable: 0.05,
    # Refused for capacity: nothing was changed.
    Throttled: 0.1,
}
LONGEST_PAUSE_SECONDS: Final = 2.0
# Of an owner's writes, which are tried for long.
OWNER_LONGEST_PAUSE_SECONDS: Final = 5.0

# What an agent raises that is run as a call: whatever it is, but for what no second try can mend.
AGENT_FIRST_PAUSE_SECONDS: Final[Mapping[type[Exception], float | None]] = {
    BudgetSpent: None,
    EffectInDoubt: None,
    InvalidRequest: None,
    LeaseLost: None,
    Exception: 1.0,
}
AGENT_LONGEST_PAUSE_SECONDS: Final = 60.0

# A write without a lease is tried so often while others write the same in between.
CONTENDED_TRIES: Final = 20
CONTENDED_FIRST_PAUSE_SECONDS: Final = 0.02
CONTENDED_LONGEST_PAUSE_SECONDS: Final = 30.0

# Budgets in seconds. Those of other requests are the settings `retry_seconds` and, for writes of a
# session's owner, `owner_retry_seconds`. These two begin anew with each chunk that is stored, or
# read: at 5 write units a second 2 MB of chunks take 7 minutes.
CHUNK_WRITE_SECONDS: Final = 900.0
CHUNK_READ_SECONDS: Final = 300.0

# A worker's heartbeats: how many a lease, and at least how often. Who misses more than two without
# an answer takes it that others miss theirs for the same reason.
BEATS_A_LEASE: Final = 6
BEATS_MISSED: Final = 2
LONGEST_BEAT_SECONDS: Final = 5.0

# What a cancelled task may still take to record its end.
CANCELLED_SECONDS: Final = 2.0

# How often to look whether something in this process has changed that sends no signal.
LOCK_POLL_SECONDS: Final = 0.005
# So many wait for one lock before each of them looks less often.
LOCK_POLLERS: Final = 10
STOP_POLL_SECONDS: Final = 0.2
LOOP_POLL_SECONDS: Final = 2.0


def is_retried(error: Exception) -> bool:
    """Return whether a request that failed with this error is tried again."""
    return any(isinstance(error, kind) for kind in FIRST_PAUSE_SECONDS)


class Backoff:
    """The pauses of one thing that is tried until it succeeds or its budget is spent.

    Attributes:
        attempts: how often it was tried, the one under way included.
    """

    def __init__(
        self,
        budget_seconds: float,
        first_pause_seconds: Mapping[type[Exception], float | None] = FIRST_PAUSE_SECONDS,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
        most_attempts: float = math.inf,
    ) -> None:
        self.attempts, self._most_attempts = 1, most_attempts
        self._deadline = time.monotonic() + budget_seconds
        self._first_pauses, self._longest = first_pause_seconds, longest_pause_seconds

    def pause_after(self, error: Exception) -> float | None:
        """Return how long to wait before the next try, or None when the error is final."""
        first = next(
            (first for kind, first in self._first_pauses.items() if isinstance(error, kind)), None
        )
        if first is None or self.attempts >= self._most_attempts:
            return None
        limit = min(self._longest, first * 2 ** min(self.attempts - 1, 30))
        pause = DICE.uniform(0, limit)
        if time.monotonic() + pause >= self._deadline:
            return None
        self.attempts += 1
        return pause


async def retry(
    attempt: Callable[[], Awaitable[T]], sleep: Callable[[float], Awaitable[None]], backoff: Backoff
) -> T:
    """Return the result of the first attempt that succeeds, or raise the error that is final."""
    while True:
        try:
            return await attempt()
        except TdevError as error:
            pause = backoff.pause_after(error)
            if pause is None:
                raise
        await sleep(pause)


class Turns:
    """The tries of a write that others write in between, so that of many each has its turn.

    Every second try goes at once: the one before it, which was refused, shows what is stored now.
    Before the others is a pause, and since only one write can be made of all that are on their way
    at once, it is as much longer as a try takes.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._sleep, self._tries, self._since = sleep, 0, 0.0

    async def next(self) -> bool:
        """Wait for the next try and return True; return False at once after the last."""
        if self._tries == CONTENDED_TRIES:
            return False
        if self._tries and self._tries % 2 == 0:
            took = max(time.monotonic() - self._since, CONTENDED_FIRST_PAUSE_SECONDS)
            limit = min(CONTENDED_LONGEST_PAUSE_SECONDS, took * 2 ** (self._tries // 2))
            await self._sleep(DICE.uniform(0, limit))
        self._tries, self._since = self._tries + 1, time.monotonic()
        return True


async def wait_until(
    ready: Callable[[], bool],
    sleep: Callable[[float], Awaitable[None]],
    poll_seconds: float,
    timeout_seconds: float = float("inf"),
) -> bool:
    """Wait until `ready()` is true, looking again and again; return False when time is over."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        await sleep(min(poll_seconds, left))
    return True


async def wait_among(
    waiters: set[object], ready: Callable[[], bool], sleep: Callable[[float], Awaitable[None]]
) -> None:
    """Wait until `ready()` is true; the more wait for the same, the less often each one looks."""
    me = object()
    waiters.add(me)
    try:
        while not ready():
            await sleep(LOCK_POLL_SECONDS * max(1.0, len(waiters) / LOCK_POLLERS))
    finally:
        waiters.discard(me)
