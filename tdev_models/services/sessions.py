"""Pipeline sessions: save, read, list, end for good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import decrypted_result, encrypt_fields, listed_result
from tdev_models.dynamodb.expressions import replace_fields, set_if_absent, set_to
from tdev_models.dynamodb.saves import save_once
from tdev_models.errors import (
    ConditionFailed,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    NotFound,
)
from tdev_models.metrics.automatic import session_saved
from tdev_models.models import PipelineSession
from tdev_models.models.attributes import ERROR_BYTES
from tdev_models.models.worker import WORKER_IDS
from tdev_models.results import Page, Session, SessionStatus
from tdev_models.services.execution_states import ERROR_FORMS
from tdev_models.services.usage import is_raised
from tdev_models.workers.bindings import after_beginnings, current_lease
from tdev_models.workers.budget import tried_anew
from tdev_models.workers.lease import claim_ended, due_with
from tdev_models.workers.leased_writes import leased_update, write_lock
from tdev_models.workers.liveness import revoke
from tdev_models.workers.users import check_user, is_of_user, visible_to

RULES = PipelineSession.rules()
_TRANSACTION = 100
_CANDIDATES = 100
# How far the clocks of two workers may be apart.
_CLOCKS_SECONDS = 3600

# The statuses from which each may be reached; the same again is no error.
_STATUSES_BEFORE: Mapping[str, tuple[SessionStatus, ...]] = {
    "ACTIVE": (SessionStatus.ACTIVE, SessionStatus.FAILED),
    "COMPLETED": (SessionStatus.ACTIVE, SessionStatus.COMPLETED),
    "FAILED": (SessionStatus.ACTIVE, SessionStatus.FAILED),
    "ABANDONED": (SessionStatus.ACTIVE, SessionStatus.FAILED, SessionStatus.ABANDONED),
}
_WITHOUT_FAILURE = (SessionStatus.ACTIVE, SessionStatus.COMPLETED)
# What no index holds of an ACTIVE session, because every agent changes it.
_PROGRESS = (
    *(PipelineSession.session_id, PipelineSession.expires_at),
    *(PipelineSession.progress, PipelineSession.current_agent, PipelineSession.last_updated),
)
# DynamoDB computes it from the item before the write, for the metrics.
_REMEMBER_STATUS = PipelineSession.previous_status.set(PipelineSession.status | "NONE")


def checked_session(data: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked fields of a session."""
    kept = PipelineSession.get_attributes()
    return validation.checked(data, more, RULES, "session_id", kept=kept)


