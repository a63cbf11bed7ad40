"""Find the sessions that failed or stalled."""

from __future__ import annotations

import heapq
from datetime import timedelta
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import record
from tdev_models.errors import InvalidRequest
from tdev_models.models import PipelineSession
from tdev_models.results import Page, Session, SessionStatus
from tdev_models.workers.lease import is_stalled

_PAGE = validation.whole(1, 100)
_EARLIEST = 1e9

FAILED, ACTIVE = SessionStatus.FAILED, SessionStatus.ACTIVE


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
    page = await failed_or_stalled(client, older_than, include_stalled, limit, cursor)
    return Page((record(Session, session) for session in page), page.cursor)


async def failed_or_stalled(
    client: Client, older_than: Any, include_stalled: bool, limit: int, cursor: str | None
) -> Page[PipelineSession]:
    """Return the page of `get_failed_sessions`, with what it takes to claim each session."""
    _PAGE("limit", limit)
    now = client.now()
    before = instant_before(older_than, now)
    until = {FAILED: before}
    if include_stalled:
        until[ACTIVE] = min(before, now - client.settings.stalled_after_seconds)
    query = ("get_failed_sessions", client.sessions.name, include_stalled)
    # Of each status: where to go on; a status that is missing is read to its end. All pages have
    # the bounds of the first.
    begin = dict.fromkeys(until)
    if (position_before := cursors.decode(query, cursor)) is not None:
        begin = position_before["at"]
        until = {SessionStatus(name): bound for name, bound in position_before["until"].items()}
        before = until[FAILED]

    found: dict[SessionStatus, list[PipelineSession]] = {}
    more: dict[str, Any] = {}
    for status in until:
        if status in begin:
            found[status], more[status] = await client.sessions.page(
                status,
                index=PipelineSession.status_index,
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
                client.sessions.position(last, PipelineSession.status_index)
                if last
                else begin[status]
            )
        elif more[status]:
            position[status] = more[status]

    # An index that lags may show a session under both statuses; a transaction wants it once.
    ids = dict.fromkeys((session.session_id,) for session in chosen)
    read = await client.sessions.get_many([*ids])
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
    at = {"at": position, "until": until}
    return Page(sure, cursors.encode(query, at) if position else None)


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
