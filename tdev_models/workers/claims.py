"""Claim a session, as it was read."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from pynamodb.expressions.condition import Condition

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import (
    replace_fields,
    set_if_absent,
    set_or_remove,
    set_to,
)
from tdev_models.errors import (
    ConditionFailed,
    ConfigurationError,
    InvalidRequest,
    LeaseLost,
    expired_error,
)
from tdev_models.metrics.automatic import session_claimed
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.workers.bindings import stop_around
from tdev_models.workers.budget import resume_counted
from tdev_models.workers.lease import Lease, is_hung
from tdev_models.workers.leased_writes import leased_update
from tdev_models.workers.liveness import declare_dead, is_stalled, revoke
from tdev_models.workers.presence import Presence, owned_by


def adopts_unclaimed(seen: PipelineSession) -> bool:
    """Return whether a claim of a session adopts what was done without one: the first does."""
    return bool(seen.adopts) or (seen.status is not None and seen.fence is None)


async def claim_session(
    client: Client,
    seen: PipelineSession,
    values: Mapping[str, Any],
    *,
    resumed: bool,
    afresh: bool = False,
    to_be_entered: bool = False,
) -> Lease | PipelineSession:
    """Claim a session as it was read; return the lease, or the session that was in the way.

    A session that was not there is made, with the checked fields. Whoever ran it learns that it is
    taken. A claim of which nobody knows the outcome is found out about, and handed back, by the
    worker's own thread: a worker that lives would hold it for ever.

    Args:
        client: the client.
        seen: the session as it was read.
        values: fields to set.
        resumed: whether it counts as a resume.
        afresh: whether that is the first one of a new budget.
        to_be_entered: whether the claim runs out by itself, until its block is entered.

    Raises:
        InvalidTransition: the session has expired.
        TdevError: the request failed, or the worker could not be registered.
    """
    if is_expired(client, seen):
        raise expired_error(f"session {seen.session_id}")
    presence = Presence.of(client.settings)
    await presence.join(client)
    try:
        if presence.draining:
            stop_around()
            await client.interrupt()
        claim = _Claim(client, presence, seen, values, resumed, afresh, to_be_entered)
        try:
            claimed = await claim.send(client)
            if not isinstance(claimed, Lease):
                return claimed
        except (ConfigurationError, InvalidRequest):
            raise  # refused
        except BaseException:
            presence.settle(claim.settle)
            raise
        presence.hold(claimed, claim.worker_id)
        session_claimed(client, seen, values.get("pipeline_type"), resumed=resumed)
        return claimed
    finally:
        presence.leave()


class _Claim:
    """One claim, which may be sent any number of times."""

    def __init__(
        self,
        client: Client,
        presence: Presence,
        seen: PipelineSession,
        values: Mapping[str, Any],
        resumed: bool,
        afresh: bool,
        to_be_entered: bool,
    ) -> None:
        now, settings = client.now(), client.settings
        self._seen, self._token = seen, uuid.uuid4().hex
        self.worker_id = presence.worker_id
        self._fence = int(seen.fence or 0) + 1
        self._expires_at, self._adopts = expiry(client, seen), adopts_unclaimed(seen)
        self._lease_expires = round(now + settings.lease_seconds, 6) if to_be_entered else None
        self._due_at = self._lease_expires or round(now + settings.stalled_after_seconds, 6)
        self._actions = [
            set_to(PipelineSession.status, SessionStatus.ACTIVE),
            set_to(PipelineSession.fence, self._fence),
            set_to(PipelineSession.lease_token, self._token),
            set_to(PipelineSession.lease_write, self._token),
            *owned_by(self.worker_id),
            set_or_remove(PipelineSession.release, settings.release),
            set_to(PipelineSession.last_updated, now),
            set_if_absent(PipelineSession.created_at, now),
            *([] if "progress" in values else [set_if_absent(PipelineSession.progress, 0)]),
            *replace_fields(PipelineSession, values),
            PipelineSession.deadline.remove(),
            set_or_remove(PipelineSession.lease_expires, self._lease_expires),
            set_to(PipelineSession.due_at, self._due_at),
        ]
        if self._expires_at is not None:
            self._actions.append(set_if_absent(PipelineSession.expires_at, self._expires_at))
        if self._adopts:
            self._actions.append(set_to(PipelineSession.adopts, True))
        if resumed:
            self._actions += resume_counted(seen, afresh=afresh)
        self._condition = unchanged(seen)

    async def send(
        self, client: Client, retry_seconds: float | None = None
    ) -> Lease | PipelineSession:
        """Return the lease, or the session that was in the way; who ran it learns of it."""
        seen = self._seen
        try:
            claimed = await client.sessions.update(
                seen.session_id,
                actions=self._actions,
                condition=self._condition,
                retry_seconds=retry_seconds,
            )
        except ConditionFailed as refused:
            stored = client.sessions.load(refused.item)
            if stored is None or stored.lease_token != self._token:
                return stored or seen
            claimed = stored  # by this very claim, whose first reply was lost
        if seen.status == SessionStatus.ACTIVE and seen.lease_token is not None:
            await revoke(client, seen.worker_id, seen.session_id, seen.fence or 0)
        return Lease(
            seen.session_id,
            self._fence,
            self._token,
            self._due_at,
            self._token,
            self._lease_expires,
            self._expires_at,
            self._adopts,
            claimed.restarts or (),
            took_over=seen.status is not None,
            cost_usd=claimed.cost_usd or 0.0,
            budget_usd=claimed.budget_usd,
        )

    async def settle(self, client: Client) -> None:
        """Find out whether the claim has happened, and hand the session back if so."""
        claimed = await self.send(client, retry_seconds=0)
        if isinstance(claimed, Lease):
            await hand_back(client, claimed)


async def hand_back(client: Client, lease: Lease) -> None:
    """Hand a session back, if it is still the lease's; tried once.

    By the heartbeat's thread, which waits for nobody: what outlived the session's block may hold
    the write lock in an event loop that is blocked, or was stopped, and the worker would die of it.
    """
    lease.write_lock = threading.Lock()
    try:
        await leased_update(client, lease, [], ends=SessionStatus.ACTIVE, retry_seconds=0)
    except LeaseLost as lost:
        lease.lose(lost)


async def enter_claim(client: Client, lease: Lease) -> None:
    """Let a claim that would run out by itself last as long as its worker lives.

    Raises:
        LeaseLost: it has run out, and was taken over.
    """
    presence = Presence.of(client.settings)
    await presence.join(client)  # it may have ended since, or have another id
    try:
        worker_id = presence.worker_id
        actions = [PipelineSession.lease_expires.remove(), *owned_by(worker_id)]
        await leased_update(client, lease, actions)
        lease.lease_expires = None
        presence.hold(lease, worker_id)
    finally:
        presence.leave()


async def may_take_over(client: Client, seen: PipelineSession, *, from_start: bool = False) -> bool:
    """Return whether nobody runs a session that was claimed; its worker is then declared dead.

    Not while this process could not reach the store itself: then all leases seem to be over; nor,
    `from_start`, in the first lease of the process.
    """
    if not await is_stalled(client, seen):
        return False
    if (
        seen.worker_id is None
        or seen.lease_expires is not None
        or is_hung(seen.deadline, client.now())
    ):
        return True
    presence = Presence.of(client.settings)
    calm_seconds = partial(presence.calm_seconds, client, from_start=from_start)
    return await declare_dead(client, seen.worker_id, calm_seconds)


def expiry(client: Client, session: PipelineSession) -> float | None:
    """Return when a session expires, counted from its creation."""
    kept: float | None = session.expires_at
    return kept or client.expiry(session.created_at or client.now())


def is_expired(client: Client, session: PipelineSession) -> bool:
    """Return whether a session's time is over, be it that retention was set after its creation."""
    expires_at = expiry(client, session)
    return expires_at is not None and expires_at <= client.now()


def unchanged(seen: PipelineSession) -> Condition:
    """Return the condition that a session is as it was read: nobody has written it since."""
    same: Condition = seen.is_as_read(PipelineSession.status)
    same &= seen.is_as_read(PipelineSession.fence)
    if seen.status != SessionStatus.ACTIVE or seen.lease_token is None:
        # An agent of its last owner may end after it, and is to be read, too.
        same &= seen.is_as_read(PipelineSession.last_updated)
        return same
    # What its owner has ended meanwhile is to be read; its worker may have come back.
    for attribute in (PipelineSession.lease_write, PipelineSession.worker_id):
        same &= seen.is_as_read(attribute)
    same &= seen.is_as_read(PipelineSession.lease_expires)
    return same
