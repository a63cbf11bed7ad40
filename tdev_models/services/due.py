"""Which sessions are due: FAILED ones after their backoff, ACTIVE ones that nobody seems to run.

Sessions of workers whose lease has ended are found by their worker, the others by `due_at`: neither
those in backoff nor live ones are read. An index only nominates: who decides reads the session
consistently and asks `is_due`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.errors import InvalidRequest, shown
from tdev_models.models import PipelineSession
from tdev_models.models.worker import WORKER
from tdev_models.results import SessionStatus
from tdev_models.services.gone_workers import is_start_of_gone, of_gone_workers
from tdev_models.services.signs_of_life import without_signs_of_life
from tdev_models.workers.liveness import is_stalled

_EARLIEST = 1e9

FAILED, ACTIVE = SessionStatus.FAILED, SessionStatus.ACTIVE

Starts = Mapping[str, Mapping[str, Any] | None]
"""Of each status that is not read to its end, and of gone workers (WORKER): where it goes on."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which sessions are asked for; the same on all pages.

    Attributes:
        due_by: `due_at` at the latest.
        updated_before: `last_updated` before this moment; None for any.
    """

    due_by: float
    updated_before: float | None

    @classmethod
    def at(cls, now: float, older_than: Any) -> Bounds:
        """Return the bounds of what is due now, and was updated last before a moment or age.

        Raises:
            InvalidRequest: older_than is no usable moment or age.
        """
        return cls(now, None if older_than is None else _instant_before(older_than, now))


def are_starts(client: Client, begun: Starts, value: Any) -> bool:
    """Return whether a value of a cursor says where a search goes on that began at `begun`."""

    def is_start(status: str, start: Any) -> bool:
        if status == WORKER:
            return is_start_of_gone(client, start)
        return client.sessions.is_start(status, PipelineSession.status_index)(start)

    return (
        isinstance(value, dict)
        and len(value) > 0
        and value.keys() <= begun.keys()
        and all(start is None or is_start(status, start) for status, start in value.items())
    )


def are_bounds(value: Any) -> bool:
    """Return whether a value of a cursor is that of `Bounds`."""
    shape = {
        "due_by": cursors.is_number,
        "updated_before": lambda moment: moment is None or cursors.is_number(moment),
    }
    return cursors.has_shape(value, shape)


def _instant_before(older_than: Any, now: float) -> float:
    if isinstance(older_than, timedelta):
        return now - older_than.total_seconds()
    instant = validation.instant("older_than", older_than)
    if instant < _EARLIEST:
        raise InvalidRequest(
            "older_than",
            f"{shown(older_than)} is a moment in 1970..2001; for an age pass a timedelta",
        )
    return instant


async def is_due(
    client: Client,
    session: PipelineSession,
    bounds: Bounds,
    known: dict[str, bool] | None = None,
) -> bool:
    """Return whether a session, as it was read consistently, may be resumed."""
    if bounds.updated_before is not None and (session.last_updated or 0) >= bounds.updated_before:
        return False
    if session.status == FAILED:
        return bool((session.due_at or 0) <= client.now())
    return await is_stalled(client, session, known)


async def candidates(
    client: Client, bounds: Bounds, starts: Starts, limit: int, unreadable: list[str]
) -> tuple[list[PipelineSession], Starts]:
    """Return what the indexes show as due, and where the next page begins.

    First, where they are asked for, pages of the sessions of gone workers; then by `due_at`, by one
    Query for each status. What has expired, or cannot be read, is left out.
    """
    if WORKER in starts:
        sessions, after = await of_gone_workers(client, limit, starts[WORKER], unreadable)
        others = {status: start for status, start in starts.items() if status != WORKER}
        return sessions, others if after is None else {**others, WORKER: after}
    found: dict[str, tuple[list[PipelineSession], Any]] = {}
    for status, start in starts.items():
        found[status] = await client.sessions.page(
            status,
            index=PipelineSession.status_index,
            range_condition=PipelineSession.due_at <= bounds.due_by,
            limit=limit,
            start=start,
            unreadable=unreadable,
        )
    by_due = heapq.merge(*(sessions for sessions, _ in found.values()), key=_due_at)
    chosen = list(by_due)[:limit]
    following: dict[str, Mapping[str, Any] | None] = {}
    for status, (sessions, last_key) in found.items():
        taken = [session for session in chosen if session.status == status]
        if len(taken) == len(sessions):
            if last_key is not None:
                following[status] = last_key
        elif taken:
            following[status] = client.sessions.position(taken[-1], PipelineSession.status_index)
        else:
            following[status] = starts[status]
    return chosen, following


async def due_sessions(
    client: Client, bounds: Bounds, starts: Starts, limit: int
) -> tuple[list[PipelineSession], Starts]:
    """Return due sessions as they are, longest due first, and where the next page begins.

    Fewer than `limit` only at the end.
    """
    found: list[PipelineSession] = []
    unreadable: list[str] = []
    while starts and len(found) < limit:
        chosen, starts = await candidates(client, bounds, starts, limit - len(found), unreadable)
        found += await _still_due(client, bounds, chosen, unreadable)
    return sorted(found, key=_due_at), starts


async def _still_due(
    client: Client, bounds: Bounds, chosen: Sequence[PipelineSession], unreadable: list[str]
) -> list[PipelineSession]:
    # An index that lags may show a session under both statuses; a transaction wants it once.
    keys = dict.fromkeys((session.session_id,) for session in chosen)
    stored = await client.sessions.get_many([*keys], unreadable=unreadable)
    known: dict[str, bool] = {}
    due = [one for one in stored if one and await is_due(client, one, bounds, known)]
    return await without_signs_of_life(client, due)


def _due_at(session: PipelineSession) -> float:
    return session.due_at or 0
