"""Timeouts: a hung agent is cancelled where it can be, and its session taken over where not."""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from typing import Any

import pytest

from tdev_models import (
    LeaseLost,
    RequestEvent,
    Settings,
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
)
from tests import raw
from tests.dying import kill_worker, worker_of
from tests.engine.pipelines import clock, finish
from tests.faults import Fault, injected

SHORT: dict[str, Any] = {"lease_seconds": 0.6, "stalled_after_seconds": 60}


async def test_a_block_is_cancelled_at_its_timeout_and_its_agent_is_failed(
    store: Settings,
) -> None:
    with pytest.raises(TimeoutError, match=r"parser took longer than 0\.1 s"):
        async with track_session("s") as session, session.agent("parser", timeout=0.1):
            await asyncio.sleep(30)
    failed = await get_pipeline_session("s")
    assert (failed.status, failed.failed_agent, failed.deadline) == ("FAILED", "parser", None)
    execution = await get_agent_execution("s-parser")
    assert (execution.status, execution.error_message) == (
        "FAILED",
        "TimeoutError: parser took longer than 0.1 s",
    )
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_timeout_of_an_agent_that_is_not_critical_lets_the_session_go_on(
    strict_store: Settings,
) -> None:
    async with track_session("s") as session:
        async with session.agent("parser", timeout=0.05, critical=False):
            await asyncio.sleep(30)
        async with session.agent("search", timeout=30) as run:
            run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"
    assert (await get_agent_execution("s-parser")).status == "FAILED"


async def test_a_timeout_counts_from_the_entry_of_its_block(strict_store: Settings) -> None:
    """Not since the block was made: others ran meanwhile, or the store was slow to read from."""
    async with track_session("s") as session:
        for run in [session.agent(name, timeout=1.5) for name in ("parser", "search")]:
            async with run:
                await asyncio.sleep(0.8)
    assert (await get_agent_execution("s-search")).status == "COMPLETED"


async def test_a_cancellation_from_outside_is_no_timeout(strict_store: Settings) -> None:
    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("parser", timeout=30):
            await asyncio.sleep(30)

    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0.3):
            await pipeline()
    assert "parser" not in str(raised.value)


async def test_the_deadline_is_that_of_the_first_running_agent(strict_store: Settings) -> None:
    now = time.time()
    with settings.use(strict_store, clock=lambda: now):
        async with track_session("s") as session:
            async with session.agent("parser", timeout=500):
                async with session.agent("search", timeout=100):
                    assert (await get_pipeline_session("s")).deadline == pytest.approx(
                        now + 130, abs=0.01
                    )
                assert (await get_pipeline_session("s")).deadline == pytest.approx(
                    now + 530, abs=0.01
                )
                await save_pipeline_session(session_id="s", project_name="p")
                assert (await get_pipeline_session("s")).deadline == pytest.approx(
                    now + 530, abs=0.01
                )
            assert (await get_pipeline_session("s")).deadline is None
            async with session.agent("download", timeout=9):
                pass
        assert (await get_pipeline_session("s")).deadline is None


def hang(store: Settings, lives: float = 1000) -> sync.Tracker:
    """Begin an agent with a timeout whose worker lives on, for so many seconds."""
    tracker = sync.track_session("s").__enter__()
    with tracker.agent("nl_input") as run:
        run.output = 1
    tracker.agent("parser", timeout=100).__enter__()
    worker_id = worker_of(store, "s")
    kill_worker()
    raw.put_attribute(store, "pipeline-sessions", worker_id, due_at={"N": str(time.time() + lives)})
    return tracker


async def test_a_session_whose_agent_hangs_is_taken_over_though_its_worker_lives(
    strict_store: Settings,
) -> None:
    tracker = hang(strict_store)
    with settings.use(strict_store, clock=clock(125)):
        assert not await resume_pipeline("s")
    with settings.use(strict_store, clock=clock(135)):
        assert await resume_pipeline("s", finish)
    done = await get_pipeline_session("s")
    assert (done.status, done.deadline) == ("COMPLETED", None)
    with pytest.raises(LeaseLost), tracker.agent("search"):
        pass


@pytest.mark.parametrize("how", ["track", "recover", "recover, giving up", "list"])
async def test_every_way_to_take_over_sees_a_hung_session(strict_store: Settings, how: str) -> None:
    copy_context().run(hang, strict_store, 5000)  # of another task
    with settings.use(strict_store, clock=clock(4000)):
        if how == "track":
            async with track_session("s") as session, session.agent("nl_input") as run:
                assert run.done
        elif how == "list":
            (found,) = await get_failed_sessions()
            assert found.deadline is not None
            return
        elif how == "recover":
            assert (await recover_sessions(finish)).completed == ["s"]
        else:
            counts = {"resumes_without_progress": {"N": "99"}, "worker_deaths": {"N": "2"}}
            raw.put_attribute(strict_store, "pipeline-sessions", "s", **counts)
            result = await recover_sessions(finish)
            assert result.abandoned == ["s"], (result, await get_pipeline_session("s"))
            assert (await get_pipeline_session("s")).deadline is None