async def save_pipeline_session(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> Session:
    """Create a session or change the given fields of one, and return it as it is now.

    One UpdateItem, or two where no status is given and the session is not ACTIVE; only the given
    fields change, `created_at` is set once, `last_updated` always.
    A new session is ACTIVE with progress 0 unless given otherwise; status ACTIVE or COMPLETED
    clears `failed_agent` and `error_message`; with `budget_usd` its resumes in vain are forgotten,
    so that recovery goes on with it. Inside `track_session` or `async with resume` the call carries
    the lease; there `progress` is how many of the pipeline's agents have ended, whatever is given,
    a status other than ACTIVE ends the session and the lease, and COMPLETED or FAILED clears what
    is not given of the last failure.
    Safe to call again with the same fields.

    Args:
        data: the fields, by name; `help(PipelineSession)` lists them with their limits. session_id
            is required. None means not given.
        more: the same as keywords.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value; nothing was sent.
        WrongUser: the session belongs to another user than the given one.
        InvalidTransition: the status may not become the given one, or the session has expired.
        LeaseHeld: another worker owns the session.
        LeaseLost: the lease that the call carries is over; nothing was changed.
        Conflict, Throttled, Unavailable: after all retries; safe to call again.
    """
    values = checked_session(data, more)
    session_id, status = values.pop("session_id"), values.get("status")
    user_id = values.get("user_id")
    validation.whole(0, len(client.settings.agents))("progress", values.get("progress", 0))
    values = await encrypt_fields(client, PipelineSession, (session_id,), values)
    if lease := current_lease(client, session_id):
        values.pop("progress", None)
        values.pop("status", None)
        ends = SessionStatus(status) if status not in (None, SessionStatus.ACTIVE) else None
        actions = replace_fields(PipelineSession, values)
        if is_raised(lease, values.get("budget_usd", lease.budget_usd)):
            actions += tried_anew()
        if ends in (SessionStatus.COMPLETED, SessionStatus.FAILED):
            actions += _forget_failure(values)
        session = await leased_update(client, lease, actions, ends=ends, user_id=user_id)
        return await decrypted_result(client, Session, session)

    condition: Condition = PipelineSession.lease_token.does_not_exist()
    condition &= _is_not_expired(client)
    if user_id is not None:
        condition &= is_of_user(user_id)
    if status is not None:
        condition &= PipelineSession.status.does_not_exist() | PipelineSession.status.is_in(
            *_STATUSES_BEFORE[status]
        )
    try:
        if status is None:
            session = await _change_fields(client, session_id, values, condition)
        else:
            actions = [*upsert_actions(client, values), due_with(client, status), _REMEMBER_STATUS]
            session = await save_once(
                client, client.sessions, session_id, actions=actions, condition=condition
            )
    except ConditionFailed as refused:
        stored = client.sessions.refused(refused.item)
        check_user(stored, user_id)
        if stored and stored.lease_token is not None:
            raise lease_held_error(client, stored) from None
        raise InvalidTransition(
            f"session {session_id}", stored.status if stored else "missing", str(status)
        ) from None
    session_saved(client, session, status)
    return await decrypted_result(client, Session, session)


async def _change_fields(
    client: Client, session_id: str, values: Mapping[str, Any], condition: Condition
) -> PipelineSession:
    """Change a session but for its status; a sign of life of one that is ACTIVE, or becomes so."""
    actions, status = upsert_actions(client, values), PipelineSession.status
    is_active: Condition = status.does_not_exist() | (status == SessionStatus.ACTIVE)
    try:
        due = due_with(client, SessionStatus.ACTIVE)
        return await save_once(
            client,
            client.sessions,
            session_id,
            actions=[*actions, due],
            condition=condition & is_active,
        )
    except ConditionFailed as refused:
        stored = client.sessions.refused(refused.item)
        if stored is None or stored.status == SessionStatus.ACTIVE:
            raise
    return await save_once(
        client, client.sessions, session_id, actions=actions, condition=condition
    )


def _is_not_expired(client: Client) -> Condition:
    expires_at = PipelineSession.expires_at
    live: Condition = expires_at.does_not_exist() | (expires_at > client.now())
    return live


def upsert_actions(client: Client, values: Mapping[str, Any]) -> list[Action]:
    """Return the actions that set fields of a session which may not exist yet."""
    now = client.now()
    defaults = {
        "status": SessionStatus.ACTIVE,
        "progress": 0,
        "created_at": now,
        "expires_at": client.expiry(now),
    }
    return [
        *replace_fields(PipelineSession, values),
        *(_forget_failure(values) if values.get("status") in _WITHOUT_FAILURE else ()),
        # What it was resumed in vain for want of money would have it given up now.
        *(tried_anew() if "budget_usd" in values else ()),
        set_to(PipelineSession.last_updated, now),
        *(
            set_if_absent(PipelineSession.get_attributes()[name], value)
            for name, value in defaults.items()
            if name not in values and value is not None
        ),
    ]


def _forget_failure(values: Mapping[str, Any]) -> list[Action]:
    """Return the actions that clear the last failure, but for the given fields."""
    names = {"failed_agent", *ERROR_FORMS} - values.keys()
    if not ERROR_FORMS.isdisjoint(values):
        names -= ERROR_FORMS  # setting the one removes the other
    return [PipelineSession.get_attributes()[name].remove() for name in sorted(names)]


def real_error(error: BaseException) -> BaseException:
    """Return what ended a block: of a group, the first error that is no cancellation."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [real_error(part) for part in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, Exception)), leaves[0])


def error_text(error: BaseException) -> str:
    """Return an error's type and text, shortened to what `error_message` may hold."""
    error = real_error(error)
    try:
        text = str(error)
    except Exception:  # of a class whose own __str__ is broken; Python's tracebacks say it so, too
        text = "<exception str() failed>"
    return shortened(f"{type(error).__name__}: {text}")


def shortened(text: str) -> str:
    """Return as much of a text as `error_message` may hold."""
    return text.encode(errors="replace")[:ERROR_BYTES].decode(errors="ignore")


def lease_held_error(client: Client, session: PipelineSession) -> LeaseHeld:
    """Return the error of a call on a session that someone owns."""
    when = f"once that worker's lease of {client.settings.lease_seconds:g} s has ended"
    if session.lease_expires is not None:
        left = session.lease_expires - client.now()
        when = f"in {left:.0f} s, unless it is entered" if left > 0 else "now: nobody entered it"
    return LeaseHeld(
        f"session {session.session_id} is owned by {session.lease_owner} (claim {session.fence}); "
        f"it can be taken over {when}; other calls belong inside its track_session or resume"
    )


async def get_pipeline_session(
    client: Client, session_id: str, *, user_id: str | None = None
) -> Session:
    """Return one session, read consistently.

    Args:
        session_id: the session.
        user_id: only if it is this user's.

    Raises:
        NotFound: there is none, or it is not the given user's.
        InvalidRequest: an id cannot be a key.
        PayloadDamaged: it cannot be read.
    """
    return await decrypted_result(client, Session, await read_session(client, session_id, user_id))


async def read_session(
    client: Client, session_id: str, user_id: str | None = None
) -> PipelineSession:
    """Return one session with its lease, read consistently, or raise NotFound."""
    RULES["session_id"]("session_id", session_id)
    if user_id is not None:
        RULES["user_id"]("user_id", user_id)
    await after_beginnings(client, current_lease(client, session_id), writes=False)
    return visible_to(await client.sessions.get(session_id), session_id, user_id)


async def list_pipeline_sessions(
    client: Client,
    *,
    status: str | None = None,
    user_id: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
    created_after: Any = None,
    created_before: Any = None,
    progress: bool = True,
) -> Page[Session]:
    """Return a page of the sessions of one status or of one user, newest first.

    One Query on status-index (by `due_at`: of what has ended, its end) or user-index (by
    `created_at`), eventually consistent: a change shows after a moment. `progress`, `current_agent`
    and `last_updated` are those of the ACTIVE sessions alone, read consistently by one
    TransactGetItems for each 100; of others they are None. Without `metadata` and lease. A session
    that cannot be read is logged and left out. With `created_before` a Query reads at least 100;
    with either bound others follow until the page is full.

    Args:
        status: ACTIVE, COMPLETED, FAILED or ABANDONED; or else
        user_id: whose sessions.
        limit: 1..1000 sessions.
        cursor: of the page before.
        created_after: only those created at this instant or later; epoch seconds, datetime (naive:
            local time) or ISO text.
        created_before: only those created before this instant.
        progress: False saves the TransactGetItems, two read units a session.

    Raises:
        InvalidRequest: both or neither given, a wrong value, or a cursor of another query.
    """
    if (status is None) == (user_id is None):
        raise InvalidRequest("status", "give either status or user_id")
    validation.LIMIT("limit", limit)
    index, value = (
        (PipelineSession.status_index, RULES["status"]("status", status))
        if status is not None
        else (PipelineSession.user_index, RULES["user_id"]("user_id", user_id))
    )
    validation.flag("progress", progress)
    first, end = (
        None if moment is None else validation.instant(name, moment)
        for name, moment in (("created_after", created_after), ("created_before", created_before))
    )
    table = client.sessions.name
    query = ("list_pipeline_sessions", table, index.Meta.index_name, value, first, end)
    begin = cursors.decode(query, cursor, client.sessions.is_start(value, index))
    sessions, last = await _created_within(client, index, value, limit, begin, (first, end))
    if progress:
        await _fill_in_progress(client, sessions)
    return Page(
        (listed_result(Session, session) for session in sessions),
        cursors.encode(query, last) if last else None,
    )


async def _created_within(
    client: Client,
    index: Index[Any],
    value: str,
    limit: int,
    start: Mapping[str, Any] | None,
    bounds: tuple[float | None, float | None],
) -> tuple[list[PipelineSession], Mapping[str, Any] | None]:
    """Return a page of an index, newest first, of sessions created within bounds."""
    first, end = bounds
    found: list[PipelineSession] = []
    while True:
        page, start = await client.sessions.page(
            value,
            index=index,
            range_condition=_not_before(index, first),
            limit=limit if end is None else max(limit, _CANDIDATES),
            newest_first=True,
            start=start,
            unreadable=[],
        )
        if bounds == (None, None):
            return page, start
        for session in page:
            if (first or 0) <= (session.created_at or 0) < (math.inf if end is None else end):
                found.append(session)
                if len(found) == limit:
                    more = start is not None or session is not page[-1]
                    return found, client.sessions.position(session, index) if more else None
        if start is None:
            return found, None


def _not_before(index: Index[Any], first: float | None) -> Condition | None:
    """Return the condition on an index's sort key of sessions created at a moment or later."""
    if first is None:
        return None
    if index is PipelineSession.user_index:
        return PipelineSession.created_at >= first
    # Nobody looks at a session before it is created, but by a wrong clock.
    return PipelineSession.due_at >= first - _CLOCKS_SECONDS


async def _fill_in_progress(client: Client, sessions: Sequence[PipelineSession]) -> None:
    """Give the ACTIVE ones of a list how far they are."""
    active = {one.session_id: one for one in sessions if one.status == SessionStatus.ACTIVE}
    ids = list(active)
    for first in range(0, len(ids), _TRANSACTION):
        keys = [(session_id,) for session_id in ids[first : first + _TRANSACTION]]
        for stored in await client.sessions.get_many(keys, unreadable=[], only=_PROGRESS):
            if stored is not None:
                active[stored.session_id].attribute_values.update(stored.attribute_values)


async def abandon_session(client: Client, session_id: str, reason: str) -> Session:
    """End a session for good, whoever owns it, and return it.

    One UpdateItem, and one to a worker that runs it: that cancels the task with its next heartbeat,
    within 5 s unless set otherwise; else its next write raises LeaseLost. `reason` becomes
    `error_message`. Safe to call again.

    Raises:
        NotFound: there is no such session.
        InvalidTransition: it is COMPLETED, or has expired.
    """
    RULES["session_id"]("session_id", session_id)
    if not RULES["error_message"]("reason", reason):
        raise InvalidRequest("reason", "must not be empty: the person on call will read it")
    condition: Condition = PipelineSession.status.is_in(*_STATUSES_BEFORE["ABANDONED"])
    condition &= _is_not_expired(client)
    if lease := current_lease(client, session_id):
        await after_beginnings(client, lease)
    try:
        async with write_lock(client, lease):
            session = await abandon(client, session_id, reason, condition)
            if lease is not None:
                lease.ended = SessionStatus.ABANDONED
    except ConditionFailed as refused:
        stored = client.sessions.refused(refused.item)
        if stored is None:
            raise NotFound(f"there is no session {session_id}") from None
        raise InvalidTransition(f"session {session_id}", stored.status, "ABANDONED") from None
    # ABANDONED: by a call of which nobody knows whether it came to tell the worker.
    if lease is None and session.previous_status != SessionStatus.FAILED and session.lease_owner:
        worker_id = f"{WORKER_IDS}{session.lease_owner}"
        await revoke(client, worker_id, session_id, session.fence or 0)
    return await decrypted_result(client, Session, session)


async def abandon(
    client: Client, session_id: str, reason: str, condition: Condition
) -> PipelineSession:
    """End a session for good if a condition holds, else raise ConditionFailed."""
    message = await encrypt_fields(
        client, PipelineSession, (session_id,), {"error_message": reason}
    )
    actions = [
        set_to(PipelineSession.status, SessionStatus.ABANDONED),
        *replace_fields(PipelineSession, message),
        set_to(PipelineSession.last_updated, client.now()),
        *claim_ended(),
        due_with(client, SessionStatus.ABANDONED),
        _REMEMBER_STATUS,
    ]
    session = await save_once(
        client, client.sessions, session_id, actions=actions, condition=condition
    )
    session_saved(client, session, SessionStatus.ABANDONED)
    return session
