"""One agent's run in a tracked session, as a block."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self, overload

from tdev_models import telemetry, validation
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient
from tdev_models.dynamodb.client_context import C, ClientContext
from tdev_models.errors import (
    BudgetSpent,
    InvalidRequest,
    LeaseLost,
    TdevError,
)
from tdev_models.models.execution import agent_of
from tdev_models.results import ExecutionStatus
from tdev_models.services.agent_names import begin_block, end_block, name_with_key
from tdev_models.services.beginnings import Beginning
from tdev_models.services.effects import InDoubt, check_function, effect
from tdev_models.services.executions import RULES
from tdev_models.services.owned_execution import OwnedExecution
from tdev_models.services.payloads import checked_payload
from tdev_models.services.session_run import SessionRun
from tdev_models.services.sessions import error_text, real_error, shortened
from tdev_models.services.usage import NOTHING, check_budget
from tdev_models.workers.bindings import enter_agent, leave_agent, stop_around
from tdev_models.workers.lease import Block, lease_lost_error
from tdev_models.workers.presence import Presence

_log = logging.getLogger(__name__)

OUTPUT = validation.json_text(objects_only=True)


class AgentRun(ClientContext[C, bool]):
    """One agent's try, as a block.

    Where the agent had ended before this claim, `done` is True and `output` what it had stored:
    skip the work. Else set `output` (with a JSON form, at most 32 MB) before the block ends, or
    call `fail`. An error that leaves the block ends the agent as FAILED. A cancellation, Ctrl-C or
    `sys.exit` is no failure: the agent is PENDING again, and its attempt CANCELLED.

    Attributes:
        done: nothing is left to do.
        output: the agent's output.
        agent_name: the agent; `agent@key` where it has a key.
        status: COMPLETED or FAILED once it has ended, be it before this claim; RUNNING in its
            block, else what is stored, None where nothing is.
        error: why it failed, in this try or, until that has ended, in the one before.
    """

    def __init__(
        self,
        session: SessionRun[C],
        agent_name: str,
        input_data: Any,
        critical: bool,
        variant: str | None,
        retry_failed: bool = False,
        key: str | int | None = None,
        timeout: float | None = None,
        *,
        stops_body: bool = True,
    ) -> None:
        super().__init__(session.client)
        self.output: Any = None
        self.done = False
        self._execution = OwnedExecution(session, name_with_key(agent_name, key))
        self._execution_id, self.agent_name = self._execution.key
        self._input = input_data
        if variant is not None:
            self._execution.begins_with["variant"] = RULES["variant"]("variant", variant)
        self._session, self._critical = session, validation.flag("critical", critical)
        self._retry_failed = validation.flag("retry_failed", retry_failed)
        self._reason: str | None = None
        self._timeout = None if timeout is None else validation.above_zero("timeout", timeout)
        self._block = self._client.time_limit(self._timeout if stops_body else None)
        self._span = telemetry.Span()
        self._effects: set[str] = set()
        self._begun = self._runs = False
        self._process = 0

    @property
    def status(self) -> str | None:
        """COMPLETED or FAILED once it has ended, RUNNING in its block, else what is stored."""
        if self._runs and not self.done:
            return ExecutionStatus.RUNNING
        return self._execution.status

    @property
    def error(self) -> str | None:
        """Why it failed."""
        is_known = self._reason or (self._runs and not self.done)
        return self._reason if is_known else self._execution.error

    def fail(self, reason: str, *, critical: bool | None = None) -> None:
        """Let the agent end as FAILED at the end of its block, though no error leaves it.

        For agents that return what went wrong. Writes nothing yet; `output` is not stored. Where
        the agent is critical the session will end as FAILED, unless the agent is tried again with
        success.

        Args:
            reason: becomes the `error_message`; what passes 4 KB is cut.
            critical: overrides what the block was made with.

        Raises:
            InvalidRequest: reason is no text or empty, critical is neither True nor False, or the
                agent had ended before.
        """
        if not isinstance(reason, str) or not reason:
            raise InvalidRequest("reason", "must be a text that says what went wrong")
        if self.done:
            raise InvalidRequest("reason", f"agent {self.agent_name} has ended already")
        if critical is not None:
            self._critical = validation.flag("critical", critical)
        self._reason = shortened(reason)

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

        The execution and the session hold the sums of all tries; the metrics `agent_tokens` (sent
        and made ones together) and `agent_cost_usd` a sample for each try that used any, by agent
        and model.

        Args:
            input_tokens: tokens that were sent to the model.
            output_tokens: tokens that it made.
            cost_usd: what they cost, to 12 decimals.
            model: which one; at most 200 bytes, without '#'. The last one counts.

        Raises:
            InvalidRequest: a number is negative, above 1e15 or of another type, or this is not
                within the agent's block.
        """
        self._check_running("usage(...)")
        used = self._execution.usage.plus(input_tokens, output_tokens, cost_usd, model)
        if not self.done:
            self._execution.usage = used

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
        key = self._execution.key
        wanted = effect(self._client, self._session.owned, *key, name, in_doubt)
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
        await self._client.turn()
        lease, name = self._session.owned, self.agent_name
        if self._begun:
            problem = f"this block of {name!r} was entered before; make another with agent(...)"
            raise InvalidRequest("agent_name", problem)
        try:
            await self._execution.find_ended()
        except BaseException as error:
            self._note_unbegun(error)
            raise
        before = begin_block(lease, name)
        try:
            self._execution.stored = lease.executions.get(name)
            again = self._may_be_retried() or before is Block.PASSED_OVER
            if name in lease.ended_agents and not again:
                self.output, self.done = await self._execution.output(), True
                lease.failures.pop(name, None)  # of an entry that raised
            else:
                await self._begin()
            self._runs = True
        except BaseException as error:
            self._end_span(error)
            self._note_unbegun(error)
            lease.deadlines.pop(name, None)
            lease.blocks[name] = before or Block.RAISED
            raise
        return self

    def _note_unbegun(self, error: BaseException) -> None:
        if isinstance(error, BudgetSpent) or (self._critical and isinstance(error, Exception)):
            self._session.owned.failures[self.agent_name] = error_text(error)

    async def _begin(self) -> None:
        lease = self._session.owned
        if Presence.draining:
            lease.stopped = True
            stop_around()
            await self._client.interrupt()
        if self._input is not None:
            self._execution.begins_with["input_data"] = await self._encoded(
                "input_data", self._input
            )
        check_budget(lease)
        self._started = self._client.now()
        if self._timeout is not None:
            most = self._timeout + self._client.settings.lease_seconds
            lease.deadlines[self.agent_name] = self._started + most
        lease.check()
        self._begun, self._process = True, os.getpid()
        self._span = telemetry.active.agent(
            self._session.span, self._session.session_id, agent_of(self.agent_name)
        )
        self._span.enter()
        self._beginning = Beginning(self._client, lease, self.agent_name, self._block)
        try:
            await self._beginning.send(self._execution.begin(self._started))
        except BaseException as error:
            if self._session.is_interruption(error):
                await self._leave_after_begin(error)
            raise
        await self._block.__aenter__()
        self._around = enter_agent(lease, self.agent_name)

    def _may_be_retried(self) -> bool:
        return self._retry_failed and self.status == ExecutionStatus.FAILED

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            return await self._exit(kind, error, traceback)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._end_span(error)

    def _end_span(self, error: BaseException | None) -> None:
        if error is not None and not self._session.is_interruption(error):
            self._span.fail(real_error(error))
        elif error is None and self.status == ExecutionStatus.FAILED:
            self._span.fail(None)
        self._span.end(self.status)

    async def _exit(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        lease, caught, was_done, self._runs = self._session.owned, error, self.done, False
        lease.deadlines.pop(self.agent_name, None)
        goes_on = False
        try:
            if not was_done:
                error = await self._end_block(kind, error, traceback)
                leave = self._leave_after_begin(error)
                # A cancellation waits for what the agent has made, however large it is.
                goes_on = await (leave if error is not None else self._client.shielded(leave))
        finally:
            lease.blocks[self.agent_name] = Block.RAISED
        if goes_on or (error is None and self._failed_optionally and not was_done):
            lease.blocks[self.agent_name] = Block.PASSED_OVER
        elif error is None:
            end_block(lease, self.agent_name)
        elif error is not caught:
            raise error from caught
        return goes_on

    async def _end_block(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> BaseException | None:
        """Return the error with which the block ends."""
        leave_agent(self._around)
        try:
            await self._block.__aexit__(kind, error, traceback)
        except TimeoutError:
            caught, late = error, f"{self.agent_name} took longer than {self._timeout or 0:g} s"
            error = self._beginning.refused or TimeoutError(late)
            error.__cause__ = caught  # its traceback says where
        if self._around.stopped and (error is None or self._client.is_stray_cancellation(error)):
            # A group of tasks swallows that one of them was cancelled, or shows it as its error.
            try:
                await self._client.interrupt()
            except BaseException as interruption:
                error = interruption
        return error

    @property
    def _failed_optionally(self) -> bool:
        return self.status == ExecutionStatus.FAILED and not self._critical

    async def _leave_after_begin(self, error: BaseException | None) -> bool:
        try:
            await self._beginning.end(self._session.seconds_for(error, anew=True))
            return await self._leave(error)
        finally:
            self._session.rest()

    async def _leave(self, error: BaseException | None) -> bool:
        """Record the end; return whether the session goes on though the agent failed."""
        # What a forked child leaves, but did not enter, goes on in its parent.
        if self._session.owned.is_lost_by(error) or self._process != os.getpid():
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
                values["output_data"] = await self._encoded("output", self.output)
            except InvalidRequest as unusable:
                error = refused = unusable
                _log.warning("%s: its output cannot be stored", self._execution_id)
        await self._end({**values, **self._end_of(error)}, error)
        # What could not be recorded is not passed over in silence.
        goes_on = self.done and self._is_optional(error)
        if refused is not None and not goes_on:
            raise refused
        return goes_on and error is not None

    def _end_of(self, error: BaseException | None) -> dict[str, Any]:
        """Return the fields of the execution as the block leaves it."""
        if error is None and self._reason is None:
            return {"status": ExecutionStatus.COMPLETED}
        if self._session.is_interruption(error):
            return {"status": ExecutionStatus.PENDING}
        self._reason = self._reason if error is None else error_text(error)
        failed = {"status": ExecutionStatus.FAILED, "error_message": self._reason}
        return {**failed, "critical": False} if self._is_optional(error) else failed

    def _is_optional(self, error: BaseException | None) -> bool:
        """Return whether the session goes on after a failure: not where a group interrupts it."""
        return not self._critical and (
            error is None
            or isinstance(error, Exception)
            or self._client.is_stray_cancellation(error)
        )

    async def _encoded(self, field: str, value: Any) -> str:
        """Return the JSON text of a payload."""
        text: str = await checked_payload(self._client, value, lambda: OUTPUT(field, value))
        return text

    async def _end(self, values: Mapping[str, Any], error: BaseException | None) -> None:
        """Record the end; where that fails after an error, the error says so in a note."""
        if error is not None:
            self._session.owned.raised.append((real_error(error), self.agent_name))
        if self._execution.usage is not NOTHING:
            self._span.use(**asdict(self._execution.usage))
        try:
            await self._execution.end(values, error, self._started, self._client.now())
        except LeaseLost:
            raise
        except TdevError as unrecorded:
            if error is None:
                if self._critical:
                    self._session.owned.note_end(self.agent_name, error_text(unrecorded))
                raise
            error.add_note(f"the end of {self._execution_id} is not recorded: {unrecorded}")
            self._note_failure(values["status"])
            return
        if self.status == ExecutionStatus.FAILED:
            self._reason = self.error or "FAILED by update_agent_execution"
        self.done = self.status in (ExecutionStatus.COMPLETED, ExecutionStatus.FAILED)
        outputs = self._session.owned.outputs
        # A call inside the block may have stored one.
        if self.status == ExecutionStatus.COMPLETED and self.output is not None:
            outputs[self.agent_name] = self.output
        elif self.status == ExecutionStatus.COMPLETED:
            self.output = outputs.setdefault(self.agent_name, None)
        self._note_failure(self.status)

    def _note_failure(self, status: str | None) -> None:
        """Remember a critical failure, until the agent was tried again with success."""
        if status == ExecutionStatus.FAILED and self._critical:
            self._session.owned.note_end(self.agent_name, self.error or "")
        elif status != ExecutionStatus.PENDING:
            self._session.owned.note_end(self.agent_name, None)