@pytest.mark.parametrize("how", ["recover", "list"])
async def test_a_hung_session_is_found_as_soon_as_its_deadline_has_passed(
    strict_store: Settings, how: str
) -> None:
    copy_context().run(hang, strict_store)
    for seconds, found in ((125, 0), (135, 1)):
        with settings.use(strict_store, clock=clock(seconds)):
            if how == "list":
                assert len(await get_failed_sessions()) == found
            else:
                assert len((await recover_sessions(finish)).completed) == found


async def test_due_at_moves_with_a_nearer_deadline_and_else_seldom(strict_store: Settings) -> None:
    """Each move is a write to status-index."""
    now = [time.time()]
    begun, moves = now[0], set[float]()

    async def due_after() -> float:
        due_at = (await get_pipeline_session("s")).due_at or 0
        moves.add(due_at)
        return due_at - begun

    with settings.use(strict_store, clock=lambda: now[0]):
        async with track_session("s") as session:
            assert await due_after() == pytest.approx(3600, abs=0.01)
            for number in range(9):
                async with session.agent("evaluator", key=number, timeout=300):
                    assert await due_after() == pytest.approx(330)
                    now[0] += 20
            async with session.agent("parser", timeout=60):
                assert await due_after() == pytest.approx(180 + 90)
            now[0] += 70  # it would soon be looked at for nothing
            async with session.agent("search"):
                assert await due_after() == pytest.approx(250 + 3600)
            async with session.agent("download", timeout=7200):
                assert await due_after() == pytest.approx(250 + 3600)
    assert len(moves) == 4


async def test_what_the_owner_saves_keeps_the_deadline_in_due_at(strict_store: Settings) -> None:
    async with track_session("s") as session, session.agent("parser", timeout=100):
        before = await get_pipeline_session("s")
        await save_pipeline_session(session_id="s", project_name="p")
        assert (await get_pipeline_session("s")).due_at == before.due_at == before.deadline


async def test_a_live_session_that_seems_due_is_looked_at_once(strict_store: Settings) -> None:
    events: list[RequestEvent] = []

    async def recover(seconds: float) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        with settings.use(strict_store, on_request=events.append, **SHORT):
            assert (await recover_sessions(finish, poll_seconds=0.1, stop=stop)).completed == []

    with settings.use(strict_store, **SHORT):
        async with track_session("s") as session:
            async with session.agent("parser", timeout=0.2):
                pass
            await asyncio.create_task(recover(2.0))
    looks = [one for one in events if one.operation == "GetItem"]
    assert len([one for one in events if one.operation == "Query"]) > 20
    assert len(looks) <= 3  # the session, its worker


async def test_a_heartbeat_of_a_hung_session_does_not_keep_it_from_being_claimed(
    strict_store: Settings,
) -> None:
    hang(strict_store)

    def beat() -> None:
        later = {"N": str(time.time() + 1001)}
        raw.put_attribute(
            strict_store, "pipeline-sessions", worker_of(strict_store, "s"), due_at=later
        )

    with settings.use(strict_store, clock=clock(135)):
        with injected(Fault("before", operation="UpdateItem", between=beat)):
            assert await resume_pipeline("s")


async def test_an_agent_that_ends_meanwhile_keeps_its_session(strict_store: Settings) -> None:
    hang(strict_store)

    def ended() -> None:
        raw.put_attribute(strict_store, "pipeline-sessions", "s", lease_write={"S": "later"})

    with settings.use(strict_store, clock=clock(135)):
        with injected(Fault("before", operation="UpdateItem", between=ended)):
            assert not await resume_pipeline("s")


def test_heartbeats_of_a_hung_session_let_it_grow_old_and_found(strict_store: Settings) -> None:
    with settings.use(strict_store, lease_seconds=0.3, stalled_after_seconds=0.6):
        with pytest.raises(LeaseLost), sync.track_session("s") as session:
            with session.agent("parser", timeout=0.1):
                time.sleep(1.5)  # hangs, while its worker renews the lease
                (found,) = sync.get_failed_sessions()
                assert (found.session_id, found.status) == ("s", "ACTIVE")
                assert sync.resume_pipeline("s")


def test_code_that_blocks_past_its_timeout_keeps_what_it_made(strict_store: Settings) -> None:
    with sync.track_session("s") as session, session.agent("parser", timeout=0.05) as run:
        time.sleep(0.1)
        run.output = "late, but there"
    assert sync.get_agent_execution("s-parser").output_data == "late, but there"


async def test_who_abandons_a_session_leaves_no_deadline(strict_store: Settings) -> None:
    hang(strict_store)
    await abandon_session("s", "enough")
    assert (await get_pipeline_session("s")).deadline is None
