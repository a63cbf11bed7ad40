"""Run a pipeline so that it is remembered: own the session, beat, track each agent."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.client_context import ClientContext
from tdev_models.dynamodb.expressions import set_to
from tdev_models.errors import InvalidRequest, InvalidTransition, LeaseHeld, LeaseLost, TdevError
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.models.execution import PAYLOAD_BYTES, TOO_LARGE
from tdev_models.results import ExecutionStatus, SessionStatus
from tdev_models.services import executions
from tdev_models.services.progress import Outcome, outcome_of
from tdev_models.services.sessions import checked_session, cut, lease_held_error
from tdev_models.workers.lease import (
    Lease,
    bind_lease,
    claim,
    is_stalled,
    lease_lost_error,
    unbind_lease,
)
from tdev_models.workers.leased_writes import Heartbeat, leased_update

_CLAIMS = 5
_PAYLOAD = validation.json_text(PAYLOAD_BYTES, TOO_LARGE, objects_only=True)


class Tracker(ClientContext):
    """A session that this process owns from entry to exit.

    On entry the session is created or claimed, and a thread renews the lease every third of it. On
    exit it ends as COMPLETED, or as FAILED with the error's type and text, unless it was ended
    inside. When the lease is lost the task is cancelled, and the block raises `LeaseLost`; blocking
    code learns of it at its next write.

    Attributes:
        session_id: the session.
        start_agent: the first agent that still has to run; None when all nine have ended.
        lease: the claim; None before entry.
    """

    def __init__(self, client: Client, session_id: str, values: Mapping[str, Any]) -> None:
        super().__init__(client)
        self.session_id = session_id
        self.start_agent: str | None = None
        self.lease: Lease | None = None
        self._values = values
        self._seen: Mapping[str, AgentExecution] = {}
        self._failed_agent: str | None = None
        self._left = False

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
            InvalidRequest: a wrong name, or input that has no JSON form or is too large.
        """
        return AgentRun(self, agent_name, input_data, critical, variant)

    async def __aenter__(self) -> Self:
        if self.lease is None:
            self.lease = await self._create_or_claim()
        if self.lease.over:
            raise lease_lost_error(self.lease)
        self._canceller = self._client.task_canceller()
        self._heartbeat = Heartbeat(self._client, self.lease, self._canceller)
        self._heartbeat.start()
        bind_lease(self._client, self.lease)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        lease = self.owned
        self._left = True
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
    def outputs(self) -> dict[str, Any]:
        """What is known of the outputs of the agents that have ended, by agent."""
        return self.lease.outputs if self.lease else {}

    @property
    def owned(self) -> Lease:
        """The lease, once entered or claimed."""
        if self.lease is None:
            raise LeaseHeld(f"session {self.session_id} was not claimed")
        return self.lease

    async def _create_or_claim(self) -> Lease:
        sessions, now = self._client.sessions, self._client.now()
        seen = await sessions.get(self.session_id)
        for _ in range(_CLAIMS):
            if seen is None:
                seen = PipelineSession(self.session_id)
            if seen.status in (SessionStatus.COMPLETED, SessionStatus.ABANDONED):
                what = f"session {self.session_id}"
                raise InvalidTransition(what, seen.status, "ACTIVE", "a new run takes another id")
            again = seen.status == SessionStatus.FAILED or seen.lease_token is not None
            if seen.lease_token is not None and not is_stalled(seen, now, 0):
                raise lease_held_error(self._client, seen)
            claimed = await claim(self._client, seen, self._values, resumed=again)
            if isinstance(claimed, Lease):
                if seen.status is not None:
                    await self.take_over(claimed, seen)
                else:
                    self.start_agent = executions.AGENTS[0]
                return claimed
            seen = claimed
        raise lease_held_error(self._client, seen or PipelineSession(self.session_id))

    async def take_over(
        self, lease: Lease, seen: PipelineSession, from_agent: str | None = None
    ) -> Outcome:
        """Go on from what former claims left; where that cannot be read the claim ends as FAILED.

        Raises:
            LeaseLost: the session was taken over meanwhile.
            PayloadDamaged: an output of an ended agent cannot be read.
        """
        # Large outputs may take longer to read than the lease lasts.
        heartbeat = Heartbeat(self._client, lease)
        heartbeat.start()
        self._failed_agent = seen.failed_agent
        try:
            outcome = await outcome_of(self._client, self.session_id)
            if from_agent is not None:
                outcome = outcome.before(from_agent)
            lease.outputs = await outcome.outputs(self._client)
        except BaseException as error:
            with suppress(TdevError):  # then it runs out
                await self._end_as_failed(lease, error)
            raise
        finally:
            heartbeat.stop()
        if heartbeat.lost:
            raise heartbeat.lost
        self._failed_agent = None
        self.start_agent, self._seen = outcome.start_agent, outcome.executions
        lease.ended_agents = set(outcome.ended)
        return outcome

    async def _end_as_completed(self, lease: Lease) -> None:
        done = [PipelineSession.error_message.remove(), PipelineSession.failed_agent.remove()]
        await leased_update(self._client, lease, done, ends=SessionStatus.COMPLETED)

    async def _end_as_failed(self, lease: Lease, error: BaseException) -> None:
        actions = [set_to(PipelineSession.error_message, error_text(error))]
        if self._failed_agent:
            actions.append(set_to(PipelineSession.failed_agent, self._failed_agent))
        else:
            actions.append(PipelineSession.failed_agent.remove())
        await leased_update(self._client, lease, actions, ends=SessionStatus.FAILED)


