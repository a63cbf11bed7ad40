"""One agent's run in a tracked session, as a block."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.client_context import ClientContext
from tdev_models.errors import InvalidRequest, LeaseHeld, LeaseLost, TdevError
from tdev_models.models import AgentExecution
from tdev_models.results import ExecutionStatus
from tdev_models.services import executions
from tdev_models.services.sessions import error_text
from tdev_models.workers.lease import Lease, lease_lost_error

_log = logging.getLogger(__name__)
_PAYLOAD = validation.json_text(objects_only=True)


@dataclass(slots=True)
class SessionRun:
    """What the block of a session shares with the blocks of its agents.

    Attributes:
        session_id: the session.
        lease: the claim; None before there is one.
        executions: by agent, what former claims left; read when the session was taken over.
        failed_agent: the agent to name as the one that failed, if the session ends as FAILED.
        left: the session's block was left; agents of other tasks may still run.
    """

    session_id: str
    lease: Lease | None = None
    executions: Mapping[str, AgentExecution] = field(default_factory=dict)
    failed_agent: str | None = None
    left: bool = False

    @property
    def owned(self) -> Lease:
        """The lease; raises LeaseHeld where there is none."""
        if self.lease is None:
            raise LeaseHeld(f"session {self.session_id} was not claimed")
        return self.lease


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
        client: Client,
        session: SessionRun,
        agent_name: str,
        input_data: Any,
        critical: bool,
        variant: str | None,
    ) -> None:
        super().__init__(client)
        self.output: Any = None
        self.done = False
        key = executions.execution_key(f"{session.session_id}-{agent_name}", agent_name)
        self._execution_id, self.agent_name, _ = key
        self._begins_with: dict[str, Any] = {"status": ExecutionStatus.RUNNING}
        self._input = input_data
        if variant is not None:
            self._begins_with["variant"] = executions.RULES["variant"]("variant", variant)
        self._session, self._critical = session, critical

    async def __aenter__(self) -> Self:
        if self.agent_name in self._session.owned.ended_agents:
            self.done, self.output = True, await self._stored_output()
            return self
        if self._input is not None:
            self._begins_with["input_data"] = await self._encoded("input_data", self._input)
        await self._write(self._begins_with, self._session.executions.get(self.agent_name))
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
        if self._session.owned.over:
            if error is None and self._session.left:
                # A task that outlived the session's block: nothing of it is recorded.
                raise lease_lost_error(self._session.owned)
            return False
        refused: InvalidRequest | None = None
        values: dict[str, Any] = {"status": ExecutionStatus.COMPLETED}
        if error is None and self.output is not None:
            try:
                values["output_data"] = await self._encoded("output", self.output)
            except InvalidRequest as unusable:
                error = refused = unusable
                _log.warning("%s: its output cannot be stored: %s", self._execution_id, unusable)
        if error is not None:
            values = self._failure(error)
        self._note_failed_agent(values)
        await self._end(values, error, ended - self._started)
        # What could not be recorded is not passed over in silence.
        goes_on = self.done and not self._critical
        if refused is not None and not goes_on:
            raise refused
        return goes_on and isinstance(error, Exception)

    async def _encoded(self, field: str, value: Any) -> str:
        """Return the JSON text of a payload."""
        text: str = await executions.checked_payload(
            self._client, value, lambda: _PAYLOAD(field, value)
        )
        return text

    def _failure(self, error: BaseException) -> dict[str, Any]:
        """Return the fields of an execution that an error ended."""
        values = {"status": ExecutionStatus.FAILED, "error_message": error_text(error)}
        # A cancellation, say, is no failure of the agent: it has to run again.
        optional = not self._critical and isinstance(error, Exception)
        return {**values, "critical": False} if optional else values

    def _note_failed_agent(self, values: Mapping[str, Any]) -> None:
        """Name this agent as the one that failed; no more once it was tried again with success."""
        if values["status"] == ExecutionStatus.FAILED:
            if "critical" not in values:
                self._session.failed_agent = self.agent_name
        elif self._session.failed_agent == self.agent_name:
            self._session.failed_agent = None

    async def _stored_output(self) -> Any:
        """Return what the agent stored in this claim or before, by whichever call or block."""
        outputs, agent_name = self._session.owned.outputs, self.agent_name
        if agent_name not in outputs:
            stored = await self._client.executions.get(self._execution_id, agent_name)
            if stored is None or stored.status != ExecutionStatus.COMPLETED:
                return None
            outputs[agent_name] = await executions.read_payload(self._client, stored, "output_data")
        return outputs[agent_name]

    async def _end(
        self, values: Mapping[str, Any], error: BaseException | None, seconds: float
    ) -> None:
        """Record the end; where that fails after an error, the error says so in a note."""
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
                self._session.owned.outputs[self.agent_name] = self.output

    async def _write(
        self, values: Mapping[str, Any], seen: AgentExecution | None, seconds: float | None = None
    ) -> None:
        await executions.write_execution(
            self._client,
            self._execution_id,
            self.agent_name,
            {"project_id": self._session.session_id, **values},
            seen,
            self._session.owned,
            seconds,
        )
