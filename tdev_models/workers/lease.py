"""Who owns a session, and which calls act under that ownership.

Two workers and one lease in time::

    A  claim(fence 1, token a) .. heartbeat .. frozen ...................... write: refused
    B                                      lease runs out   claim(fence 2, token b) .. write

Clocks only say when B may try to claim. The condition of each write decides: a claim requires the
session as it was read, every write of an owner requires its own fence and token.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import is_as_read, set_fields, set_if_absent, set_to
from tdev_models.errors import ConditionFailed, LeaseLost, expired_error
from tdev_models.forks import after_fork_in_child
from tdev_models.metrics.automatic import session_claimed
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.workers.budget import resume_counted
from tdev_models.workers.users import is_of_user


class Block(Enum):
    """What became of an agent's block."""

    RUNS = "is running"
    ENDED = "has ended"
    RAISED = "has raised"
    PASSED_OVER = "has failed, and the session went on"


@dataclass(slots=True)
class Lease:
    """One claim of one session by this process.

    Attributes:
        fence: the number of this claim; it only rises.
        token: the secret of this claim.
        lease_expires: when it runs out, as this claim last wrote it.
        adopts: what was done without a claim still counts, and is to be adopted.
        start_agent: the first of the nine agents that had to run when the session was claimed.
        executions: by agent, what former claims left.
        ended_agents: the agents that have ended, which `progress` counts.
        outputs: what is known of their outputs.
        failures: by critical agent, why it failed; without those tried again with success.
        raised: the errors that ended agents, each with its agent, to name the one that failed.
        reason: why the session is to end as FAILED though no error leaves its block.
        ended: how the session was ended under this lease, ACTIVE where it was handed back; None
            while it goes on.
        process: the process whose block it is; forked children write under the lease, too.
        due_at: the session's, which heartbeats move while it goes on.
        retry_after_seconds: how long `recover_sessions` leaves it alone after a failure.
        blocks: what became of each agent's last block under this lease.
        deadlines: of running agents with a timeout, by name: when each counts as hung.
        took_over: other claims, or calls without one, may have left executions.
        cost_usd: what all agents have cost, as far as this claim knows.
        budget_usd: what they may cost; None is no limit.
    """

    session_id: str
    fence: int
    token: str = field(repr=False)
    due_at: float
    lease_expires: float | None
    expires_at: float | None = None
    adopts: bool = False
    start_agent: str | None = None
    executions: Mapping[str, AgentExecution] = field(default_factory=dict, repr=False)
    ended_agents: set[str] = field(default_factory=set)
    outputs: dict[str, Any] = field(default_factory=dict, repr=False)
    failures: dict[str, str] = field(default_factory=dict, repr=False)
    raised: list[tuple[BaseException, str]] = field(default_factory=list, repr=False)
    reason: str | None = field(default=None, repr=False)
    ended: SessionStatus | None = None
    retry_after_seconds: float = 0.0
    process: int = field(default_factory=os.getpid)
    blocks: dict[str, Block] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)
    took_over: bool = False
    cost_usd: float = 0.0
    budget_usd: float | None = None
    write_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    write_lock_thread: int = 0  # the thread that holds it

    @property
    def over(self) -> bool:
        """Whether the session was ended under this lease."""
        return self.ended is not None

    @property
    def inherited(self) -> bool:
        """Whether this is the child of a fork: what it leaves is not the end of anything."""
        return self.process != os.getpid()

    def ended_after(self, agent_name: str, ended: bool | None) -> set[str]:
        """Return the agents that have ended once this one has, or (False) has begun again."""
        if ended is None:
            return self.ended_agents
        return self.ended_agents | {agent_name} if ended else self.ended_agents - {agent_name}

    @property
    def deadline(self) -> float | None:
        """When the first of the running agents counts as hung."""
        return min(self.deadlines.values(), default=None)

    @property
    def condition(self) -> Condition:
        """That the session is still this claim's."""
        mine: Condition = is_as_read(PipelineSession.fence, self.fence)
        mine &= is_as_read(PipelineSession.lease_token, self.token)
        return mine

    @property
    def condition_as_written(self) -> Condition:
        """That it is as this claim last wrote it, which refuses late copies of earlier writes."""
        same: Condition = self.condition
        same &= is_as_read(PipelineSession.lease_expires, self.lease_expires)
        return same

    def owns(self, session: PipelineSession) -> bool:
        """Return whether a session, as it was read, is still this claim's."""
        return (session.fence, session.lease_token) == (self.fence, self.token)

    def renewed(self, client: Client) -> float:
        """Return when the lease runs out once it is renewed: never the same moment twice."""
        moment = round(client.now() + client.settings.lease_seconds, 6)
        before = self.lease_expires or 0
        return round(before + 1e-6, 6) if 0 <= before - moment < 1 else moment


