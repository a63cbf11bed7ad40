"""Find what failed: sessions that failed or stalled, executions that failed."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import result_of
from tdev_models.errors import InvalidRequest
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.results import Execution, ExecutionStatus, Page, Session, SessionStatus
from tdev_models.services.executions import RULES, execution_result
from tdev_models.services.signs_of_life import without_signs_of_life
from tdev_models.workers.lease import is_stalled

_PAGE = validation.whole(1, 100)
_EARLIEST = 1e9
_CANDIDATES = 100

FAILED, ACTIVE = SessionStatus.FAILED, SessionStatus.ACTIVE


async def get_failed_sessions(
    client: Client,
    older_than: Any = None,
    include_stalled: bool = True,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Session]:
    """Return a page of FAILED and of stalled ACTIVE sessions, by `last_updated`, oldest first.

    Stalled: the lease ran out, or there is none, and `last_updated` and its latest executions are
    older than the setting `stalled_after_seconds` (one Query for each such session). A session
    whose worker died is found once it is that old. One Query on status-index for each status finds
    candidates; one TransactGetItems reads them consistently, so each was FAILED or stalled when it
    was read. A page may be short, or empty, and still have a cursor.

    Args:
        older_than: only sessions last updated before this instant (epoch seconds, datetime or ISO
            text), or longer ago than this timedelta.
        include_stalled: False leaves out the ACTIVE ones.
        limit: 1..100 sessions.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    page = await failed_or_stalled(client, older_than, include_stalled, limit, cursor)
    return Page((result_of(Session, session) for session in page), page.cursor)


