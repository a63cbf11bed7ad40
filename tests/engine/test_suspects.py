"""Sessions whose last two workers died: they run alone, and keep nobody else waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from typing import Any

import pytest

from tdev_models import (
    Recovery,
    Resume,
    Settings,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
)
from tests import raw
from tests.engine.pipelines import clock

Runner = Callable[[Resume], Awaitable[None]]


async def test_a_suspect_runs_alone_and_the_others_go_first(strict_store: Settings) -> None:
    for name in ("a", "b", "suspect"):
        await save_pipeline_session(session_id=name, status="FAILED")
    dead = await resume_pipeline("suspect")
    with settings.use(strict_store, clock=clock(4000)):
        dead = await resume_pipeline("suspect")
        assert dead
    running: set[str] = set()
    order: list[str] = []

    async def runner(session: Resume) -> None:
        running.add(session.session_id)
        if session.session_id == "suspect":
            assert running == {"suspect"}
        order.append(session.session_id)
        await asyncio.sleep(0.2)
        assert session.session_id == "suspect" or "suspect" not in running
        running.remove(session.session_id)

    with settings.use(strict_store, clock=clock(8001)):
        done = await recover_sessions(runner, concurrency=3)
    assert sorted(done.completed) == ["a", "b", "suspect"]
    assert order[-1] == "suspect"
    del dead


async def test_an_agent_that_ends_clears_a_suspect(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    dead = await resume_pipeline("s")
    raw.put_attribute(strict_store, "pipeline-sessions", "s", worker_deaths={"N": "3"})
    with settings.use(strict_store, clock=clock(4000)):
        resume = await resume_pipeline("s")
        assert (await get_pipeline_session("s")).worker_deaths == 4
        async with resume, resume.agent("nl_input") as run:
            run.output = 1
    assert (await get_pipeline_session("s")).worker_deaths is None
    del dead


async def make_suspect(store: Settings, session_id: str) -> None:
    """Leave a session, handed back, as two workers that died have left it."""
    await save_pipeline_session(session_id=session_id, status="FAILED")
    with pytest.raises(KeyboardInterrupt):
        async with await resume_pipeline(session_id):
            raise KeyboardInterrupt
    raw.put_attribute(store, "pipeline-sessions", session_id, worker_deaths={"N": "2"})


@asynccontextmanager
async def worker(runner: Runner, released: asyncio.Event) -> AsyncIterator[None]:
    """Recover sessions as long as the block goes on; its end releases what still runs."""
    stop = asyncio.Event()
    recovering: asyncio.Task[Recovery] = asyncio.create_task(
        recover_sessions(runner, concurrency=4, poll_seconds=0.2, max_attempts=20, stop=stop)
    )
    try:
        yield
    finally:
        stop.set()
        released.set()
        await recovering


async def ended(session_id: str) -> None:
    """Wait until a session has ended."""
    for _ in range(300):
        if (await get_pipeline_session(session_id)).status == "COMPLETED":
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"{session_id} has not ended")


async def test_others_do_not_wait_for_a_suspect_that_waits(strict_store: Settings) -> None:
    begun, released, order = asyncio.Event(), asyncio.Event(), list[str]()

    async def runner(session: Resume) -> None:
        order.append(session.session_id)
        begun.set()
        if session.session_id == "long":
            await released.wait()

    await save_pipeline_session(session_id="long", status="FAILED")
    async with worker(runner, released):
        await begun.wait()
        await make_suspect(strict_store, "suspect")
        await asyncio.sleep(1)  # it is found, and put off
        await save_pipeline_session(session_id="late", status="FAILED")
        await ended("late")
        assert order == ["long", "late"]
        released.set()
        await ended("suspect")


async def test_once_it_has_got_on_others_run_beside_it(strict_store: Settings) -> None:
    begun, got_on, released = asyncio.Event(), asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def runner(session: Resume) -> None:
        order.append(session.session_id)
        begun.set()
        if session.session_id == "suspect":
            await got_on.wait()
            async with session.agent("nl_input") as run:
                run.output = 1
            await released.wait()

    await make_suspect(strict_store, "suspect")
    async with worker(runner, released):
        await begun.wait()
        await save_pipeline_session(session_id="late", status="FAILED")
        await asyncio.sleep(1)
        assert order == ["suspect"]  # alone
        got_on.set()
        await ended("late")
        released.set()
        await ended("suspect")


async def test_one_that_hangs_each_time_keeps_nobody_waiting(strict_store: Settings) -> None:
    """Its slots are lost: a thread that waits for ever, say. No worker else is there."""
    thrice, released, times = asyncio.Event(), asyncio.Event(), 0

    async def runner(session: Resume) -> None:
        nonlocal times
        if session.session_id == "hangs":
            times += 1
            if times == 3:  # as a suspect, alone
                thrice.set()
            async with session.agent("nl_input", timeout=0.2):
                while not released.is_set():
                    with suppress(asyncio.CancelledError):
                        await released.wait()

    await save_pipeline_session(session_id="hangs", status="FAILED")
    with settings.use(strict_store, lease_seconds=0.6):
        async with worker(runner, released):
            async with asyncio.timeout(15):
                await thrice.wait()
            await save_pipeline_session(session_id="late", status="FAILED")
            await ended("late")


async def test_one_that_hangs_without_a_timeout_stops_no_worker_for_good(
    strict_store: Settings,
) -> None:
    """None says how long it may take: it is alone as long as what nobody writes is not stalled."""
    begun, released = asyncio.Event(), asyncio.Event()

    async def runner(session: Resume) -> None:
        if session.session_id == "hangs":
            begun.set()
            await released.wait()

    for name in ("hangs", "other suspect"):
        await make_suspect(strict_store, name)
    with settings.use(strict_store, lease_seconds=1.5, stalled_after_seconds=3):
        async with worker(runner, released):
            await begun.wait()
            await save_pipeline_session(session_id="late", status="FAILED")
            await ended("late")
            await ended("other suspect")


@pytest.mark.parametrize("poll_seconds", [0.01, 0.2])
async def test_one_runs_though_the_next_look_is_due_before_it_is_read(
    strict_store: Settings, poll_seconds: float
) -> None:
    """A store that is far away, or throttles: reading a session takes longer than a poll."""

    def far_away(send: settings.Transport) -> settings.Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            await asyncio.sleep(0.3)
            return await send(operation, request)

        return sent

    async def runner(session: Resume) -> None:
        """Do nothing."""

    await make_suspect(strict_store, "suspect")
    stop = asyncio.Event()
    with settings.use(strict_store, transport=far_away):
        recovering = asyncio.create_task(
            recover_sessions(runner, concurrency=2, poll_seconds=poll_seconds, stop=stop)
        )
    try:
        await ended("suspect")
    finally:
        stop.set()
        await recovering


@pytest.mark.parametrize("in_loop", [True, False])
def test_a_worker_whose_slots_are_all_lost_says_so(
    strict_store: Settings, caplog: pytest.LogCaptureFixture, in_loop: bool
) -> None:
    """Blocks that hang: no look is made any more, however many others fail."""
    released, stop = threading.Event(), threading.Event()

    def hang(session: sync.Resume) -> None:
        with session.agent("nl_input", timeout=0.2):
            released.wait(30)

    async def hang_in_loop(session: Resume) -> None:
        async with session.agent("nl_input", timeout=0.2):
            released.wait(30)  # nothing else runs in the loop

    def recover() -> None:
        if in_loop:
            asyncio.run(recover_sessions(hang_in_loop, poll_seconds=0.2, stop=stop))
        else:
            sync.recover_sessions(hang, poll_seconds=0.2, stop=stop, concurrency=2)

    for name in ("a", "b"):
        sync.save_pipeline_session(session_id=name, status="FAILED")
    with settings.use(strict_store, lease_seconds=0.6), ThreadPoolExecutor(1) as threads:
        recovering = threads.submit(copy_context().run, recover)
        try:
            for _ in range(300):
                time.sleep(0.05)
                if "it recovers nothing any more: restart it" in caplog.text:
                    break
            else:
                pytest.fail("nothing was said")
        finally:
            stop.set()
            released.set()
            recovering.result(20)
