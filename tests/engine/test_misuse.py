"""What is easily got wrong around trackers: colours mixed, forks, tasks cut short or left over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    LeaseLost,
    Resume,
    Settings,
    StoreError,
    abandon_session,
    get_agent_execution,
    get_failed_sessions,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.settings import Transport
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
            if threading.current_thread().name.startswith("tdev-heartbeat"):
                beating.set()
                time.sleep(1)  # noqa: ASYNC251 (a heartbeat has a thread of its own)
            return await send(operation, request)

        return sent

    with (
        settings.use(strict_store, lease_seconds=1.5, transport=slow),
        sync.track_session("s"),
    ):
        assert beating.wait(5)
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
    assert sync.get_pipeline_session("s").project_name == "child"


async def test_an_agent_whose_end_was_cut_short_hands_back_what_it_stored(
    strict_store: Settings,
) -> None:
    fault = Fault(
        "resent", operation="TransactWriteItems", nth=2, between=lambda: asyncio.sleep(0.4)
    )
    with injected(fault):
        async with track_session("s") as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), session.agent("nl_input") as run:
                    run.output = {"text": "important"}
            async with session.agent("nl_input") as run:
                assert run.done
                assert run.output == {"text": "important"}


async def test_an_agent_that_a_call_ended_hands_back_what_the_call_stored(
    strict_store: Settings,
) -> None:
    agent = {"execution_id": "s-nl_input"}
    async with track_session("s") as session:
        await update_agent_execution(agent, status="COMPLETED", output_data=[1])
        async with session.agent("nl_input") as run:
            assert run.done
            assert run.output == [1]
        await update_agent_execution(agent, output_data=[2])
        async with session.agent("nl_input") as run:
            assert run.output == [2]
        await update_agent_execution(agent, variant="b")
        assert session.outputs == {"nl_input": [2]}


async def test_an_agent_that_a_call_began_again_has_not_ended(strict_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("nl_input") as run:
                run.output = 1
            raise KeyError
    async with await resume_pipeline("s") as resume:
        await update_agent_execution(execution_id="s-nl_input", status="RUNNING")
        assert (await get_pipeline_session("s")).progress == 0
        await update_agent_execution(execution_id="s-nl_input", status="FAILED")
        async with resume.agent("nl_input") as run:
            assert not run.done
            run.output = 2
    assert (await get_agent_execution("s-nl_input")).output_data == 2
    assert (await get_pipeline_session("s")).progress == 1


async def test_touching_what_is_outdated_does_not_make_it_count(strict_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            for name in ("nl_input", "ui_selection", "parser"):
                async with session.agent(name) as run:
                    run.output = f"old {name}"
            raise KeyError
    async with await resume_pipeline("s", from_agent="ui_selection") as resume:
        await update_agent_execution(execution_id="s-parser", variant="x")
        assert (await get_pipeline_session("s")).progress == 1
        async with resume.agent("parser") as run:
            assert not run.done


async def test_what_an_agent_makes_after_its_session_has_ended_is_not_lost_in_silence(
    strict_store: Settings,
) -> None:
    go, begun = asyncio.Event(), asyncio.Event()
    async with track_session("s") as session:

        async def agent() -> None:
            async with session.agent("nl_input") as run:
                begun.set()
                await go.wait()
                run.output = "precious"

        task = asyncio.create_task(agent())
        await begun.wait()
    go.set()
    with pytest.raises(LeaseLost):
        await task


async def test_a_failure_that_cannot_be_recorded_is_raised_critical_or_not(
    strict_store: Settings,
) -> None:
    with (
        injected(Fault("broken", operation="TransactWriteItems", nth=2)),
        pytest.raises(ValueError, match="mine") as raised,
    ):
        async with track_session("s") as session, session.agent("nl_input", critical=False):
            raise ValueError("mine")
    assert "is not marked FAILED" in raised.value.__notes__[0]
    assert (await get_pipeline_session("s")).status == "FAILED"


async def test_an_owner_that_abandons_what_another_has_abandoned_is_told(
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


# ------------------------------------------------------------------------ workers


async def test_a_cancellation_inside_a_runner_ends_its_session_and_not_the_worker(
    strict_store: Settings,
) -> None:
    for name in "abc":
        await save_pipeline_session(session_id=name, status="FAILED")

    async def runner(resume: Resume) -> None:
        if resume.session_id == "a":
            task = asyncio.create_task(asyncio.sleep(10))
            task.cancel()
            await task

    done = await recover_sessions(runner)
    assert (done.failed, done.completed) == (["a"], ["b", "c"])


async def test_a_worker_that_is_cancelled_ends(strict_store: Settings) -> None:
    for name in "ab":
        await save_pipeline_session(session_id=name, status="FAILED")
    ran: list[str] = []

    async def runner(resume: Resume) -> None:
        ran.append(resume.session_id)
        await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await recover_sessions(runner)
    assert ran == ["a"]
    assert (await get_pipeline_session("a")).status == "FAILED"


def test_ctrl_c_leaves_what_a_blocking_worker_has_not_begun(strict_store: Settings) -> None:
    for number in range(8):
        sync.save_pipeline_session(session_id=f"s{number}", status="FAILED")
    ran: list[str] = []

    def runner(resume: Resume) -> None:
        ran.append(resume.session_id)
        if len(ran) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)

    with pytest.raises(KeyboardInterrupt):
        sync.recover_sessions(runner, concurrency=2)
    assert len(ran) <= 4


def test_what_can_never_run_is_refused_before_anything_is_claimed(strict_store: Settings) -> None:
    async def runner(resume: Resume) -> None: ...

    sync.save_pipeline_session(session_id="s", status="FAILED")
    with pytest.raises(InvalidRequest, match="runner: is async"):
        sync.recover_sessions(runner)
    with pytest.raises(InvalidRequest, match="runner: is async"):
        sync.resume_pipeline("s", runner)
    with pytest.raises(InvalidRequest, match=r"stop: .*is_set"):
        sync.recover_sessions(print, stop=True)  # type: ignore[arg-type]
    assert sync.get_pipeline_session("s").resume_count is None


async def test_a_session_of_both_statuses_in_a_lagging_index_is_read_once(
    strict_store: Settings,
) -> None:
    with settings.use(strict_store, clock=lambda: time.time() - 10_000):
        await save_pipeline_session(session_id="s")
    stale: list[dict[str, Any]] = []

    def lagging(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            of_active = operation == "Query" and "ACTIVE" in str(request)
            if of_active and stale:
                return stale[0]
            response = await send(operation, request)
            if of_active:
                stale.append(response)
            return response

        return sent

    with settings.use(replace(strict_store, transport=lagging)):
        assert len(await get_failed_sessions()) == 1
        await save_pipeline_session(session_id="s", status="FAILED")  # by another worker
        assert (await recover_sessions(lambda resume: None)).completed == ["s"]


async def test_an_execution_that_moves_between_two_pages_is_read_once(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    for number in (1, 2):
        values = {"execution_id": f"run{number}", "agent_name": "nl_input", "project_id": "s"}
        await update_agent_execution(values, status="FAILED")
    pages = 0

    def paged(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal pages
            if request.get("IndexName") != "project-index":
                return await send(operation, request)
            pages += 1
            if pages > 1:
                return await send(operation, request)
            page = await send(operation, {**request, "Limit": 1})
            with settings.use(strict_store):
                run1 = {"execution_id": "run1", "agent_name": "nl_input"}
                await update_agent_execution(run1, status="RUNNING")
            return page

        return sent

    with settings.use(strict_store, transport=paged):
        assert await resume_pipeline("s")
    assert pages == 2


async def test_of_several_runs_of_an_agent_under_other_ids_the_latest_counts(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    clock = [time.time()]
    with settings.use(strict_store, clock=lambda: clock[0]):
        for number in (1, 2):
            clock[0] += 10
            values = {"execution_id": f"run{number}", "agent_name": "nl_input", "project_id": "s"}
            await update_agent_execution(values, status="COMPLETED", output_data=number)
        assert (await resume_pipeline("s")).outputs == {"nl_input": 2}


def test_chunks_that_another_zlib_left_behind_are_not_taken_for_ones_own(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, compress = random.Random(1), zlib.compress
    value = ["".join(dice.choices("abcdefghijklmnop", k=1000)) for _ in range(400)]
    run = {"execution_id": "s-parser", "status": "COMPLETED", "output_data": value}
    monkeypatch.setattr(zlib, "compress", lambda data: compress(data, 0))
    with injected(Fault("broken", operation="UpdateItem", nth=8)), pytest.raises(StoreError):
        sync.update_agent_execution(run)
    monkeypatch.setattr(zlib, "compress", compress)
    assert sync.update_agent_execution(run).output_data == value
