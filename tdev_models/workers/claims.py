"""Claim a session, as it was read."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pynamodb.expressions.condition import Condition

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import set_fields, set_if_absent, set_to
from tdev_models.errors import ConditionFailed, expired_error
from tdev_models.metrics.automatic import session_claimed
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.workers.budget import resume_counted
from tdev_models.workers.lease import Lease, is_hung, worker_name
from tdev_models.workers.users import is_of_user


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
) -> Lease | PipelineSession:
    """Claim a session as it was read; return the lease, or the session that was in the way.

    A session that was not there is made, with the checked fields. `resumed` counts it as a resume,
    `afresh` as the first one of a new budget.

    Raises:
        InvalidTransition: the session has expired.
        TdevError: the request failed; the claim may have happened and will run out.
    """
    if is_expired(client, seen):
        raise expired_error(f"session {seen.session_id}")
    token, now = uuid.uuid4().hex, client.now()
    lease_expires = round(now + client.settings.lease_seconds, 6)
    due_at = now + client.settings.stalled_after_seconds
    expires_at = expiry(client, seen)
    fence = int(seen.fence or 0) + 1
    actions = [
        set_to(PipelineSession.status, SessionStatus.ACTIVE),
        set_to(PipelineSession.fence, fence),
        set_to(PipelineSession.lease_token, token),
        set_to(PipelineSession.lease_owner, worker_name()),
        set_to(PipelineSession.lease_expires, lease_expires),
        set_to(PipelineSession.last_updated, now),
        set_if_absent(PipelineSession.created_at, now),
        set_if_absent(PipelineSession.progress, 0),
        *set_fields(PipelineSession, values),
        PipelineSession.deadline.remove(),
        set_to(PipelineSession.due_at, due_at),
    ]
    if expires_at is not None:
        actions.append(set_if_absent(PipelineSession.expires_at, expires_at))
    adopts = adopts_unclaimed(seen)
    if adopts:
        actions.append(set_to(PipelineSession.adopts, True))
    if resumed:
        actions += resume_counted(seen, afresh=afresh)
    condition = unchanged(seen, now)
    if "user_id" in values:
        condition &= is_of_user(values["user_id"])
    try:
        claimed = await client.sessions.update(
            seen.session_id, actions=actions, condition=condition
        )
    except ConditionFailed as refused:
        stored = client.sessions.load(refused.item)
        if stored is None or stored.lease_token != token:
            return stored or seen
        claimed = stored  # by this very claim, whose first reply was lost
    session_claimed(client, seen, values.get("pipeline_type"), resumed=resumed)
    return Lease(
        seen.session_id,
        fence,
        token,
        due_at,
        lease_expires,
        expires_at,
        adopts,
        restarts=claimed.restarts or (),
        took_over=seen.status is not None,
        cost_usd=claimed.cost_usd or 0.0,
        budget_usd=claimed.budget_usd,
    )


def expiry(client: Client, session: PipelineSession) -> float | None:
    """Return when a session expires, counted from its creation."""
    kept: float | None = session.expires_at
    return kept or client.expiry(session.created_at or client.now())


def is_expired(client: Client, session: PipelineSession) -> bool:
    """Return whether a session's time is over, be it that retention was set after its creation."""
    expires_at = expiry(client, session)
    return expires_at is not None and expires_at <= client.now()


def unchanged(seen: PipelineSession, now: float) -> Condition:
    """Return the condition that nobody claimed, ended or refreshed a session since it was read.

    The heartbeats of one whose agent hangs do not count.
    """
    same: Condition = seen.is_as_read(PipelineSession.status)
    same &= seen.is_as_read(PipelineSession.fence)
    if seen.status != SessionStatus.ACTIVE:
        return same
    if is_hung(seen.deadline, now):
        same &= seen.is_as_read(PipelineSession.deadline)
    elif seen.lease_token is not None:  # a heartbeat may have come in between
        same &= seen.is_as_read(PipelineSession.lease_expires)
    else:
        same &= seen.is_as_read(PipelineSession.last_updated)
    return same
