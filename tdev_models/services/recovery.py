"""Resume every session that failed or stalled, or give it up."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.errors import (
    ConditionFailed,
    Conflict,
    InvalidRequest,
    Throttled,
    Unavailable,
)
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.services.failures import failed_or_stalled, instant_before
from tdev_models.services.resume import Runner, check_runner, run, try_to_resume
from tdev_models.services.sessions import abandon, shortened
from tdev_models.workers.lease import unchanged

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 3600.0
_IDS_KEPT = 10_000


class Event(Protocol):
    """What tells a worker to stop: `threading.Event`, `asyncio.Event` and the like."""

    def is_set(self) -> bool:
        """Return whether to stop."""


@dataclass
class Recovery:
    """What a worker did: ids of sessions by how they ended, the last 10,000 of each.

    Lost: another worker resumed the session first or took it over, or its outputs could not be
    read, or its end could not be written.
    """

    completed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


async def recover_sessions(
    client: Client,
    runner: Runner,
    *,
    older_than: Any = None,
    max_attempts: int = 5,
    backoff_seconds: float = 30.0,
    concurrency: int = 1,
    stop: Event | None = None,
    poll_seconds: float | None = None,
) -> Recovery:
    """Resume every failed or stalled session, oldest first, and return what came of them.

    Any number of workers may do so at once. A session whose runner raises is FAILED and waits, in
    full jitter, up to `backoff_seconds` doubled with each resume (at most an hour). A session that
    was resumed `max_attempts` times is ABANDONED, with the last error as the reason.

    Args:
        runner: called with a `Resume` inside its block, as by `resume_pipeline`.
        older_than: as for `get_failed_sessions`.
        max_attempts: how often one session may be resumed.
        backoff_seconds: the longest wait after the first failure.
        concurrency: how many sessions at once; blocking, each in a thread.
        stop: an event; once set, no further session is begun.
        poll_seconds: look again after so many seconds, until stopped; None looks once.

    Raises:
        InvalidRequest: a wrong value.
        Throttled, Unavailable: sessions could not be found; with `poll_seconds` that is logged,
            and tried again.
    """
    check_runner(client, runner)
    if stop is not None and not callable(getattr(stop, "is_set", None)):
        raise InvalidRequest("stop", f"must be an event, which has is_set(), not {stop!r}")
    for name, seconds in (("backoff_seconds", backoff_seconds), ("poll_seconds", poll_seconds)):
        if seconds is not None and not validation.number(name, seconds) > 0:
            raise InvalidRequest(name, "must be above 0")
    validation.whole(1, 1000)("max_attempts", max_attempts)
    validation.whole(1, 1000)("concurrency", concurrency)
    worker = _Worker(client, runner, max_attempts, backoff_seconds, stop)
    while True:
        # A session that fails again during this round is left to the next.
        before = min(instant_before(older_than, client.now()), client.now())
        try:
            await worker.round(before, concurrency)
        except (Conflict, Throttled, Unavailable) as error:
            if poll_seconds is None:
                raise
            _log.warning("sessions could not be found, trying again: %s", error)
        if poll_seconds is None or worker.stopped:
            return worker.result
        again = time.monotonic() + poll_seconds
        while time.monotonic() < again and not worker.stopped:
            await client.sleep(min(0.2, poll_seconds))


class _Worker:
    def __init__(
        self,
        client: Client,
        runner: Runner,
        max_attempts: int,
        backoff_seconds: float,
        stop: Event | None,
    ) -> None:
        self._client, self._runner, self._stop = client, runner, stop
        self._max_attempts, self._backoff = max_attempts, backoff_seconds
        self.result = Recovery()

    @property
    def stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    async def round(self, before: float, concurrency: int) -> None:
        cursor = None
        while not self.stopped:
            most = min(100, 10 * concurrency)
            page = await failed_or_stalled(self._client, before, True, most, cursor)
            jobs = [partial(self._recover, session) for session in page]
            await self._client.gather(jobs, concurrency)
            cursor = page.cursor
            if cursor is None:
                return

    async def _recover(self, session: PipelineSession) -> None:
        try:
            await self._resume_or_give_up(session)
        except Exception as error:
            # A lease that it left runs out, and the session is found again; the others go on.
            _log.warning("session %s not recovered: %s", session.session_id, error)
            self._add_to_result(None, session)

    async def _resume_or_give_up(self, session: PipelineSession) -> None:
        now, tried = self._client.now(), int(session.resume_count or 0)
        if self.stopped or (session.next_retry_at or 0) > now:
            return
        if tried >= self._max_attempts:
            await self._give_up(session, tried)
            return
        longest = min(_LONGEST_BACKOFF_SECONDS, self._backoff * 2**tried)
        resume = await try_to_resume(self._client, session, None, random.random() * longest)
        if not resume:
            self._add_to_result(None, session)
            return
        try:
            await run(resume, self._runner)
        except BaseException as error:
            # What the runner awaited was cancelled, say: that ends its session, not the worker.
            if not (isinstance(error, Exception) or self._client.is_stray_cancellation(error)):
                raise
            if not resume.owned.over:  # lost, or its end could not be written
                raise
            _log.warning(
                "session %s failed: %s: %s", session.session_id, type(error).__name__, error
            )
        self._add_to_result(resume.owned.ended, session)

    async def _give_up(self, session: PipelineSession, tried: int) -> None:
        last_error = session.error_message or "its workers died"
        reason = shortened(f"gave up after {tried} resumes; last: {last_error}")
        try:
            await abandon(
                self._client, session.session_id, reason, unchanged(session, self._client.now())
            )
        except ConditionFailed:
            self._add_to_result(None, session)
        else:
            self._add_to_result(SessionStatus.ABANDONED, session)

    def _add_to_result(self, ended: SessionStatus | None, session: PipelineSession) -> None:
        how = ended.lower() if ended else "lost"
        _log.info("session %s: %s", session.session_id, how)
        ids: list[str] = getattr(self.result, how)
        ids.append(session.session_id)
        del ids[:-_IDS_KEPT]
