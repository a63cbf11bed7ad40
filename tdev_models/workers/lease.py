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
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb.chunks import Stored
from tdev_models.dynamodb.client import Client, TaskCanceller
from tdev_models.dynamodb.expressions import is_as_read, set_to
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.errors import LeaseLost
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.results import SessionStatus


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
        last_write: names this claim's last write, which refuses late copies of those before.
        lease_expires: when a claim that nobody has entered runs out; then None.
        adopts: what was done without a claim still counts, and is to be adopted.
        restarts: where the session began again: what that outdates has not ended.
        start_agent: the first of the nine agents that had to run when the session was claimed.
        executions: by agent, as they were last read or written; of former claims, too.
        ended_agents: the agents that have ended, which `progress` counts.
        got_on: an agent has ended under this claim, so that no death of a worker counts any more.
        outputs: what is known of their outputs.
        payloads: what is stored in chunks, by the hash of its text.
        failures: by critical agent, why it failed; without those tried again with success.
        failed_before: the same of the pipeline's agents that a former claim has left so.
        raised: the errors that ended agents, each with its agent, to name the one that failed.
        reason: why the session is to end as FAILED though no error leaves its block.
        ended: how the session was ended under this lease, ACTIVE where it was handed back; None
            while it goes on.
        process: the process whose block it is; forked children write under the lease, too.
        due_at: the session's, as this claim last wrote it.
        retry_after_seconds: how long `recover_sessions` leaves it alone after a failure.
        blocks: what became of each agent's last block under this lease.
        inside: by agent, those whose blocks have ended inside its last ones.
        deadlines: of running agents with a timeout, by name: when each counts as hung.
        beginnings: of agents whose begin is being written: the write, and the thread that waits for
            it while it does other things.
        took_over: other claims, or calls without one, may have left executions.
        cost_usd: what all agents have cost, as far as this claim knows.
        budget_usd: what they may cost; None is no limit.
        lost: why this process must not go on, once its worker has learned of it.
        refused: what the last write raised that the store refused since the session is lost.
        stopped: an agent, or a session inside its block, did not begin, since this process drains:
            the session is not to end.
        canceller: cancels the task that runs the session, where it can be.
    """

    session_id: str
    fence: int
    token: str = field(repr=False)
    due_at: float
    last_write: str
    lease_expires: float | None = None
    expires_at: float | None = None
    adopts: bool = False
    restarts: Sequence[Sequence[Any]] = ()
    start_agent: str | None = None
    executions: dict[str, AgentExecution] = field(default_factory=dict, repr=False)
    ended_agents: set[str] = field(default_factory=set)
    got_on: bool = False
    outputs: dict[str, Any] = field(default_factory=dict, repr=False)
    payloads: Stored = field(default_factory=dict, repr=False)
    failures: dict[str, str] = field(default_factory=dict, repr=False)
    failed_before: dict[str, str] = field(default_factory=dict, repr=False)
    raised: list[tuple[BaseException, str]] = field(default_factory=list, repr=False)
    reason: str | None = field(default=None, repr=False)
    ended: SessionStatus | None = None
    retry_after_seconds: float = 0.0
    process: int = field(default_factory=os.getpid)
    blocks: dict[str, Block] = field(default_factory=dict)
    inside: dict[str, set[str]] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)
    beginnings: dict[str, tuple[SharedFuture, int]] = field(default_factory=dict, repr=False)
    took_over: bool = False
    cost_usd: float = 0.0
    budget_usd: float | None = None
    lost: LeaseLost | None = None
    refused: LeaseLost | None = None
    stopped: bool = False
    canceller: TaskCanceller | None = field(default=None, repr=False)
    write_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    write_lock_thread: int = 0  # the thread that holds it
    write_lock_waiters: set[object] = field(default_factory=set, repr=False)

    @property
    def over(self) -> bool:
        """Whether the session was ended under this lease."""
        return self.ended is not None

    @property
    def inherited(self) -> bool:
        """Whether this is the child of a fork: what it leaves is not the end of the session."""
        return self.process != os.getpid()

    def ended_after(self, agent_name: str, ended: bool | None) -> set[str]:
        """Return the agents that have ended once this one has, or (False) has begun again."""
        if ended is None:
            return self.ended_agents
        return self.ended_agents | {agent_name} if ended else self.ended_agents - {agent_name}

    def note_end(self, agent_name: str, failure: str | None) -> None:
        """Remember why a critical agent has failed; None: it was tried again with success."""
        if failure is not None:
            self.failures[agent_name] = failure
            self.failed_before.pop(agent_name, None)
            return
        for failures in (self.failures, self.failed_before):
            failures.pop(agent_name, None)
        self.raised[:] = [one for one in self.raised if one[1] != agent_name]

    def begins(self, agent_name: str) -> SharedFuture:
        """Return what is to be settled once the begin of an agent is written or given up."""
        written = SharedFuture()
        self.beginnings[agent_name] = written, threading.get_ident()
        return written

    @property
    def deadline(self) -> float | None:
        """When the first of the running agents counts as hung."""
        return min(self.deadlines.values(), default=None)

    def due_next(self, client: Client) -> float:
        """Return the session's `due_at` from the next write on: each change is a write to an index.

        A deadline that is nearer moves it there. A live session is moved on a lease before somebody
        would look, and one with too late a moment, because the clock was set back, at once.
        """
        now, stalled_after = client.now(), client.settings.stalled_after_seconds
        if is_hung(self.deadline, now):
            return self.due_at  # it is to be found
        latest = min(now + stalled_after, self.deadline or float("inf"))
        soon = now + min(stalled_after / 2, client.settings.lease_seconds)
        return self.due_at if min(soon, latest) <= self.due_at <= latest else latest

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
        same &= is_as_read(PipelineSession.lease_write, self.last_write)
        return same

    def lives(self, now: float) -> bool:
        """Return whether it is to be kept alive: neither ended, nor lost, nor run out unentered."""
        ran_out = self.lease_expires is not None and self.lease_expires < now
        return not (self.over or self.lost or ran_out)

    def lose(self, error: LeaseLost) -> None:
        """Stop whoever runs the session: the task that can be cancelled, or its next write."""
        if self.lost is None and not self.over:
            self.lost = error
            if self.canceller is not None:
                self.canceller.cancel()

    def is_lost_by(self, error: BaseException | None) -> bool:
        """Return whether an error says that this session is lost, and not one inside its block."""
        return isinstance(error, LeaseLost) and error.session_id in (None, self.session_id)

    def check(self) -> None:
        """Raise LeaseLost where the session was ended under this lease, or is known to be lost."""
        if self.lost is not None:
            raise self.lost
        if self.over:
            raise lease_lost_error(self)

    def owns(self, session: PipelineSession) -> bool:
        """Return whether a session, as it was read, is still this claim's."""
        return (session.fence, session.lease_token) == (self.fence, self.token)


