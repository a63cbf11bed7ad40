"""Writes under a lease: they change nothing once it is lost."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pynamodb.expressions.update import Action

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import is_as_read, set_or_remove, set_to
from tdev_models.errors import ConditionFailed, Conflict, LeaseLost, TdevError
from tdev_models.metrics.automatic import session_ended
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.retry import OWNER_LONGEST_PAUSE_SECONDS, Backoff, retry
from tdev_models.workers.bindings import MIXED, after_beginnings
from tdev_models.workers.budget import progress_made
from tdev_models.workers.lease import Lease, claim_ended, lease_lost_error
from tdev_models.workers.users import check_user, is_of_user

T = TypeVar("T")


def _goes_on(lease: Lease, write: str, due_at: float) -> list[Action]:
    """Return the actions of each write of a session that goes on."""
    actions = [
        set_to(PipelineSession.lease_write, write),
        # When somebody may take it over because an agent hangs, and when to look.
        set_or_remove(PipelineSession.deadline, lease.deadline),
    ]
    if due_at != lease.due_at:
        actions.append(set_to(PipelineSession.due_at, due_at))
    return actions


async def leased_update(
    client: Client,
    lease: Lease,
    actions: Sequence[Action],
    *,
    ends: SessionStatus | None = None,
    retry_seconds: float | None = None,
    user_id: str | None = None,
) -> PipelineSession:
    """Change the session that a lease owns, and with `ends` end it, or hand it back (ACTIVE).

    Tried until it is stored or refused, for `retry_seconds` where they are given.

    Raises:
        LeaseLost: the session is no longer this claim's; nothing was changed.
        WrongUser: it belongs to another user than `user_id`; nothing was changed.
    """
    if retry_seconds is None:
        await after_beginnings(client, lease)
    now, writes = client.now(), set[str]()
    changes = [set_to(PipelineSession.last_updated, now), *actions]
    if ends is not None:
        changes += [set_to(PipelineSession.status, ends), *claim_ended()]
        pause = lease.retry_after_seconds if ends == SessionStatus.FAILED else 0.0
        changes.append(set_to(PipelineSession.due_at, now + pause))
    if ends == SessionStatus.ACTIVE:
        changes.append(PipelineSession.lease_owner.remove())

    async def attempt() -> PipelineSession:
        async with write_lock(client, lease):
            lease.check()
            write = uuid.uuid4().hex[:12]
            writes.add(write)
            goes_on = _goes_on(lease, write, lease.due_next(client))
            condition = lease.condition_as_written
            if user_id is not None:
                condition &= is_of_user(user_id)
            try:
                session = await client.sessions.update(
                    lease.session_id,
                    actions=[*changes, *([] if ends else goes_on)],
                    condition=condition,
                    retry_seconds=0,
                )
            except ConditionFailed as refused:
                stored = client.sessions.load(refused.item)
                if stored is None or not (
                    _ended_by(stored, lease, ends, now) or stored.lease_write in writes
                ):
                    raise _refusal(lease, stored, user_id) from None
                session = stored  # written by this very call, whose first reply was lost
            lease.last_write, lease.due_at = session.lease_write or "", session.due_at or 0
            lease.ended, lease.budget_usd = ends, session.budget_usd
            return session

    session = await _until_stored(client, lease, attempt, retry_seconds)
    if ends not in (None, SessionStatus.ACTIVE):
        session_ended(client, session, ends)
    return session


async def leased_execution(
    client: Client,
    lease: Lease,
    agent_name: str,
    *parts: Mapping[str, Any],
    ended: bool | None,
    retry_seconds: float | None = None,
    adds: Sequence[Action] = (),
    says_owned: bool = False,
) -> None:
    """Change an agent's execution, and with it the session that a lease owns, all or nothing.

    `current_agent` becomes the agent; `progress` counts it, if it is one of the pipeline's, once it
    has ended, and no more once it begins again. `adds` are further actions on the session. Tried
    until it is stored or refused, for `retry_seconds` where they are given.

    With `says_owned` each try is a request of its own, which succeeds only if the session is this
    claim's then. Else DynamoDB repeats the success of a try whose reply was lost, also after a
    takeover. A try that was carried out makes the next one fail with ConditionFailed, whose item
    the caller knows as its own.

    Raises:
        LeaseLost: the session is no longer this claim's; nothing was changed.
        ConditionFailed: the execution's condition was not met; nothing was changed.
    """
    request: dict[str, Any] = {}
    token, now, due_at, agents = "", 0.0, 0.0, set[str]()
    deadline: float | None = None

    async def attempt() -> None:
        nonlocal request, token, now, due_at, agents, deadline
        async with write_lock(client, lease):
            lease.check()
            stale = client.now() > now + client.settings.lease_seconds / 3
            state = lease.ended_after(agent_name, ended), lease.deadline
            if says_owned or stale or (agents, deadline) != state:
                # Sent again as it was, DynamoDB knows it by its token. But it must not take back
                # what another agent's end has written since.
                token, now = uuid.uuid4().hex, client.now()
                (agents, deadline), due_at = state, lease.due_next(client)
                request = client.sessions.requests.update_part(
                    lease.session_id,
                    actions=[
                        *_goes_on(lease, token, due_at),
                        set_to(PipelineSession.last_updated, now),
                        set_to(PipelineSession.current_agent, agent_name),
                        set_to(
                            PipelineSession.progress,
                            len(agents.intersection(client.settings.agents)),
                        ),
                        *(progress_made() if ended else ()),
                        *adds,
                    ],
                    condition=lease.condition,
                )
            try:
                await client.sender.transact_write([request, *parts], token, retry_seconds=0)
            except ConditionFailed as refused:
                if refused.position == 0:
                    raise lease_lost_error(lease) from None
                raise
            lease.last_write, lease.due_at = token, due_at
            lease.ended_agents, lease.got_on = agents, lease.got_on or bool(ended)

    await _until_stored(client, lease, attempt, retry_seconds)


async def execution_after_end(
    client: Client,
    lease: Lease,
    parts: Sequence[Mapping[str, Any]],
    retry_seconds: float | None,
    adds: Sequence[Action],
) -> None:
    """Change the execution of an agent whose session this claim has ended meanwhile.

    Of the session only `last_updated`, by which a claim that has not read it is refused, and `adds`
    change. Tried as long as other writes of an owner.

    Raises:
        LeaseLost: somebody has claimed the session since; nothing was changed.
        ConditionFailed: the execution's condition was not met; nothing was changed.
    """
    fence, token = PipelineSession.fence, uuid.uuid4().hex
    session = client.sessions.requests.update_part(
        lease.session_id,
        actions=[set_to(PipelineSession.last_updated, client.now()), *adds],
        condition=is_as_read(fence, lease.fence),
    )

    async def attempt() -> None:
        try:
            await client.sender.transact_write([session, *parts], token, retry_seconds=0)
        except ConditionFailed as refused:
            if refused.position == 0:
                raise lease_lost_error(lease) from None
            raise

    await _until_stored(client, lease, attempt, retry_seconds)


async def _until_stored(
    client: Client,
    lease: Lease,
    attempt: Callable[[], Awaitable[T]],
    retry_seconds: float | None,
) -> T:
    """Try a write of an owner until it is stored or refused, or its budget is spent.

    Between two attempts the write lock is free: other agents' writes go on, however long the
    pauses are.
    """
    budget = client.settings.owner_retry_seconds if retry_seconds is None else retry_seconds
    backoff = Backoff(budget, longest_pause_seconds=OWNER_LONGEST_PAUSE_SECONDS)
    try:
        return await client.shielded(retry(attempt, client.sleep, backoff), retry_seconds)
    except LeaseLost as refused:
        lease.refused = refused
        raise


@asynccontextmanager
async def write_lock(client: Client, lease: Lease | None) -> AsyncIterator[None]:
    """Keep the other writes of this process out: they would conflict."""
    if lease is None:
        yield
        return
    if not client.in_event_loop and lease.write_lock_thread == threading.get_ident():
        # Of a task in this thread's event loop, which cannot go on before this call returns.
        raise RuntimeError(MIXED)
    lock = lease.write_lock  # it may have another one, once its block was left
    await client.acquire(lock, lease.write_lock_waiters)
    lease.write_lock_thread = threading.get_ident()
    try:
        yield
    finally:
        lease.write_lock_thread = 0
        lock.release()


def _refusal(lease: Lease, stored: PipelineSession | None, user_id: str | None = None) -> TdevError:
    """Return why a write under a lease was refused, as the stored session shows.

    Where it is still this claim's, another write of it was in between (of a forked child, or one
    whose reply was lost): the next try knows of it.
    """
    if stored is None or not lease.owns(stored):
        return lease_lost_error(lease)
    check_user(stored, user_id)
    lease.last_write = stored.lease_write or ""
    return Conflict(f"session {lease.session_id} was written under the same claim in between")


def _ended_by(
    stored: PipelineSession, lease: Lease, ends: SessionStatus | None, now: float
) -> bool:
    """Return whether a session was ended by this claim's own write, which was made at `now`."""
    return (stored.status, stored.fence) == (ends, lease.fence) and (
        # Any caller may have abandoned it; one that is ACTIVE was not ended.
        ends not in (SessionStatus.ABANDONED, SessionStatus.ACTIVE) or stored.last_updated == now
    )
