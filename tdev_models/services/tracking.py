"""Run a pipeline so that it is remembered: own its session, renew the lease, track each agent."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.client_context import ClientContext
from tdev_models.dynamodb.expressions import set_to
from tdev_models.errors import InvalidRequest, InvalidTransition, LeaseLost, TdevError
from tdev_models.models import PipelineSession
from tdev_models.results import AGENTS, SessionStatus
from tdev_models.services.agent_runs import AgentRun, SessionRun
from tdev_models.services.progress import Outcome, outcome_of
from tdev_models.services.sessions import checked_session, error_text, lease_held_error
from tdev_models.workers.lease import (
    Lease,
    bind_lease,
    claim_session,
    is_stalled,
    lease_lost_error,
    unbind_lease,
)
from tdev_models.workers.leased_writes import Heartbeat, leased_update

_CLAIMS = 5


class Tracker(ClientContext):
    """A session that this process owns from entry to exit.

    On entry the session is created or claimed, and a thread renews the lease every third of it. On
    exit it ends as COMPLETED, or as FAILED with the error's type and text, unless it was ended
    inside. When the lease is lost the task is cancelled, and the block raises `LeaseLost`; blocking
    code learns of it at its next write.

    Attributes:
        session_id: the session.
        start_agent: the first agent that still has to run; None when all nine have ended.
    """

    def __init__(self, client: Client, session_id: str, values: Mapping[str, Any]) -> None:
        super().__init__(client)
        self.session_id = session_id
        self.start_agent: str | None = None
        self._values = values
        self._run = SessionRun(session_id)

    def agent(
        self,
        agent_name: str,
        input_data: Any = None,
        *,
        critical: bool = True,
        variant: str | None = None,
    ) -> AgentRun:
        """Return the block in which one agent runs.

        Args:
            agent_name: one of the nine, or an agent of your own.
            input_data: any value with a JSON form, at most 32 MB; a string is stored as one.
            critical: False lets the session go on when the agent raises.
            variant: of an A/B test, which the execution and the agent's metrics then name.

        Raises:
            InvalidRequest: a wrong name; on entry: input without a JSON form, or too large.
        """
        return AgentRun(self._client, self._run, agent_name, input_data, critical, variant)

    async def __aenter__(self) -> Self:
        lease = self._run.lease
        if lease is None:
            lease = self._run.lease = await self._create_or_claim()
        if lease.over:
            raise lease_lost_error(lease)
        self._canceller = self._client.task_canceller()
        self._heartbeat = Heartbeat(self._client, lease, self._canceller)
        self._heartbeat.start()
        bind_lease(self._client, lease)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        lease = self.owned
        self._run.left = True
        unbind_lease(lease)
        self._heartbeat.stop()
        interrupted = await self._canceller.close()
        if self._heartbeat.lost and (interrupted or error is None):
            raise self._heartbeat.lost from error
        if lease.over or isinstance(error, LeaseLost):
            return False
        if error is None:
            await self._end_as_completed(lease)
        else:
            try:
                await self._end_as_failed(lease, error)
            except TdevError as unrecorded:
                error.add_note(f"session {self.session_id} is not marked FAILED: {unrecorded}")
        return False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_id!r}, start_agent={self.start_agent!r})"

    @property
    def lease(self) -> Lease | None:
        """The claim; None before entry."""
        return self._run.lease

    @property
    def outputs(self) -> dict[str, Any]:
        """What is known of the outputs of the agents that have ended, by agent."""
        return self.lease.outputs if self.lease else {}

    @property
    def owned(self) -> Lease:
        """The lease, once entered or claimed; before that it raises LeaseHeld."""
        return self._run.owned

    async def _create_or_claim(self) -> Lease:
        sessions, now = self._client.sessions, self._client.now()
        seen = await sessions.get(self.session_id)
        for _ in range(_CLAIMS):
            if seen is None:
                seen = PipelineSession(self.session_id)
            if seen.status in (SessionStatus.COMPLETED, SessionStatus.ABANDONED):
                what = f"session {self.session_id}"
                raise InvalidTransition(what, seen.status, "ACTIVE", "a new run takes another id")
            resumed = seen.status == SessionStatus.FAILED or seen.lease_token is not None
            if seen.lease_token is not None and not is_stalled(seen, now, 0):
                raise lease_held_error(self._client, seen)
            claim = await claim_session(self._client, seen, self._values, resumed=resumed)
            if isinstance(claim, Lease):
                if seen.status is not None:
                    await self.take_over(claim, seen)
                else:
                    self.start_agent = AGENTS[0]
                return claim
            seen = claim  # as others have changed it meanwhile
        raise lease_held_error(self._client, seen or PipelineSession(self.session_id))

    async def take_over(
        self, lease: Lease, seen: PipelineSession, from_agent: str | None = None
    ) -> Outcome:
        """Own the session, and go on from what former claims left.

        Where that cannot be read, the session ends as FAILED.

        Raises:
            LeaseLost: the session was taken over meanwhile.
            PayloadDamaged: an output of an ended agent cannot be read.
        """
        # Large outputs may take longer to read than the lease lasts.
        heartbeat = Heartbeat(self._client, lease)
        heartbeat.start()
        self._run.failed_agent = seen.failed_agent
        try:
            outcome = await outcome_of(self._client, self.session_id)
            if from_agent is not None:
                outcome = outcome.starting_at(from_agent)
            lease.outputs = await outcome.outputs(self._client)
        except BaseException as error:
            with suppress(TdevError):  # the lease runs out then
                await self._end_as_failed(lease, error)
            raise
        finally:
            heartbeat.stop()
        if heartbeat.lost:
            raise heartbeat.lost
        self._run.lease, self._run.failed_agent = lease, None
        self.start_agent, self._run.executions = outcome.start_agent, outcome.executions
        lease.ended_agents = set(outcome.ended)
        return outcome

    async def _end_as_completed(self, lease: Lease) -> None:
        done = [PipelineSession.error_message.remove(), PipelineSession.failed_agent.remove()]
        await leased_update(self._client, lease, done, ends=SessionStatus.COMPLETED)

    async def _end_as_failed(self, lease: Lease, error: BaseException) -> None:
        actions = [set_to(PipelineSession.error_message, error_text(error))]
        if self._run.failed_agent:
            actions.append(set_to(PipelineSession.failed_agent, self._run.failed_agent))
        else:
            actions.append(PipelineSession.failed_agent.remove())
        await leased_update(self._client, lease, actions, ends=SessionStatus.FAILED)


def track_session(client: Client, /, session_id: str, **more: Any) -> Tracker:
    """Return the block in which a session runs: create or claim, heartbeat, end.

    A session that FAILED, or whose owner's lease ran out, goes on: agents that had ended hand back
    their outputs. Calls on the session inside the block carry its lease.

    Args:
        session_id: the session; the plan uses the project's id.
        more: fields of the session, as `save_pipeline_session` takes them, except status and
            progress.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value.
        On entry: LeaseHeld, another worker owns the session; InvalidTransition, it has ended for
            good. On exit: LeaseLost.
    """
    for field in ("status", "progress"):
        if field in more:
            raise InvalidRequest(field, "is kept by the tracker; leave it out")
    values = checked_session({"session_id": session_id}, more)
    return Tracker(client, values.pop("session_id"), values)
