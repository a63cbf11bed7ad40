"""One agent's run in a tracked session, as a block."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.client_context import ClientContext
from tdev_models.errors import (
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    TdevError,
)
from tdev_models.models import AgentExecution
from tdev_models.models.execution import PAYLOAD_BYTES, TOO_LARGE
from tdev_models.results import ExecutionStatus
from tdev_models.retry import CANCELLED_SECONDS
from tdev_models.services import executions
from tdev_models.services.sessions import error_text, real_error, shortened
from tdev_models.workers.lease import Lease, lease_lost_error

_PAYLOAD = validation.json_text(PAYLOAD_BYTES, TOO_LARGE, objects_only=True)


@dataclass(slots=True)
class SessionRun:
    """What the block of a session shares with the blocks of its agents.

    Attributes:
        client: the client of both.
        session_id: the session.
        lease: the claim; None before there is one.
        raised: the errors that ended agents, each with its agent, to name the one that failed.
        reason: why the session is to end as FAILED though no error leaves its block.
        left: the session's block was left; agents of other tasks may still run.
    """

    client: Client
    session_id: str
    lease: Lease | None = None
    raised: list[tuple[BaseException, str]] = field(default_factory=list)
    reason: str | None = None
    left: bool = False
    _cancelled_until: float | None = None

    @property
    def owned(self) -> Lease:
        """The lease; raises LeaseHeld where there is none."""
        if self.lease is None:
            raise LeaseHeld(f"session {self.session_id} was not claimed")
        return self.lease

    def is_interruption(self, error: BaseException | None) -> bool:
        """Return whether an error is no failure: a cancellation, Ctrl-C, `sys.exit`.

        A CancelledError of something else that was awaited is a failure like any other.
        """
        cause = error and real_error(error)
        return not (
            cause is None
            or isinstance(cause, Exception)
            or self.client.is_stray_cancellation(cause)
        )

    def seconds_for(self, error: BaseException | None) -> float | None:
        """Return for how long an end may be tried: None for as long as an owner's write is.

        Who cancels a task, or ends the process, waits two seconds for all of it.
        """
        if not self.is_interruption(error):
            return None
        if self._cancelled_until is None:
            self._cancelled_until = time.monotonic() + CANCELLED_SECONDS
        return max(0.0, self._cancelled_until - time.monotonic())


class AgentRun(ClientContext[bool]):
    """One agent's try, as a block.

    Where the agent had ended before this claim, `done` is True and `output` what it had stored:
    skip the work. Else set `output` (with a JSON form, at most 32 MB) before the block ends, or
    call `fail`. An error that leaves the block ends the agent as FAILED. A cancellation, Ctrl-C or
    `sys.exit` is no failure: the agent is PENDING again, and its attempt CANCELLED.

    Attributes:
        done: nothing is left to do.
        output: the agent's output.
        status: COMPLETED or FAILED once it has ended, be it before this claim; RUNNING in its
            block, else what is stored, None where nothing is.
        error: why it failed, in this try or, until that has ended, in the one before.
    """

    def __init__(
        self,
        session: SessionRun,
        agent_name: str,
        input_data: Any,
        critical: bool,
        variant: str | None,
        retry_failed: bool,
    ) -> None:
        super().__init__(session.client)
        self.output: Any = None
        self.done = False
        key = executions.execution_key(f"{session.session_id}-{agent_name}", agent_name)
        self._execution_id, self.agent_name, _ = key
        self._begins_with: dict[str, Any] = {"status": ExecutionStatus.RUNNING}
        if input_data is not None:
            self._begins_with["input_data"] = _PAYLOAD("input_data", input_data)
        if variant is not None:
            self._begins_with["variant"] = executions.RULES["variant"]("variant", variant)
        self._session, self._critical, self._retry_failed = session, critical, retry_failed
        self._stored: AgentExecution | None = None
        self._reason: str | None = None

    @property
    def status(self) -> str | None:
        """COMPLETED or FAILED once it has ended, RUNNING in its block, None before."""
        return self._stored.status if self._stored else None

    @property
    def error(self) -> str | None:
        """Why it failed."""
        return self._reason or (self._stored.error_message if self._stored else None)

    def fail(self, reason: str, *, critical: bool | None = None) -> None:
        """Let the agent end as FAILED at the end of its block, though no error leaves it.

        For agents that return what went wrong. Writes nothing yet; `output` is not stored. Where
        the agent is critical the session will end as FAILED, unless the agent is tried again with
        success.

        Args:
            reason: becomes the `error_message`; what passes 4 KB is cut.
            critical: overrides what the block was made with.

        Raises:
            InvalidRequest: reason is no text or empty, or the agent had ended before.
        """
        if not isinstance(reason, str) or not reason:
            raise InvalidRequest("reason", "must be a text that says what went wrong")
        if self.done:
            raise InvalidRequest("reason", f"agent {self.agent_name} has ended already")
        self._reason = shortened(reason)
        if critical is not None:
            self._critical = critical

    async def __aenter__(self) -> Self:
        lease = self._session.owned
        self._stored = lease.executions.get(self.agent_name)
        if self.agent_name in lease.ended_agents and not self._may_be_retried():
            self.done, self.output = True, await self._stored_output()
            return self
        await self._write(self._begins_with)
        self._started = self._client.now()
        return self

    def _may_be_retried(self) -> bool:
        return self._retry_failed and self.status == ExecutionStatus.FAILED

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self.done or isinstance(error, LeaseLost) or self._session.owned.inherited:
            return False
        if self._session.owned.over and self._session.left:
            # A task that outlived the session's block: nothing of it is recorded.
            if error is None:
                raise lease_lost_error(self._session.owned)
            return False
        refused: InvalidRequest | None = None
        values: dict[str, Any] = {}
        if error is None and self._reason is None and self.output is not None:
            try:
                values["output_data"] = _PAYLOAD("output", self.output)
            except InvalidRequest as unusable:
                error = refused = unusable
        await self._end({**values, **self._end_of(error)}, error)
        # What could not be recorded is not passed over in silence.
        goes_on = self.done and not self._critical
        if refused is not None and not goes_on:
            raise refused
        return goes_on and isinstance(error, Exception)

    def _end_of(self, error: BaseException | None) -> dict[str, Any]:
        """Return the fields of the execution as the block leaves it."""
        if error is None and self._reason is None:
            return {"status": ExecutionStatus.COMPLETED}
        if self._session.is_interruption(error):
            return {"status": ExecutionStatus.PENDING}
        self._reason = error_text(error) if error else self._reason
        failed = {"status": ExecutionStatus.FAILED, "error_message": self._reason}
        optional = not self._critical and (error is None or isinstance(error, Exception))
        return {**failed, "critical": False} if optional else failed

    async def _end(self, values: Mapping[str, Any], error: BaseException | None) -> None:
        """Record the end; where that fails after an error, the error says so in a note."""
        if error is not None:
            self._session.raised.append((real_error(error), self.agent_name))
        try:
            await self._write(values, error, self._client.now() - self._started)
        except LeaseLost:
            raise
        except TdevError as unrecorded:
            if error is None:
                raise
            error.add_note(f"the end of {self._execution_id} is not recorded: {unrecorded}")
            self._note_failure(values["status"])
            return
        self.done = self.status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED)
        if self.status == ExecutionStatus.COMPLETED:
            self._session.owned.outputs[self.agent_name] = self.output
        self._note_failure(self.status)

    def _note_failure(self, status: str | None) -> None:
        """Remember a critical failure, until the agent was tried again with success."""
        failures = self._session.owned.failures
        if status == ExecutionStatus.FAILED and self._critical:
            failures[self.agent_name] = self.error or ""
        elif status != ExecutionStatus.PENDING:
            failures.pop(self.agent_name, None)
            raised = self._session.raised
            raised[:] = [(error, name) for error, name in raised if name != self.agent_name]

    async def _stored_output(self) -> Any:
        """Return what the agent stored in this claim or before, by whichever call or block."""
        outputs, agent_name = self._session.owned.outputs, self.agent_name
        if agent_name not in outputs:
            stored = await self._client.executions.get(self._execution_id, agent_name)
            if stored is None or stored.status != ExecutionStatus.COMPLETED:
                return None
            outputs[agent_name] = await executions.read_payload(self._client, stored, "output_data")
        return outputs[agent_name]

    async def _write(
        self,
        values: Mapping[str, Any],
        error: BaseException | None = None,
        seconds: float | None = None,
    ) -> None:
        lease = self._session.owned
        try:
            self._stored = await executions.write_execution(
                self._client,
                self._execution_id,
                self.agent_name,
                {"project_id": self._session.session_id, **values},
                self._stored,
                lease,
                None if values["status"] == ExecutionStatus.PENDING else seconds,
                # Ending the session inside its last agent's block keeps what the agent made.
                alone=lease.over,
                retry_seconds=self._session.seconds_for(error),
            )
        except InvalidTransition as ended:
            if ended.current != ExecutionStatus.FAILED or seconds is None:
                raise
            await self._ended_by_a_call()

    async def _ended_by_a_call(self) -> None:
        """Take over the end that `update_agent_execution` wrote inside the block."""
        self._stored = await self._client.executions.get(self._execution_id, self.agent_name)
        self._reason = self.error or "FAILED by update_agent_execution"