@dataclass(frozen=True, slots=True)
class _Position:
    """Where a page of failed and stalled sessions begins, as its cursor holds it.

    Attributes:
        until: of each status: only sessions last updated before this moment. The same on all pages.
        starts: of each status that is not read to its end: the key after which its Query goes on,
            None for the beginning.
    """

    until: Mapping[SessionStatus, float]
    starts: Mapping[SessionStatus, Mapping[str, Any] | None]

    @classmethod
    def first(cls, before: float, stalled_before: float | None) -> _Position:
        """Return where the first page begins; None leaves out the ACTIVE sessions."""
        until = {FAILED: before}
        if stalled_before is not None:
            until[ACTIVE] = min(before, stalled_before)
        return cls(until, dict.fromkeys(until))

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> _Position:
        """Return the position that a cursor holds."""
        until = {SessionStatus(status): moment for status, moment in stored["until"].items()}
        return cls(until, {SessionStatus(status): key for status, key in stored["at"].items()})

    def dump(self) -> dict[str, Any]:
        """Return what a cursor is made of."""
        return {"at": self.starts, "until": self.until}


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The sessions of one status that one Query found; `last_key` is None at their end."""

    sessions: Sequence[PipelineSession]
    last_key: Mapping[str, Any] | None


async def failed_or_stalled(
    client: Client, older_than: Any, include_stalled: bool, limit: int, cursor: str | None
) -> Page[PipelineSession]:
    """Return the page of `get_failed_sessions`, with what it takes to claim each session."""
    _PAGE("limit", limit)
    now, stalled_after = client.now(), client.settings.stalled_after_seconds
    query = ("get_failed_sessions", client.sessions.name, include_stalled)
    position = _Position.first(
        instant_before(older_than, now), now - stalled_after if include_stalled else None
    )
    if (stored := cursors.decode(query, cursor)) is not None:
        position = _Position.load(stored)
    candidates = await _candidates(client, position, limit)
    by_age = heapq.merge(*(part.sessions for part in candidates.values()), key=_last_updated)
    chosen = list(by_age)[:limit]
    following = _next_position(client, position, candidates, chosen)

    def belongs(session: PipelineSession) -> bool:
        if session.status == FAILED:
            return _last_updated(session) < position.until[FAILED]
        return include_stalled and is_stalled(session, now, stalled_after)

    found = filter(belongs, await _read_consistently(client, chosen))
    sessions = await without_signs_of_life(client, [*found])
    return Page(
        sorted(sessions, key=_last_updated),
        cursors.encode(query, following.dump()) if following.starts else None,
    )


async def _candidates(
    client: Client, position: _Position, limit: int
) -> dict[SessionStatus, _Candidates]:
    """Return what the index has of each status from a position on, oldest first."""
    candidates: dict[SessionStatus, _Candidates] = {}
    for status, bound in position.until.items():
        if status in position.starts:
            sessions, last_key = await client.sessions.page(
                status,
                index=PipelineSession.status_index,
                range_condition=PipelineSession.last_updated < bound,
                limit=limit,
                start=position.starts[status],
            )
            candidates[status] = _Candidates(sessions, last_key)
    return candidates


def _next_position(
    client: Client,
    position: _Position,
    candidates: Mapping[SessionStatus, _Candidates],
    chosen: Sequence[PipelineSession],
) -> _Position:
    """Return where the page after the chosen sessions begins."""
    starts: dict[SessionStatus, Mapping[str, Any] | None] = {}
    for status, part in candidates.items():
        taken = [session for session in chosen if session.status == status]
        if len(taken) == len(part.sessions):
            if part.last_key is not None:
                starts[status] = part.last_key
        elif taken:
            starts[status] = client.sessions.position(taken[-1], PipelineSession.status_index)
        else:
            starts[status] = position.starts[status]
    return _Position(position.until, starts)


async def _read_consistently(
    client: Client, chosen: Sequence[PipelineSession]
) -> list[PipelineSession]:
    """Return the sessions as they are now, and not as the index shows them."""
    # An index that lags may show a session under both statuses; a transaction wants it once.
    keys = dict.fromkeys((session.session_id,) for session in chosen)
    stored = await client.sessions.get_many([*keys])
    return [session for session in stored if session is not None]


def _last_updated(session: PipelineSession) -> float:
    return session.last_updated or 0


def instant_before(older_than: Any, now: float) -> float:
    """Return the moment before which a session must have been updated last."""
    if older_than is None:
        return now + 1  # a clock ahead of this one
    if isinstance(older_than, timedelta):
        return now - older_than.total_seconds()
    instant = validation.instant("older_than", older_than)
    if instant < _EARLIEST:
        raise InvalidRequest(
            "older_than", f"{older_than!r} is a moment in 1970..2001; for an age pass a timedelta"
        )
    return instant


async def get_failed_executions(
    client: Client,
    since: Any = None,
    agent_name: str | None = None,
    *,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Execution]:
    """Return a page of failed executions, newest first.

    Queries on status-index, eventually consistent: a change shows after a moment. With
    `agent_name` the failures of other agents are read too, at least 100 at once, and billed, but
    not returned. Without payloads and attempts.

    Args:
        since: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        agent_name: only failures of this agent.
        limit: 1..1000 executions.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    validation.LIMIT("limit", limit)
    if agent_name is not None:
        RULES["agent_name"]("agent_name", agent_name)
    begin = None if since is None else validation.instant("since", since)
    query = ("get_failed_executions", client.executions.name, begin, agent_name)
    start = cursors.decode(query, cursor)
    failures: list[AgentExecution] = []
    while True:
        executions, last = await client.executions.page(
            ExecutionStatus.FAILED,
            index=AgentExecution.status_index,
            range_condition=None if begin is None else AgentExecution.end_time >= begin,
            limit=limit if agent_name is None else max(limit, _CANDIDATES),
            newest_first=True,
            start=start,
        )
        for execution in executions:
            if agent_name in (None, execution.agent_name):
                failures.append(execution)
                if len(failures) == limit:
                    last = client.executions.position(execution, AgentExecution.status_index)
                    break
        if last is None or len(failures) == limit:
            return Page(
                map(execution_result, failures), cursors.encode(query, last) if last else None
            )
        start = last
