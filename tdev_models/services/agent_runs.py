"""One agent's run in a tracked session, as a block."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, overload

from tdev_models import validation
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient
from tdev_models.dynamodb.client_context import C, ClientContext
from tdev_models.errors import BudgetSpent, InvalidRequest, LeaseHeld, LeaseLost, TdevError
from tdev_models.metrics.automatic import agent_used
from tdev_models.models import AgentExecution
from tdev_models.models.execution import PAYLOAD_BYTES, TOO_LARGE
from tdev_models.results import AGENTS, ExecutionStatus
from tdev_models.services import executions
from tdev_models.services.agent_names import begin_block, name_with_key
from tdev_models.services.effects import InDoubt, check_function, effect
from tdev_models.services.execution_states import counts_as_ended
from tdev_models.services.sessions import error_text
from tdev_models.services.usage import NOTHING, check_budget
from tdev_models.workers.lease import Block, Lease, lease_lost_error

OUTPUT = validation.json_text(PAYLOAD_BYTES, TOO_LARGE, objects_only=True)


@dataclass(slots=True)
class SessionRun:
    """What the block of a session shares with the blocks of its agents.

    Attributes:
        session_id: the session.
        lease: the claim; None before there is one.
        executions: by agent, what former claims left; read when the session was taken over.
        failed_agent: the agent to name as the one that failed, if the session ends as FAILED.
        budget_spent: why no further agent began; then the session does not end as COMPLETED.
        left: the session's block was left; agents of other tasks may still run.
    """

    session_id: str
    lease: Lease | None = None
    executions: Mapping[str, AgentExecution] = field(default_factory=dict)
    failed_agent: str | None = None
    budget_spent: BudgetSpent | None = None
    left: bool = False

    @property
    def owned(self) -> Lease:
        """The lease; raises LeaseHeld where there is none."""
        if self.lease is None:
            raise LeaseHeld(f"session {self.session_id} was not claimed")
        return self.lease


class AgentRun(ClientContext[C]):
    """One agent's try, as a block.

    Where the agent had ended before this claim, `done` is True and `output` what it had stored:
    skip the work. Else set `output` (with a JSON form, at most 32 MB) before the block ends.

    Attributes:
        done: nothing is left to do.
        output: the agent's output.
        agent_name: the agent; `agent@key` where it has a key.
    """

    def __init__(
        self,
        client: C,
        session: SessionRun,
        agent_name: str,
        input_data: Any,
        critical: bool,
        variant: str | None,
        key: str | int | None = None,
        timeout: float | None = None,
        *,
        stops_body: bool = True,
    ) -> None:
        super().__init__(client)
        self.output: Any = None
        self.done = False
        execution_id = f"{session.session_id}-{agent_name}"
        self._execution_id, self.agent_name, _ = executions.execution_key(
            execution_id, name_with_key(agent_name, key)
        )
        self._begins_with: dict[str, Any] = {"status": ExecutionStatus.RUNNING}
        if input_data is not None:
            self._begins_with["input_data"] = OUTPUT("input_data", input_data)
        if variant is not None:
            self._begins_with["variant"] = executions.RULES["variant"]("variant", variant)
        self._session, self._critical = session, critical
        self._timeout = None if timeout is None else validation.above_zero("timeout", timeout)
        self._time_limit: AbstractAsyncContextManager[object] = nullcontext()
        if self._timeout is not None and stops_body:
            self._time_limit = client.time_limit(self._timeout)
        self._usage = NOTHING
        self._effects: set[str] = set()
        self._runs = False

    def usage(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cost_usd: float = 0.0,
        model: str | None = None,
    ) -> None:
        """Add to what this try has used; stored with its end, be it a failure, and counted once.

        Where the agent had ended before it was counted then, and nothing is added.

        The execution and the session hold the sums of all tries; the metrics `agent_tokens` and
        `agent_cost_usd` a sample for each try and kind, by agent and model.

        Args:
            input_tokens: tokens that were sent to the model.
            output_tokens: tokens that it made.
            cost_usd: what they cost.
            model: which one; at most 200 bytes, without '#'. The last one counts.

        Raises:
            InvalidRequest: a number is negative, not finite or of another type, or this is not
                within the agent's block.
        """
        self._check_running("usage(...)")
        used = self._usage.plus(input_tokens, output_tokens, cost_usd, model)
        if not self.done:
            self._usage = used

    @overload
    def once(
        self: AgentRun[AsyncClient],
        name: str,
        function: Callable[[], Any],
        *,
        in_doubt: InDoubt = ...,
    ) -> Coroutine[Any, Any, Any]: ...
    @overload
    def once(
        self: AgentRun[BlockingClient],
        name: str,
        function: Callable[[], Any],
        *,
        in_doubt: InDoubt = ...,
    ) -> Any: ...
    def once(self, name: str, function: Callable[[], Any], *, in_doubt: InDoubt = "raise") -> Any:
        """Let a side effect or a checkpoint happen once, and return its result in JSON form.

        One transaction reserves it, one stores the result (and chunks of a large one); where it is
        stored, later attempts, resumes and `from_agent` get it back, and the function is not
        called. In an event loop a plain function runs in a thread.

        Args:
            name: names the effect within this agent of this session; at most 200 bytes, no '#'.
            function: takes nothing; its result needs a JSON form, at most 32 MB.
            in_doubt: what to do where it was begun before and has no result: "raise"
                EffectInDoubt, "run" it again, or "skip" it, with None as its result for ever.

        Raises:
            EffectInDoubt: it was begun before: a worker died there, or the function raised.
            InvalidRequest: outside of the agent's block, a wrong value, or the same name is running
                in it at this moment; nothing was done. Or the result has no JSON form: it is in
                doubt then.
            LeaseLost: the session was taken over.
        """
        return self.waited(self._once(name, function, in_doubt))

    async def _once(self, name: str, function: Callable[[], Any], in_doubt: InDoubt) -> Any:
        check_function(self._client, function)
        lease, key = self._session.owned, (self._execution_id, self.agent_name)
        wanted = effect(self._client, lease, *key, name, in_doubt)
        self._check_running(f"once({name!r})")
        if self.done:
            raise InvalidRequest("name", f"{self.agent_name} is done: once({name!r}) is not for it")
        if name in self._effects:
            raise InvalidRequest("name", f"once({name!r}) is running already in this block")
        self._effects.add(name)
        try:
            return await wanted.once(function, in_doubt)
        finally:
            self._effects.discard(name)

    def _check_running(self, call: str) -> None:
        if not self._runs:
            raise InvalidRequest("agent_name", f"{call} belongs inside {self.agent_name}'s block")

    def will_be_retried(self) -> None:
        """Let a failure of this try be no end of the agent, critical or not."""
        self._critical = True

    async def __aenter__(self) -> Self:
        lease, name = self._session.owned, self.agent_name
        await self._find_ended()
        before = begin_block(lease, name)
        try:
            if name in lease.ended_agents and before is not Block.PASSED_OVER:
                self.output, self.done = await self._stored_output(), True
                self._runs = True
                return self
            self._session.budget_spent = None
            check_budget(lease)
            self._started = self._client.now()
            if self._timeout is not None:
                most = self._timeout + self._client.settings.lease_seconds
                lease.deadlines[name] = self._started + most
            await self._write(self._begins_with, self._session.executions.get(name))
            await self._time_limit.__aenter__()
            self._runs = True
        except BaseException as error:
            if isinstance(error, BudgetSpent):
                self._session.budget_spent = error
            lease.deadlines.pop(name, None)
            lease.blocks[name] = Block.RAISED if before is None else before
            raise
        return self

    async def _find_ended(self) -> None:
        """Read what the index, which lags, may not have shown when the session was taken over."""
        lease, name = self._session.owned, self.agent_name
        known = {*AGENTS, *lease.blocks, *lease.ended_agents, *self._session.executions}
        if lease.took_over and name not in known:
            stored = await self._client.executions.get(self._execution_id, name)
            if stored is not None and counts_as_ended(stored.status, stored.critical):
                lease.ended_agents = {*lease.ended_agents, name}

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        lease, caught, self._runs = self._session.owned, error, False
        if not self.done:
            try:
                await self._time_limit.__aexit__(kind, error, traceback)
            except TimeoutError:
                error = TimeoutError(f"{self.agent_name} took longer than {self._timeout:g} s")
        lease.deadlines.pop(self.agent_name, None)
        lease.blocks[self.agent_name] = Block.RAISED
        goes_on = await self._leave(error)
        if goes_on:
            lease.blocks[self.agent_name] = Block.PASSED_OVER
        elif error is None:
            lease.blocks[self.agent_name] = Block.ENDED
        elif error is not caught:
            raise error from caught
        return goes_on

    async def _leave(self, error: BaseException | None) -> bool:
        """Record the end; return whether the session goes on though the agent failed."""
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
                values["output_data"] = OUTPUT("output", self.output)
            except InvalidRequest as unusable:
                error = refused = unusable
        if error is not None:
            values = self._failure(error)
        self._note_failed_agent(values)
        await self._end(values, error, ended - self._started)
        # What could not be recorded is not passed over in silence.
        goes_on = self.done and not self._critical
        if refused is not None and not goes_on:
            raise refused
        return goes_on and isinstance(error, Exception)

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
            NOTHING if seconds is None else self._usage,
        )
        if seconds is not None:
            used, self._usage = self._usage, NOTHING
            self._session.owned.cost_usd += used.cost_usd
            agent_used(self._client, self.agent_name, used)