class AgentRun(ClientContext):
    """One agent's try, as a block.

    Where the agent had ended before this claim, `done` is True and `output` what it had stored:
    skip the work. Else set `output` (with a JSON form, at most 32 MB) before the block ends.

    Attributes:
        done: nothing is left to do.
        output: the agent's output.
    """

    def __init__(
        self,
        tracker: Tracker,
        agent_name: str,
        input_data: Any,
        critical: bool,
        variant: str | None,
    ) -> None:
        super().__init__(tracker._client)
        self.output: Any = None
        self.done = False
        key = executions.execution_key(f"{tracker.session_id}-{agent_name}", agent_name)
        self._execution_id, self.agent_name, _ = key
        self._begins_with: dict[str, Any] = {"status": ExecutionStatus.RUNNING}
        if input_data is not None:
            self._begins_with["input_data"] = _PAYLOAD("input_data", input_data)
        if variant is not None:
            self._begins_with["variant"] = executions.RULES["variant"]("variant", variant)
        self._tracker, self._critical = tracker, critical

    async def __aenter__(self) -> Self:
        tracker, lease = self._tracker, self._tracker.owned
        if self.agent_name in lease.ended_agents:
            self.done, self.output = True, await self._stored_output()
            return self
        await self._write(self._begins_with, tracker._seen.get(self.agent_name))
        self._started = self._client.now()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        ended = self._client.now()
        if self.done or isinstance(error, LeaseLost):
            return False
        if self._tracker.owned.over:
            if error is None and self._tracker._left:
                # A task that outlived the session's block: nothing of it is recorded.
                raise lease_lost_error(self._tracker.owned)
            return False
        refused: InvalidRequest | None = None
        values: dict[str, Any] = {"status": ExecutionStatus.COMPLETED}
        if error is None and self.output is not None:
            try:
                values["output_data"] = _PAYLOAD("output", self.output)
            except InvalidRequest as unusable:
                error = refused = unusable
        if error is not None:
            values = {"status": ExecutionStatus.FAILED, "error_message": error_text(error)}
            if not self._critical and isinstance(error, Exception):
                values["critical"] = False
            else:
                self._tracker._failed_agent = self.agent_name
        elif self._tracker._failed_agent == self.agent_name:
            self._tracker._failed_agent = None  # tried again, with success
        await self._end(values, error, ended - self._started)
        # What could not be recorded is not passed over in silence.
        goes_on = self.done and not self._critical
        if refused is not None and not goes_on:
            raise refused
        return goes_on and isinstance(error, Exception)

    async def _stored_output(self) -> Any:
        """Return what the agent stored, be it in this claim: by a call, or a block cut short."""
        outputs, agent_name = self._tracker.outputs, self.agent_name
        if agent_name not in outputs:
            stored = await self._client.executions.get(self._execution_id, agent_name)
            if stored is None or stored.status != ExecutionStatus.COMPLETED:
                return None
            outputs[agent_name] = await executions.payload(self._client, stored, "output_data")
        return outputs[agent_name]

    async def _end(
        self, values: Mapping[str, Any], error: BaseException | None, seconds: float
    ) -> None:
        try:
            seen = await self._client.executions.get(self._execution_id, self.agent_name)
            await self._write(values, seen, seconds)
        except LeaseLost:
            raise
        except TdevError as unrecorded:
            if error is None:
                raise
            error.add_note(f"execution {self._execution_id} is not marked FAILED: {unrecorded}")
        else:
            self.done = True
            if error is None:
                self._tracker.outputs[self.agent_name] = self.output

    async def _write(
        self, values: Mapping[str, Any], seen: AgentExecution | None, seconds: float | None = None
    ) -> None:
        tracker = self._tracker
        await executions.write_execution(
            self._client,
            self._execution_id,
            self.agent_name,
            {"project_id": tracker.session_id, **values},
            seen,
            tracker.owned,
            seconds,
        )


def error_text(error: BaseException) -> str:
    """Return an error's type and text, cut to what an item may hold."""
    return cut(f"{type(error).__name__}: {error}")


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
