"""Run a pipeline so that it is remembered: own its session, renew the lease, track each agent."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVarTuple, overload

from tdev_models import validation
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient
from tdev_models.dynamodb.client_context import C
from tdev_models.dynamodb.encryption import encrypt_fields
from tdev_models.dynamodb.expressions import replace_fields
from tdev_models.errors import (
    AccessDenied,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    TdevError,
    shown,
)
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.services.agent_calls import ATTEMPTS, run_agent
from tdev_models.services.agent_runs import AgentRun
from tdev_models.services.effects import check_function
from tdev_models.services.owned_session import OwnedSession
from tdev_models.services.progress import Work, work_so_far
from tdev_models.services.sessions import (
    checked_session,
    error_text,
    lease_held_error,
    real_error,
    shortened,
)
from tdev_models.services.usage import is_raised
from tdev_models.workers.bindings import Binding, bind_lease, current_lease, unbind_lease
from tdev_models.workers.budget import tried_anew
from tdev_models.workers.claims import enter_claim, may_take_over
from tdev_models.workers.lease import Lease
from tdev_models.workers.leased_writes import leased_update
from tdev_models.workers.releases import why_too_old
from tdev_models.workers.users import check_user

Ts = TypeVarTuple("Ts")

_CLAIMS = 5


class Tracker(OwnedSession[C]):
    """A session that this process owns from entry to exit.

    On entry the session is created or claimed, and this process becomes a worker, whose heartbeat
    keeps all that it runs. On exit it ends, unless it was ended inside, or a forked child leaves
    the block: as FAILED where an error leaves it, a critical agent is left failed or `fail` was
    called, with the agent that failed and its error; else as COMPLETED. A cancellation, Ctrl-C or
    `sys.exit` hands it back: it stays ACTIVE without an owner, for any worker to resume at once,
    and counts as no failure. When the lease is lost the task is cancelled, and the block raises
    `LeaseLost`; blocking code learns of it at its next write.

    In a block of the same session, which this task owns, it joins that one: the outer block ends
    the session.

    Attributes:
        session_id: the session.
        start_agent: the first agent that still has to run; None when all have ended.
    """

    def __init__(self, client: C, session_id: str, values: Mapping[str, Any]) -> None:
        super().__init__(client, session_id)
        self._values = values
        self._joined = 0  # how many blocks have joined an outer one
        self._entered = False

    def agent(
        self,
        agent_name: str,
        input_data: Any = None,
        *,
        critical: bool = True,
        variant: str | None = None,
        retry_failed: bool = False,
        key: str | int | None = None,
        timeout: float | None = None,
    ) -> AgentRun[C]:
        """Return the block in which one agent runs.

        A block of the same agent and key is entered once under a claim, and another one where it
        raised, or where that of an agent around it did: what had ended then hands back its output.

        Args:
            agent_name: one of the pipeline's (the setting `agents`), or one of your own.
            input_data: any value with a JSON form, at most 32 MB; a string is stored as one.
            critical: False lets the session go on when the agent fails.
            variant: of an A/B test, which the execution and the agent's metrics then name.
            retry_failed: try again what failed before without being critical.
            key: tells the runs of an agent that runs more than once apart: text of at most 200
                bytes without '#', or a whole number. Each is an execution of its own, `agent@key`;
                none counts in `progress`.
            timeout: seconds. In an event loop the block is cancelled then, raises TimeoutError, and
                the agent is FAILED. Where that cannot be (code that blocks), the session can be
                taken over a lease later, though its worker lives.

        Raises:
            InvalidRequest: a wrong value.
            On entry: InvalidRequest, input has no JSON form or is too large, or the same agent and
            key is running or has ended under this claim; BudgetSpent; LeaseLost.
        """
        return AgentRun(
            self._run, agent_name, input_data, critical, variant, retry_failed, key, timeout
        )

    @overload
    def run(
        self: Tracker[AsyncClient],
        agent_name: str,
        function: Callable[[*Ts], Any],
        *args: *Ts,
        input_data: Any = ...,
        timeout: float | None = ...,
        attempts: int = ...,
        critical: bool = ...,
        key: str | int | None = ...,
        variant: str | None = ...,
        usage: Callable[[Any], Mapping[str, Any]] | None = ...,
    ) -> Coroutine[Any, Any, Any]: ...
    @overload
    def run(
        self: Tracker[BlockingClient],
        agent_name: str,
        function: Callable[[*Ts], Any],
        *args: *Ts,
        input_data: Any = ...,
        timeout: float | None = ...,
        attempts: int = ...,
        critical: bool = ...,
        key: str | int | None = ...,
        variant: str | None = ...,
        usage: Callable[[Any], Mapping[str, Any]] | None = ...,
    ) -> Any: ...
    def run(
        self,
        agent_name: str,
        function: Callable[[*Ts], Any],
        *args: *Ts,
        input_data: Any = None,
        timeout: float | None = None,
        attempts: int = 1,
        critical: bool = True,
        key: str | int | None = None,
        variant: str | None = None,
        usage: Callable[[Any], Mapping[str, Any]] | None = None,
    ) -> Any:
        """Run one agent as a call: store what its function returns, and return that.

        Where the agent had ended before this claim, its stored output is returned and the function
        not called. To make no difference between the two, the result is returned in the JSON form
        in which it is stored. In an event loop a coroutine function is awaited; a plain one runs in
        a thread, so that the loop goes on, with the settings and the lease of the caller.

        Args:
            agent_name: as for `agent`; input_data, variant and key, too.
            function: the agent.
            args: what it is called with.
            input_data: what to store as the agent's input; `args` are not stored.
            timeout: seconds for each attempt. A coroutine is cancelled; a plain function is
                abandoned in its thread, where it may still do something: its result is discarded.
            attempts: how often it is called at most. Each failure is stored as an attempt, and the
                next waits, in full jitter, up to a second, doubled each time, at most a minute.
            critical: False: where the last attempt fails, that is stored, None is returned, and the
                session goes on.
            key: see `agent`.
            variant: see `agent`.
            usage: takes the result as the function returned it, and returns the keywords of
                `AgentRun.usage`.

        Raises:
            InvalidRequest: a wrong value, nothing was called; or the result has no JSON form.
            TimeoutError: the last attempt took longer.
            Exception: what the last attempt raised, where the agent is critical.
            BudgetSpent, LeaseLost: as on entry of `agent`.
        """
        check_function(self._client, function)
        ATTEMPTS("attempts", attempts)
        timeout = None if timeout is None else validation.above_zero("timeout", timeout)
        if usage is not None and (not callable(usage) or inspect.iscoroutinefunction(usage)):
            problem = f"must be a plain function of the result, not {shown(usage)}"
            raise InvalidRequest("usage", problem)

        def begin() -> AgentRun[C]:
            return AgentRun(
                self._run,
                agent_name,
                input_data,
                critical,
                variant,
                key=key,
                timeout=timeout,
                stops_body=False,  # it is the function that is stopped
            )

        begin()  # checks what is given
        work = run_agent(self._client, begin, function, args, timeout, attempts, usage)
        return self.waited(work)

    def fail(self, reason: str) -> None:
        """Let the session end as FAILED at the end of its block, though no error leaves it.

        Writes nothing yet.

        Args:
            reason: becomes the `error_message`; what passes 4 KB is cut.

        Raises:
            InvalidRequest: reason is no text or empty.
        """
        if not isinstance(reason, str) or not reason:
            raise InvalidRequest("reason", "must be a text that says what went wrong")
        self.owned.reason = shortened(reason)

    def __aenter__(self) -> Coroutine[Any, Any, Self]:
        outer, mine = current_lease(self._client, self.session_id), self._run.lease
        if outer is not None and not outer.over and (mine is None or mine is outer):
            return self._join(outer)
        if self._entered or self._joined:
            problem = f"the block of {self.session_id!r} runs in another task or thread"
            raise InvalidRequest("session_id", f"{problem}; make another with track_session")
        # Not in the coroutine: `asyncio.wait_for` of Python 3.11 runs that in a task of its own.
        self._canceller, self._entered = self._client.task_canceller(), True
        binding = bind_lease(self._client, self.session_id)
        if self._run.lease is None:
            self._run.begin_span(self._values.get("pipeline_type"))
        self._run.span.enter()
        return self._enter(binding)

    async def _join(self, outer: Lease) -> Self:
        if self._values:
            place = (self.session_id,)
            values = await encrypt_fields(self._client, PipelineSession, place, self._values)
            actions = replace_fields(PipelineSession, values)
            if is_raised(outer, self._values.get("budget_usd", outer.budget_usd)):
                actions += tried_anew()
            user_id = self._values.get("user_id")
            await leased_update(self._client, outer, actions, user_id=user_id)
        self._joined += 1
        self._run.lease, self.start_agent = outer, outer.start_agent
        return self

    async def _enter(self, binding: Binding) -> Self:
        try:
            await self._client.turn()
            if self._run.lease is None:
                await self._create_or_claim()
            lease = self.owned
            lease.check()
            if lease.lease_expires is not None:
                await enter_claim(self._client, lease)
            binding.lease, lease.process, lease.canceller = lease, os.getpid(), self._canceller
        except BaseException as error:
            self._entered = False
            await self.hand_back(error)
            raise
        finally:
            binding.pending = False
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if self._joined:
            self._joined -= 1
            return False
        lease = self.owned
        if lease.inherited:
            return False
        self._run.left, self._entered = True, False
        unbind_lease(lease)
        try:
            interrupted = await self._canceller.close()
            if lease.lost and (interrupted or error is None):
                raise lease.lost from error
            try:
                await self._leave(error, interrupted)
            finally:
                self.let_go()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._run.end_span(error)
        return False

    async def _leave(self, error: BaseException | None, interrupted: bool) -> None:
        lease = self.owned
        if lease.over or lease.is_lost_by(error):
            return
        if error is None and not lease.stopped:
            await self.end()
            return
        self._run.interrupted = interrupted or lease.stopped
        cause = error and real_error(error)
        # A missing permission is the worker's trouble: the session is for one that has it.
        if error is None or isinstance(cause, AccessDenied) or self._run.is_interruption(error):
            await self.hand_back(error)
            if error is None:  # a group of tasks swallows that one of them was cancelled
                await self._client.interrupt()
            return
        try:
            await self.end_as_failed(error_text(error), self.agent_of(real_error(error)))
        except TdevError as unrecorded:
            error.add_note(f"session {self.session_id} is not marked FAILED: {unrecorded}")

    @overload
    def release(self: Tracker[AsyncClient]) -> Coroutine[Any, Any, None]: ...
    @overload
    def release(self: Tracker[BlockingClient]) -> None: ...
    def release(self) -> Any:
        """Hand the session back now: it stays ACTIVE without an owner, due at once.

        The next look of any worker takes it; it counts as no failure. What the block still does of
        it is refused, but that agents which run already end. One UpdateItem.

        Raises:
            LeaseLost: the session was taken over, or has ended.
        """
        return self.waited(self._release())

    async def _release(self) -> None:
        await leased_update(self._client, self.owned, [], ends=SessionStatus.ACTIVE)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session_id!r}, start_agent={self.start_agent!r})"

    async def _create_or_claim(self) -> None:
        seen = await self._client.sessions.get(self.session_id)
        for tries in range(_CLAIMS):
            if seen is None:
                seen = PipelineSession(self.session_id)
            check_user(seen, self._values.get("user_id"))
            if seen.status in (SessionStatus.COMPLETED, SessionStatus.ABANDONED):
                what = f"session {self.session_id}"
                raise InvalidTransition(what, seen.status, "ACTIVE", "a new run takes another id")
            if reason := why_too_old(self._client, seen):
                raise LeaseHeld(f"session {self.session_id}: {reason}; leave it to newer workers")
            resumed = seen.status == SessionStatus.FAILED or seen.lease_token is not None
            # Who was quicker lives, even where its lease seems to be over.
            if seen.lease_token is not None and (
                tries or not await may_take_over(self._client, seen)
            ):
                raise lease_held_error(self._client, seen)
            work: Work | None = None
            if seen.status is not None:
                work = await work_so_far(self._client, seen)
            afresh = is_raised(seen, self._values.get("budget_usd", seen.budget_usd))
            refused = await self.claim(seen, self._values, resumed=resumed, afresh=afresh)
            if refused is None:
                if work is not None:
                    await self.take_over(seen, work)
                else:
                    self.start_agent = self._client.settings.agents[0]
                    self.owned.start_agent = self.start_agent
                return
            seen = refused  # as others have changed it meanwhile
        raise lease_held_error(self._client, seen or PipelineSession(self.session_id))


def track_session(client: C, /, session_id: str, **more: Any) -> Tracker[C]:
    """Return the block in which a session runs: create or claim, heartbeat, end.

    A session that FAILED, or whose owner's lease ran out, goes on: agents that had ended hand back
    their outputs. Calls on the session inside the block carry its lease. It ends as FAILED where an
    error leaves the block; AccessDenied hands it back, to a worker that has the permission.

    Args:
        session_id: the session; the plan uses the project's id.
        more: fields of the session, as `save_pipeline_session` takes them, except status and
            progress; inside a block of the same session they are written there, too. When its
            agents have cost `budget_usd` the next one raises BudgetSpent.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value.
        On entry: InvalidRequest, another task or thread is in this block; WrongUser, the session
            belongs to another user than `user_id`; LeaseHeld, another worker owns it;
            InvalidTransition, it has ended for good; PayloadDamaged, an output of an ended agent
            cannot be read. On exit: LeaseLost.
    """
    for field in ("status", "progress"):
        if field in more:
            raise InvalidRequest(field, "is kept by the tracker; leave it out")
    values = checked_session({"session_id": session_id}, more)
    return Tracker(client, values.pop("session_id"), values)