def worker_name() -> str:
    """Return the name of this process, as leases and attempts show it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def was_handed_back(session: PipelineSession) -> bool:
    """Return whether the last owner of an ACTIVE session gave it up, for the next to resume."""
    claimed = session.status == SessionStatus.ACTIVE and session.fence is not None
    return claimed and session.lease_token is None and session.lease_owner is None


def is_hung(deadline: float | None, now: float) -> bool:
    """Return whether the deadline of an agent has passed."""
    return deadline is not None and deadline < now


def claim_ended() -> list[Action]:
    """Return the actions that take a claim from a session."""
    names = ("lease_token", "lease_write", "lease_expires", "worker_id", "deadline")
    return [PipelineSession.get_attributes()[name].remove() for name in names]


def due_with(client: Client, status: str) -> Action:
    """Return the action that says when somebody should look at a session that gets a status now."""
    is_active = status == SessionStatus.ACTIVE
    after_seconds = client.settings.stalled_after_seconds if is_active else 0.0
    return set_to(PipelineSession.due_at, client.now() + after_seconds)


def lease_lost_error(lease: Lease) -> LeaseLost:
    """Return the error of a write under a lease that is no more."""
    error = LeaseLost(
        f"session {lease.session_id}: claim {lease.fence} was taken over or ended; "
        "nothing was changed, stop working on it"
    )
    error.session_id = lease.session_id
    return error