def worker_name() -> str:
    """Return the name of this process, as leases and attempts show it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def was_handed_back(session: PipelineSession) -> bool:
    """Return whether the last owner of an ACTIVE session gave it up, for the next to resume."""
    claimed = session.status == SessionStatus.ACTIVE and session.fence is not None
    return claimed and session.lease_token is None and session.lease_owner is None


def adopts_unclaimed(seen: PipelineSession) -> bool:
    """Return whether a claim of a session adopts what was done without one: the first does."""
    return bool(seen.adopts) or (seen.status is not None and seen.fence is None)


def is_stalled(session: PipelineSession, now: float, stalled_after: float) -> bool:
    """Return whether nobody seems to run an ACTIVE session, or one of its agents hangs.

    Its lease ran out, its owner handed it back, it has none and is too old, or a deadline has
    passed. A lease that runs out later than any lease may was made by a clock that was ahead: it is
    none.
    """
    if session.status != SessionStatus.ACTIVE:
        return False
    if session.lease_token is not None:
        lives = now <= (session.lease_expires or 0) <= now + stalled_after
        return not lives or is_hung(session.deadline, now)
    if was_handed_back(session):
        return True
    if session.due_at is not None:
        return bool(session.due_at <= now)
    # Not written since there is a `due_at`.
    return (session.last_updated or 0) < now - stalled_after


def is_hung(deadline: float | None, now: float) -> bool:
    """Return whether the deadline of an agent has passed."""
    return deadline is not None and deadline < now


def due_with(client: Client, status: str) -> Action:
    """Return the action that says when somebody should look at a session that gets a status now."""
    is_active = status == SessionStatus.ACTIVE
    after_seconds = client.settings.stalled_after_seconds if is_active else 0.0
    return set_to(PipelineSession.due_at, client.now() + after_seconds)


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
        *forget_failure(values),
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


def forget_failure(values: Mapping[str, Any]) -> list[Action]:
    """Return the actions that clear the last failure, but for the given fields."""
    failure = (PipelineSession.failed_agent, PipelineSession.error_message)
    return [attribute.remove() for attribute in failure if attribute.attr_name not in values]


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


def lease_lost_error(lease: Lease) -> LeaseLost:
    """Return the error of a write under a lease that is no more."""
    return LeaseLost(
        f"session {lease.session_id}: claim {lease.fence} was taken over or ended; "
        "nothing was changed, stop working on it"
    )


@dataclass(slots=True)
class Binding:
    """The lease under which calls of a task, and of all that it starts, act on one session.

    Attributes:
        lease: until the session is entered, that of an outer block, or None.
        pending: it may be entered yet.
    """

    lease: Lease | None = None
    pending: bool = False


_UNBOUND = Binding()
_NONE: Mapping[str, Binding] = MappingProxyType({})
_bound: ContextVar[Mapping[str, Binding]] = ContextVar("tdev_leases", default=_NONE)


def current_lease(client: Client, session_id: str | None) -> Lease | None:
    """Return the lease under which calls on a session act in this task or thread, if any.

    It may be over: then the call is refused, rather than taken for a call without a lease.
    """
    return _bound.get().get(_place(client, session_id), _UNBOUND).lease


def bind_lease(client: Client, session_id: str) -> Binding:
    """Let calls on a session act, in this task or thread, under the lease that it will be given."""
    place = _place(client, session_id)
    binding = Binding(_bound.get().get(place, _UNBOUND).lease, pending=True)
    used = {key: one for key, one in _bound.get().items() if one.lease or one.pending}
    _bound.set({**used, place: binding})
    return binding


def _after_fork() -> None:
    # A heartbeat that was under way held the lock, and did not follow into the child.
    for binding in _bound.get().values():
        if (lease := binding.lease) is None:
            continue
        lease.write_lock, lease.write_lock_thread = threading.Lock(), 0


after_fork_in_child(_after_fork)


def unbind_lease(lease: Lease) -> None:
    """End what `bind_lease` began."""
    _bound.set({place: one for place, one in _bound.get().items() if one.lease is not lease})


def _place(client: Client, session_id: str | None) -> str:
    settings = client.settings
    return f"{settings.endpoint} {settings.region} {client.sessions.name} {session_id}"
