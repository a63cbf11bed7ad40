"""An agent's execution, as the agent's block in a tracked session reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

from tdev_models.dynamodb.client_context import C
from tdev_models.dynamodb.encryption import NOT_DECRYPTED
from tdev_models.errors import InvalidTransition
from tdev_models.metrics.automatic import agent_used, run_ended
from tdev_models.models import AgentExecution
from tdev_models.models.execution import agent_of
from tdev_models.results import ExecutionStatus
from tdev_models.services.execution_states import counts_as_ended
from tdev_models.services.execution_writes import write_execution
from tdev_models.services.executions import execution_key
from tdev_models.services.failed_attempts import NO_ERROR, facts_of
from tdev_models.services.payloads import read_payload
from tdev_models.services.restarts import is_outdated
from tdev_models.services.session_run import SessionRun
from tdev_models.services.usage import NOTHING, Usage


class OwnedExecution(Generic[C]):
    """The execution of one block.

    Attributes:
        key: its id, and the agent's name with its key.
        begins_with: the fields that the begin writes; empty once they are stored.
        stored: the execution as it was last read or written; None: there is none.
        usage: what the agent has used that is not stored yet.
    """

    def __init__(self, session: SessionRun[C], agent_name: str) -> None:
        execution_id = f"{session.session_id}-{agent_of(agent_name)}"
        self.key = execution_key(execution_id, agent_name)[:2]
        self.begins_with: dict[str, Any] = {"status": ExecutionStatus.RUNNING}
        self.stored: AgentExecution | None = None
        self.usage = NOTHING
        self._session = session

    @property
    def status(self) -> str | None:
        """The status that is stored."""
        return self.stored.status if self.stored else None

    @property
    def error(self) -> str | None:
        """The error that is stored."""
        if self.stored is not None and self.stored.error_message_encrypted:
            return NOT_DECRYPTED
        return self.stored.error_message if self.stored else None

    async def find_ended(self) -> None:
        """Read what the index, which lags, may not have shown when the session was taken over."""
        lease, (_, name) = self._session.owned, self.key
        agents = self._session.client.settings.agents
        known = {*agents, *lease.blocks, *lease.ended_agents, *lease.executions}
        if lease.took_over and name not in known:
            stored = await self._read()
            # Without a fence no claim wrote it: anybody may have.
            if (
                stored is not None
                and stored.fence is not None
                and counts_as_ended(stored.status, stored.critical)
                and not is_outdated(stored, lease.restarts)
            ):
                lease.ended_agents = {*lease.ended_agents, name}
                lease.executions[name] = stored

    async def output(self) -> Any:
        """Return what the agent stored in this claim or before, by whichever call or block."""
        outputs, (_, agent_name) = self._session.owned.outputs, self.key
        if agent_name not in outputs:
            stored = await self._read()
            if stored is None or stored.status != ExecutionStatus.COMPLETED:
                return None
            outputs[agent_name] = await read_payload(self._session.client, stored, "output_data")
        return outputs[agent_name]

    async def begin(self, at: float) -> None:
        """Write that the agent begins."""
        seconds = self._session.seconds_for(None)
        await self._write(self.begins_with, at=at, retry_seconds=seconds)
        self.begins_with = {}

    async def end(
        self, values: Mapping[str, Any], error: BaseException | None, started: float, at: float
    ) -> None:
        """Write that the agent ends with these fields, or takes over how a call has ended it."""
        try:
            await self._write(
                {**self.begins_with, **values},
                self.usage,
                at=at,
                seconds=None if values["status"] == ExecutionStatus.PENDING else at - started,
                retry_seconds=self._session.seconds_for(error),
                error=NO_ERROR if error is None else facts_of(self._session.client, error),
            )
        except InvalidTransition as ended:
            if ended.current not in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED):
                raise
            await self._take_over(ended.current, at - started)
            if ended.current == ExecutionStatus.COMPLETED:
                raise  # the block ends otherwise, which cannot be stored
        else:
            self.begins_with = {}
            self._count_usage()

    async def _take_over(self, status: str, seconds: float) -> None:
        """Take over the end that `update_agent_execution` wrote inside the block."""
        self.stored = await self._read()
        # The call has counted a failure, and does not know how long the try took.
        run_ended(
            self._session.client,
            self.key[1],
            ends=False,
            seconds=seconds,
            failed=status == ExecutionStatus.FAILED,
            retried=False,
            variant=getattr(self.stored, "variant", None),
        )
        if self.usage != NOTHING:
            await self._write({}, self.usage)
            self._count_usage()

    def _count_usage(self) -> None:
        used, self.usage = self.usage, NOTHING
        self._session.owned.cost_usd += used.cost_usd
        tokens = used.input_tokens + used.output_tokens
        agent_used(self._session.client, self.key[1], tokens, used.cost_usd, used.model)

    async def _read(self) -> AgentExecution | None:
        return await self._session.client.executions.get(*self.key)

    async def _write(
        self, values: Mapping[str, Any], usage: Usage = NOTHING, **options: Any
    ) -> None:
        lease = self._session.owned
        self.stored = lease.executions[self.key[1]] = await write_execution(
            self._session.client,
            *self.key,
            {"project_id": self._session.session_id, **values},
            self.stored,
            lease,
            # Ending the session inside its last agent's block keeps what the agent made.
            alone=lease.over,
            usage=usage,
            **options,
        )
