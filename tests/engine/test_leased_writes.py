"""Writes of an owner: never cut in two, one at a time, none after the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from tdev_models import (
    LeaseLost,
    Settings,
    Tracker,
    abandon_session,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.retry import wait_until
from tdev_models.settings import Transport
from tests.engine.test_beginnings import Gate
from tests.faults import Fault, injected

_BLOCKING_IN_A_LOOP = """
import asyncio, sys
from tdev_models import configure, save_pipeline_session, sync, track_session

under_way, may_go_on = asyncio.Event(), asyncio.Event()
may_go_on.set()

def held_up(send):
    async def sent(operation, request):
        if not may_go_on.is_set():
            under_way.set()
            await may_go_on.wait()
        return await send(operation, request)
    return sent

async def main():
    async with track_session("s"):
        may_go_on.clear()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(save_pipeline_session(session_id="s", project_name="awaitable"))
            await under_way.wait()
            try:
                sync.save_pipeline_session(session_id="s", project_name="blocking")
            finally:
                may_go_on.set()

environment, endpoint = sys.argv[1:]
configure(environment=environment, region="us-east-1", endpoint=endpoint, automatic_metrics=False,
          transport=held_up)
asyncio.run(main())
"""


async def test_a_write_that_is_cancelled_under_way_is_finished_first(
    strict_store: Settings,
) -> None:
    async def reply_late() -> None:
        await asyncio.sleep(0.3)

    fault = Fault("resent", operation="TransactWriteItems", nth=2, between=reply_late)
    with injected(fault), pytest.raises(asyncio.CancelledError):
        async with track_session("s") as session:
            block = session.agent("nl_input")
            run = await block.__aenter__()
            run.output = 1
            ending = asyncio.create_task(block.__aexit__(None, None, None))
            await asyncio.sleep(0.1)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            assert session.owned.ended_agents == {"nl_input"}
            async with session.agent("ui_selection") as run:
                run.output = 2
            assert (await get_pipeline_session("s")).progress == 2
            raise asyncio.CancelledError


async def test_after_its_end_inside_the_block_a_session_takes_no_more_calls(
    store: Settings,
) -> None:
    async with track_session("s"):
        await save_pipeline_session(session_id="s", status="FAILED")
        for late in (
            save_pipeline_session(session_id="s", status="ACTIVE"),
            update_agent_execution(execution_id="s-parser", status="RUNNING"),
        ):
            with pytest.raises(LeaseLost):
                await late
    assert (await get_pipeline_session("s")).status == "FAILED"
    again = await resume_pipeline("s")
    async with again:
        pass
    with pytest.raises(LeaseLost):
        await again.__aenter__()


async def test_abandoning_inside_the_block_waits_for_a_write_under_way(
    store: Settings,
) -> None:
    async with track_session("s") as session:
        with session.owned.write_lock:
            abandoning = asyncio.create_task(abandon_session("s", "enough"))
            await asyncio.sleep(0.1)
            assert (await get_pipeline_session("s")).status == "ACTIVE"
        await abandoning
    assert (await get_pipeline_session("s")).status == "ABANDONED"


async def test_hundreds_that_wait_for_their_write_do_not_look_for_it_all_the_time(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    async def sleep(self: AsyncClient, seconds: float) -> None:
        looks.append(seconds)
        await asyncio.sleep(seconds)

    async with track_session("s") as session:
        with session.owned.write_lock, monkeypatch.context() as patched:
            patched.setattr(AsyncClient, "sleep", sleep)
            writes = [
                asyncio.create_task(save_pipeline_session(session_id="s", metadata=[number]))
                for number in range(300)
            ]
            assert await wait_until(lambda: len(looks) >= 900, asyncio.sleep, 0.05, 60)
        await asyncio.gather(*writes)
    assert looks[0] < 0.01
    assert max(looks) > 0.1


async def test_an_owner_that_abandons_what_another_has_abandoned_has_lost_it(
    strict_store: Settings,
) -> None:
    with pytest.raises(LeaseLost):
        async with track_session("s"):
            thread = threading.Thread(target=sync.abandon_session, args=("s", "on call"))
            thread.start()
            thread.join()
            with pytest.raises(LeaseLost):
                await save_pipeline_session(session_id="s", status="ABANDONED", metadata=[1])
    found = await get_pipeline_session("s")
    assert (found.error_message, found.metadata) == ("on call", None)
    assert (await abandon_session("s", "again")).error_message == "again"


def test_a_blocking_call_in_the_way_of_an_awaitable_one_is_refused(strict_store: Settings) -> None:
    command = [sys.executable, "-c", _BLOCKING_IN_A_LOOP, strict_store.environment]
    done = subprocess.run(
        [*command, str(strict_store.endpoint)], capture_output=True, text=True, timeout=30
    )
    assert "a blocking call met an awaitable one of the same session" in done.stderr


def test_a_child_writes_on_though_a_heartbeat_was_under_way_at_the_fork(
    strict_store: Settings,
) -> None:
    beating = threading.Event()

    def slow(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if threading.current_thread().name.startswith("tdev-worker"):
                beating.set()
                time.sleep(1)  # noqa: ASYNC251 (a heartbeat has a thread of its own)
            return await send(operation, request)

        return sent

    with (
        settings.use(strict_store, lease_seconds=1.5, transport=slow),
        sync.track_session("s"),
    ):
        assert beating.wait(5)
        save_in_a_child()
    assert sync.get_pipeline_session("s").project_name == "child"


def save_in_a_child() -> None:
    child = os.fork()
    if child == 0:
        try:
            sync.save_pipeline_session(session_id="s", project_name="child")
        finally:
            os._exit(0)
    deadline = time.monotonic() + 10
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child waits for ever")
        time.sleep(0.05)


async def test_a_child_of_an_agent_writes_though_the_agents_begin_was_under_way(
    strict_store: Settings,
) -> None:
    """The parent's task that would say that it is stored did not follow."""
    gate, loop = Gate(), asyncio.get_running_loop()

    def forks() -> None:
        try:
            save_in_a_child()
        finally:
            loop.call_soon_threadsafe(gate.open.set)

    with settings.use(strict_store, transport=gate.wrap):
        async with track_session("s") as session:
            await session.run("parser", forks)
    assert (await get_pipeline_session("s")).project_name == "child"


def test_a_write_that_nothing_ends_keeps_no_heartbeat_waiting(strict_store: Settings) -> None:
    """Its event loop was stopped, or is blocked, and it has outlived its session's block."""
    gate, loop = Gate(), asyncio.new_event_loop()
    outlived: list[asyncio.Task[None]] = []

    async def agent(session: Tracker) -> None:
        async with session.agent("parser"):
            await asyncio.sleep(30)

    async def pipeline() -> None:
        async with track_session("s") as session:
            outlived.append(loop.create_task(agent(session)))
            await gate.waiting.wait()
            main.cancel()
            await asyncio.sleep(30)

    with (
        settings.use(strict_store, transport=gate.wrap, lease_seconds=4),
        sync.track_session("other"),
    ):
        main = loop.create_task(pipeline())
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(main)
        time.sleep(8)  # two leases
        assert [worker.state for worker in sync.list_workers()] == ["ALIVE"]
        assert sync.get_pipeline_session("s").lease_owner is None
    outlived[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(outlived[0])
    loop.run_until_complete(loop.shutdown_asyncgens())  # closes its connections
    loop.close()
