"""The due sessions of one worker, handed out one by one to whichever of its slots is free."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tdev_models.dynamodb.client import Client
from tdev_models.errors import ConfigurationError, logged
from tdev_models.models import PipelineSession
from tdev_models.models.worker import WORKER
from tdev_models.retry import DICE, LOCK_POLL_SECONDS, STOP_POLL_SECONDS
from tdev_models.services.due import ACTIVE, FAILED, Bounds, Starts, candidates
from tdev_models.services.gone_workers import is_any_gone
from tdev_models.workers.lease import Lease, is_hung
from tdev_models.workers.presence import Presence

_log = logging.getLogger(__name__)

_PAGE = 100
_LEAVE_ALONE_SECONDS = 600.0
_MOST_LEFT_ALONE = 10_000


@dataclass(slots=True, eq=False)
class Turn:
    """A session that a slot is to look at.

    Attributes:
        session_id: the session.
        bounds: which sessions were asked for.
        alone: whether nothing else is to run in this worker, until it has got on.
        until: for how long at most, by the monotonic clock: no agent needs a timeout, and one that
            waits for ever kills no worker, but would stop it.
        lease: the claim, once there is one.
    """

    session_id: str
    bounds: Bounds
    alone: bool = False
    until: float = math.inf
    lease: Lease | None = None

    def runs(self, now: float) -> bool:
        """Return whether it gets on: what hangs, or was lost, may keep its slot for ever."""
        return not (self.is_lost(now) or time.monotonic() > self.until)

    def is_lost(self, now: float) -> bool:
        """Return whether another slot or worker has its session, or may claim it."""
        lease = self.lease
        return lease is not None and (lease.lost is not None or is_hung(lease.deadline, now))

    def runs_alone(self, now: float) -> bool:
        """Return whether nothing else may run: once an agent has ended, it kills no worker."""
        got_on = self.lease is not None and self.lease.got_on
        return self.alone and not got_on and self.runs(now)


class DueQueue:
    """Finds due sessions page by page, and again every poll.

    Each page is handed out in random order: workers that look at the same moment then seldom meet.
    What may kill its worker is put off until nothing else runs here, and runs alone. It keeps
    nobody waiting before: others may have a worker that is free.

    Attributes:
        error: why the sessions could not be found, where that ends the queue.
    """

    def __init__(
        self,
        client: Client,
        presence: Presence,
        older_than: Any,
        poll_seconds: float | None,
        stopped: Callable[[], bool],
        unreadable: list[str],
        slots: int,
    ) -> None:
        self._client, self._presence, self._slots = client, presence, slots
        self._older_than, self._poll_seconds = older_than, poll_seconds
        self._stopped, self._unreadable = stopped, unreadable
        self.error: Exception | None = None
        self._bounds = Bounds(0.0, None)
        self._starts: Starts | None = None  # None before the first look, empty after its last page
        self._look_again = 0.0
        self._found: list[str] = []
        self._suspects: dict[str, None] = {}
        self._suspects_before: dict[str, None] = {}  # this look
        self._turns, self._closed = set[Turn](), False
        self._checks_all_lost = 0
        self._left_alone: dict[str, tuple[set[float | str | None], float]] = {}
        self._awaits_calm = False  # workers seem to be gone, and it is too early to say so
        self._state = threading.Lock()  # of threads; never held while waiting
        self._looking = threading.Lock()

    async def take(self) -> Turn | None:
        """Return the next session, as soon as there is one; None when the slot is to end."""
        while not (self._closed or self._stopped()):
            with self._state:
                turn = self._next()
            if turn is not None:
                return turn
            if self._looking.acquire(blocking=False):
                try:
                    if await self._look():
                        continue
                finally:
                    self._looking.release()
                if self._is_over():
                    return None
                await self._client.sleep(min(STOP_POLL_SECONDS, self._poll_seconds or 1.0))
            else:
                await self._client.sleep(LOCK_POLL_SECONDS)
        return None

    def done(self, turn: Turn) -> None:
        """Say that a slot has done with a session."""
        with self._state:
            self._turns.discard(turn)

    def put_off(self, session_id: str) -> None:
        """Hand a session out again, alone, once nothing else runs."""
        with self._state:
            self._suspects[session_id] = None

    def leave_alone(self, session: PipelineSession, *, lives: bool = False) -> None:
        """Do not hand a session out for ten minutes, unless it is written, or hangs by then.

        One that `lives` is handed out as soon as its worker seems to be gone.
        """
        if len(self._left_alone) >= _MOST_LEFT_ALONE:
            self._left_alone.clear()
        seconds = _LEAVE_ALONE_SECONDS
        if session.deadline is not None:
            seconds = min(seconds, session.deadline - self._client.now())
        until = time.monotonic() + seconds
        as_seen = {session.due_at, None if lives else session.worker_id}
        self._left_alone[session.session_id] = as_seen, until

    def close(self) -> None:
        """Hand out nothing more."""
        self._closed = True

    def check_slots(self) -> None:
        """Say so when every slot was lost at two checks in a row: none is left that looks.

        Nothing can end a thread from outside. What can be cancelled is gone by the next check.
        """
        now = self._client.now()
        with self._state:
            lost = sorted(turn.session_id for turn in self._turns if turn.is_lost(now))
        self._checks_all_lost = self._checks_all_lost + 1 if len(lost) == self._slots else 0
        if self._checks_all_lost == 2:
            _log.error(
                "an agent hangs in each slot of this worker, and it recovers nothing any more: "
                "restart it (sessions %s)",
                ", ".join(lost),
            )

    def _next(self) -> Turn | None:
        now = self._client.now()
        if any(turn.runs_alone(now) for turn in self._turns):
            return None
        if self._found:
            turn = Turn(self._found.pop(), self._bounds)
        elif (
            self._suspects
            and not self._starts  # in the middle of a look
            and not any(turn.runs(now) for turn in self._turns)
        ):
            first = next(iter(self._suspects))
            del self._suspects[first]
            until = time.monotonic() + self._client.settings.stalled_after_seconds
            turn = Turn(first, self._bounds, alone=True, until=until)
        else:
            return None
        self._turns.add(turn)
        return turn

    def _is_over(self) -> bool:
        if self.error is not None:
            return True
        with self._state:
            left = self._found or self._suspects or self._starts or self._awaits_calm
            return self._poll_seconds is None and self._starts is not None and not left

    async def _look(self) -> bool:
        """Find more sessions, where it is time to; return whether any were looked for."""
        first = self._starts is None
        if not self._is_time_to_look():
            return False
        try:
            if not self._starts:
                self._bounds = Bounds.at(self._client.now(), self._older_than)
                self._starts = await self._begin()
                if self._poll_seconds is not None:
                    with self._state:  # found again, unless other workers have them now
                        self._suspects_before, self._suspects = self._suspects, {}
            found, starts = await candidates(
                self._client, self._bounds, self._starts, _PAGE, self._unreadable
            )
        except Exception as error:
            found, starts = [], {}
            if self._poll_seconds is None or (first and isinstance(error, ConfigurationError)):
                self.error = error
            else:
                _log.warning("sessions could not be found, trying again: %s", logged(error))
        ids = [session.session_id for session in found if not self._is_left_alone(session)]
        DICE.shuffle(ids)
        with self._state:
            self._starts, self._look_again = starts, time.monotonic() + (self._poll_seconds or 0.0)
            # Who looked at them once more would put them off again, in the midst of the next look.
            self._suspects |= dict.fromkeys(one for one in ids if one in self._suspects_before)
            # An index that lags shows one under both statuses.
            self._found += dict.fromkeys(one for one in ids if one not in self._suspects)
        return self.error is None

    async def _begin(self) -> Starts:
        """Return what to look for: sessions of dead workers once it is known who has died."""
        if self._awaits_calm:
            self._awaits_calm = False
            return {WORKER: None}
        if not self._presence.calm_seconds(self._client, from_start=True):
            return {WORKER: None, FAILED: None, ACTIVE: None}
        # The next poll will look, and where there is none this one look waits for it.
        self._awaits_calm = self._poll_seconds is None and await is_any_gone(self._client)
        return {FAILED: None, ACTIVE: None}

    def _is_time_to_look(self) -> bool:
        with self._state:
            if self._found or self.error:
                return False
            if self._starts or self._starts is None:  # in the middle, or at the very beginning
                return True
            if self._awaits_calm:
                return not self._presence.calm_seconds(self._client, from_start=True)
            return self._poll_seconds is not None and time.monotonic() >= self._look_again

    def _is_left_alone(self, session: PipelineSession) -> bool:
        # Found by its worker, it shows no `due_at`; another worker has claimed it since.
        as_seen, until = self._left_alone.get(session.session_id, (set(), 0.0))
        found_by = session.worker_id if session.due_at is None else session.due_at
        return found_by in as_seen and time.monotonic() < until
