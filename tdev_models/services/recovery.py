"""Find sessions that failed or stalled, and resume each of them exactly once."""

from __future__ import annotations

import heapq
import inspect
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from tdev_models import fields
from tdev_models.errors import ConditionFailed, InvalidRequest, LeaseLost, TdevError
from tdev_models.models import PipelineSession
from tdev_models.services.changes import record
from tdev_models.services.executions import execution_key, write_execution
from tdev_models.services.leases import Lease, claim, is_stalled, unchanged
from tdev_models.services.outcome import outcome_of
from tdev_models.services.sessions import RULES, abandon, stored_session
from tdev_models.services.tracking import Tracker
from tdev_models.store import cursors
from tdev_models.store.client import Client
from tdev_models.types import AGENTS, ExecutionStatus, Page, Session, SessionStatus

_PAGE = fields.whole(1, 100)
_EARLIEST = 1e9
_LONGEST_BACKOFF_SECONDS = 3600.0

FAILED, ACTIVE = SessionStatus.FAILED, SessionStatus.ACTIVE


class Event(Protocol):
    """What tells a worker to stop: `threading.Event`, `asyncio.Event` and the like."""

    def is_set(self) -> bool:
        """Return whether to stop."""


async def get_failed_sessions(
    client: Client,
    older_than: Any = None,
    include_stalled: bool = True,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Session]:
    """Return a page of FAILED and of stalled ACTIVE sessions, by `last_updated`, oldest first.

    Stalled: the lease ran out, or there is none and `last_updated` is older than the setting
    `stalled_after_seconds`. An owner that died shows when its session is that old. One Query on
    status-index for each status names candidates; one TransactGetItems reads them consistently,
    so what is returned was so a moment ago. A page may be short, or empty, and still have a cursor.

    Args:
        older_than: only sessions last updated before this instant (epoch seconds, datetime or ISO
            text), or longer ago than this timedelta.
        include_stalled: False leaves out the ACTIVE ones.
        limit: 1..100 sessions.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    page = await _candidates(client, older_than, include_stalled, limit, cursor)
    return Page((record(Session, session) for session in page), page.cursor)


async def _candidates(
    client: Client, older_than: Any, include_stalled: bool, limit: int, cursor: str | None
) -> Page[PipelineSession]:
    _PAGE("limit", limit)
    now = client.now()
    before = _instant_before(older_than, now)
    until = {FAILED: before}
    if include_stalled:
        until[ACTIVE] = min(before, now - client.settings.stalled_after_seconds)
    query = ("get_failed_sessions", client.sessions.name, include_stalled)
    # Of each status: where to go on; a status that is missing is read to its end.
    begin = cursors.decode(query, cursor) or dict.fromkeys(until)

    found: dict[SessionStatus, list[PipelineSession]] = {}
    more: dict[str, Any] = {}
    for status in until:
        if status in begin:
            found[status], more[status] = await client.sessions.page(
                status,
                index="status-index",
                range_condition=PipelineSession.last_updated < until[status],
                limit=limit,
                start=begin[status],
            )
    chosen = list(heapq.merge(*found.values(), key=lambda session: session.last_updated))[:limit]
    position: dict[str, Any] = {}
    for status, sessions in found.items():
        taken = [session for session in chosen if session.status == status]
        if len(taken) < len(sessions):
            last = taken[-1] if taken else None
            position[status] = (
                client.sessions.position(last, "status-index") if last else begin[status]
            )
        elif more[status]:
            position[status] = more[status]

    read = await client.sessions.get_many([(session.session_id,) for session in chosen])
    sure = [
        session
        for session in read
        if session is not None
        and (
            (session.status == FAILED and (session.last_updated or 0) < before)
            or (include_stalled and is_stalled(session, now, client.settings.stalled_after_seconds))
        )
    ]
    sure.sort(key=lambda session: session.last_updated or 0)
    return Page(sure, cursors.encode(query, position) if position else None)


def _instant_before(older_than: Any, now: float) -> float:
    if older_than is None:
        return now + 1  # a clock ahead of this one
    if isinstance(older_than, timedelta):
        return now - older_than.total_seconds()
    instant = fields.instant("older_than", older_than)
    if instant < _EARLIEST:
        raise InvalidRequest(
            "older_than", f"{older_than!r} is a moment in 1970..2001; for an age pass a timedelta"
        )
    return instant


class Resume(Tracker):
    """A try to take over a session: true when it was claimed, else `reason` says why not.

    Inside `async with resume` it is a tracker: it beats, `.agent(...)` tracks, calls on the session
    carry the lease, and the end of the block ends the session. A claim that is not entered runs out
    after `lease_seconds`.

    Attributes:
        reason: why the session was not claimed; None when it was.
    """

    def __init__(self, client: Client, session_id: str) -> None:
        super().__init__(client, session_id, {})
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.lease is not None

    async def _create_or_claim(self) -> Lease:
        return self.owned  # raises: what was not claimed cannot be entered


Runner = Callable[[Resume], Any]
"""Runs what is left of a pipeline; its result is awaited where it can be."""


async def resume_pipeline(
    client: Client, session_id: str, runner: Runner | None = None, from_agent: str | None = None
) -> Resume:
    """Claim a failed or stalled session, and run the rest of it where a runner is given.

    Exactly one of any number of callers gets it: one GetItem, one conditional UpdateItem, then the
    executions (one TransactGetItems, Queries on project-index). Losing is no error: the result is
    falsy and says why. Safe to call again: a claim whose reply was lost is recognised.

    Args:
        session_id: the session.
        runner: called with the `Resume` inside its block; what it raises ends the session as
            FAILED and is raised.
        from_agent: one of the nine agents to begin again at, even if it had ended.

    Raises:
        NotFound: there is no such session.
        InvalidRequest: from_agent is none of the nine.
        LeaseLost: the runner's session was taken over.
        Throttled, Unavailable: after all retries; a claim may have happened and will run out.
    """
    if from_agent is not None and from_agent not in AGENTS:
        raise InvalidRequest("from_agent", f"{from_agent!r} is not one of {', '.join(AGENTS)}")
    resume = await _claimed(client, await stored_session(client, session_id), from_agent)
    if resume and runner is not None:
        await _run(resume, runner)
    return resume


async def _claimed(client: Client, seen: PipelineSession, from_agent: str | None) -> Resume:
    resume = Resume(client, seen.session_id)
    resume.reason = _not_now(client, seen)
    if resume.reason is not None:
        return resume
    claimed = await claim(client, seen, {}, resumed=True)
    if isinstance(claimed, PipelineSession):
        resume.reason = _not_now(client, claimed) or "another worker changed it at the same time"
        return resume
    outcome = await outcome_of(client, seen.session_id)
    if from_agent is not None:
        outcome = outcome.before(from_agent)
    await resume.take_over(claimed, outcome)
    resume.lease = claimed
    if from_agent is not None:
        # Whoever resumes next must begin there too.
        key = execution_key(f"{seen.session_id}-{from_agent}")
        values = {"status": ExecutionStatus.PENDING, "project_id": seen.session_id}
        await write_execution(client, *key[:2], values, outcome.executions.get(from_agent), claimed)
    return resume


def _not_now(client: Client, session: PipelineSession) -> str | None:
    """Return why a session cannot be resumed, or None if it can."""
    if session.status == FAILED or is_stalled(
        session, client.now(), client.settings.stalled_after_seconds
    ):
        return None
    if session.status != ACTIVE:
        return f"it is {session.status}"
    if session.lease_token is not None:
        return f"{session.lease_owner} owns it (claim {int(session.fence or 0)})"
    return "it is ACTIVE, and was updated too recently to be stalled"


async def _run(resume: Resume, runner: Runner) -> None:
    async with resume:
        result = runner(resume)
        if inspect.isawaitable(result):
            await result


@dataclass
class Recovery:
    """What a worker did: ids of sessions by how they ended."""

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
        Throttled, Unavailable: sessions could not be found or claimed; those under way had ended.
    """
    fields.whole(1, 1000)("max_attempts", max_attempts)
    fields.whole(1, 1000)("concurrency", concurrency)
    worker = _Worker(client, runner, max_attempts, backoff_seconds, stop)
    while True:
        cursor = None
        # What fails again during this round belongs to the next.
        before = min(_instant_before(older_than, client.now()), client.now())
        while not worker.stopped:
            page = await _candidates(client, before, True, min(100, 10 * concurrency), cursor)
            await client.gather([partial(worker.recover, one) for one in page], concurrency)
            cursor = page.cursor
            if cursor is None:
                break
        if poll_seconds is None or worker.stopped:
            return worker.done
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
        self.done = Recovery()

    @property
    def stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    async def recover(self, session: PipelineSession) -> None:
        now, tried = self._client.now(), int(session.resume_count or 0)
        if self.stopped or (session.next_retry_at or 0) > now:
            return
        if tried >= self._max_attempts:
            await self._give_up(session, tried)
            return
        resume = await _claimed(self._client, session, None)
        if not resume:
            self.done.lost.append(session.session_id)
            return
        longest = min(_LONGEST_BACKOFF_SECONDS, self._backoff * 2**tried)
        resume.retry_at = now + random.random() * longest
        try:
            await _run(resume, self._runner)
        except LeaseLost:
            self.done.lost.append(session.session_id)
        except Exception as error:
            if isinstance(error, TdevError) and not resume.owned.over:
                raise
            self.done.failed.append(session.session_id)
        else:
            self.done.completed.append(session.session_id)

    async def _give_up(self, session: PipelineSession, tried: int) -> None:
        last_error = session.error_message or "its workers died"
        reason = f"gave up after {tried} resumes; last: {last_error}"
        try:
            await abandon(
                self._client,
                session.session_id,
                RULES["error_message"]("reason", reason[:4000]),
                unchanged(session),
            )
        except ConditionFailed:
            self.done.lost.append(session.session_id)
        else:
            self.done.abandoned.append(session.session_id)
