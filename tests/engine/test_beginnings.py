"""An agent begins to work while the write that says so is under way."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping
from typing import Any

import pytest

from tdev_models import (
    AccessDenied,
    LeaseLost,
    Settings,
    Throttled,
    Unavailable,
    abandon_session,
    get_agent_execution,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests.faults import Fault, Outage, injected


class Gate:
    """Keeps transactions back while it is shut."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.waiting = asyncio.Event()

    def wrap(self, send: settings.Transport) -> settings.Transport:
        async def gated(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if operation == "TransactWriteItems" and not self.open.is_set():
                self.waiting.set()
                await self.open.wait()
            return await send(operation, request)

        return gated


async def test_an_agent_works_before_its_begin_is_stored(strict_store: Settings) -> None:
    gate = Gate()
    with settings.use(strict_store, transport=gate.wrap):
        async with track_session("s") as session:
            async with session.agent("parser", input_data={"a": 1}) as run:
                await gate.waiting.wait()
                assert run.status == "RUNNING"
                run.output = {"b": 2}
                asyncio.get_running_loop().call_later(0.1, gate.open.set)
    execution = await get_agent_execution("s-parser")
    assert (execution.input_data, execution.output_data) == ({"a": 1}, {"b": 2})
    (attempt,) = execution.attempts
    assert (execution.status, attempt.status, execution.retry_count) == ("COMPLETED",) * 2 + (0,)


async def test_calls_in_the_block_come_after_its_begin(strict_store: Settings) -> None:
    gate = Gate()
    with settings.use(strict_store, transport=gate.wrap):
        async with track_session("s") as session, session.agent("parser"):
            asyncio.get_running_loop().call_later(0.1, gate.open.set)
            assert (await get_agent_execution("s-parser")).status == "RUNNING"
            assert (await get_pipeline_session("s")).current_agent == "parser"


async def test_an_end_by_a_call_is_not_overtaken_by_the_begin(strict_store: Settings) -> None:
    gate = Gate()
    with settings.use(strict_store, transport=gate.wrap):
        async with track_session("s") as session:
            with pytest.raises(ValueError, match="stop"):
                async with session.agent("parser"):
                    asyncio.get_running_loop().call_later(0.1, gate.open.set)
                    await update_agent_execution(
                        execution_id="s-parser", status="FAILED", error_message="no grammar"
                    )
                    raise ValueError("stop")
    execution = await get_agent_execution("s-parser")
    assert (execution.status, execution.retry_count) == ("FAILED", 0)


@pytest.mark.parametrize("end", ["abandon", "save"])
async def test_a_session_that_is_ended_in_the_block_ends_after_the_begin(
    strict_store: Settings, end: str
) -> None:
    gate = Gate()
    with settings.use(strict_store, transport=gate.wrap):
        async with track_session("s") as session, session.agent("parser") as run:
            asyncio.get_running_loop().call_later(0.1, gate.open.set)
            if end == "abandon":
                await abandon_session("s", "enough")
            else:
                await save_pipeline_session(session_id="s", status="COMPLETED")
            run.output = 1
    assert (await get_agent_execution("s-parser")).output_data == 1


async def test_a_blocking_write_in_the_loop_is_refused_instead_of_hanging(
    strict_store: Settings,
) -> None:
    gate = Gate()
    with settings.use(strict_store, transport=gate.wrap):
        async with track_session("s") as session, session.agent("parser"):
            with pytest.raises(RuntimeError, match="use the awaitable functions"):
                sync.save_pipeline_session(session_id="s", project_name="p")
            assert sync.get_pipeline_session("s").current_agent is None  # a read does not wait
            gate.open.set()


async def test_a_refused_begin_stops_the_agent(strict_store: Settings) -> None:
    with injected(Fault("denied", operation="TransactWriteItems")):
        async with track_session("s") as session:
            with pytest.raises(AccessDenied):
                async with session.agent("parser"):
                    await asyncio.sleep(30)
            async with session.agent("parser") as run:
                run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_begin_that_is_refused_late_stops_the_agent(strict_store: Settings) -> None:
    gate = Gate()
    with injected(Fault("denied", operation="TransactWriteItems")) as fault:
        refusing = settings.current().transport
        assert callable(refusing)
        with settings.use(transport=lambda send: gate.wrap(refusing(send))):
            async with track_session("s") as session:
                with pytest.raises(AccessDenied) as raised:
                    async with session.agent("parser") as run:
                        gate.open.set()
                        await asyncio.sleep(30)
                assert isinstance(raised.value.__cause__, asyncio.CancelledError)
                assert (run.status, fault.hit) == ("FAILED", True)
                async with session.agent("parser") as run:
                    run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_who_has_lost_the_session_stops_with_the_answer_to_its_begin(
    strict_store: Settings,
) -> None:
    with pytest.raises(LeaseLost):
        async with track_session("s") as session:
            lease = session.lease
            assert lease is not None
            lease.token = "another"  # as if somebody had claimed it, and its worker not been told
            async with session.agent("parser"):
                await asyncio.sleep(30)


@pytest.mark.parametrize("error", [Unavailable, Throttled])
async def test_a_begin_that_is_given_up_is_stored_with_the_end(
    strict_store: Settings, error: type[Exception]
) -> None:
    outage = Outage(1.0, error)
    with settings.use(
        strict_store, transport=outage.wrap, retry_seconds=0, owner_retry_seconds=0.2
    ):
        async with track_session("s") as session:
            outage.begin()
            async with session.agent("parser", input_data={"a": 1}, variant="v") as run:
                await asyncio.sleep(1.2)
                run.output = {"b": 2}
    execution = await get_agent_execution("s-parser")
    assert (execution.input_data, execution.output_data) == ({"a": 1}, {"b": 2})
    assert (execution.status, execution.variant) == ("COMPLETED", "v")


async def test_a_begin_is_awaited_where_nothing_may_be_done_twice(strict_store: Settings) -> None:
    stored = settings.use(strict_store, cancel_when_out_of_touch=True)
    with stored, injected(Fault("denied", operation="TransactWriteItems")):
        worked = False
        with pytest.raises(AccessDenied):
            async with track_session("s") as session, session.agent("parser"):
                worked = True
        assert not worked


async def test_who_is_cancelled_while_beginning_hands_back_at_once(strict_store: Settings) -> None:
    gate, inside = Gate(), asyncio.Event()

    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("parser"):
            inside.set()
            await asyncio.sleep(30)

    with settings.use(strict_store, transport=gate.wrap):
        task = asyncio.create_task(pipeline())
        await inside.wait()
        asyncio.get_running_loop().call_later(0.1, gate.open.set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await get_agent_execution("s-parser")).status == "PENDING"
    async with await resume_pipeline("s") as resume, resume.agent("parser") as run:
        run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_begin_that_is_refused_at_once_is_raised_once(strict_store: Settings) -> None:
    """And not logged as an error of a task that nobody has asked for."""
    unasked: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unasked.append(context))

    def refusing(send: settings.Transport) -> settings.Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if operation == "TransactWriteItems":
                raise AccessDenied("injected: not allowed")
            return await send(operation, request)

        return sent

    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("parser"):
            pytest.fail("it has begun")

    with settings.use(strict_store, transport=refusing), pytest.raises(AccessDenied):
        await pipeline()
    gc.collect()
    assert unasked == []
