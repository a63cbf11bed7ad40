"""Finding what failed, and resuming each session exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    PipelineSession,
    Resume,
    Settings,
    Unavailable,
    get_failed_sessions,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
)
from tdev_models.services import recovery
from tests import raw
from tests.engine.pipelines import fail, finish
from tests.faults import Fault, injected


async def test_recover_finishes_backs_off_and_gives_up(store: Settings) -> None:
    await fail("good")
    await fail("bad")
    now = [time.time() + 10]

    async def runner(session: Resume) -> None:
        if session.session_id == "bad":
            raise RuntimeError("still bad")
        await finish(session)

    with settings.use(replace(store, clock=lambda: now[0])):
        first = await recover_sessions(runner, max_attempts=2, backoff_seconds=100)
        assert (first.completed, first.failed) == (["good"], ["bad"])
        waiting = PipelineSession.get("bad", consistent_read=True)
        assert now[0] + 50 <= waiting.due_at <= now[0] + 100
        now[0] = waiting.due_at - 0.001
        idle = await recover_sessions(runner, max_attempts=2)
        assert idle == type(idle)()
        now[0] += 4000
        assert (await recover_sessions(runner, max_attempts=2)).failed == ["bad"]
        now[0] += 4000
        assert (await recover_sessions(runner, max_attempts=2)).abandoned == ["bad"]
    ended = await get_pipeline_session("bad")
    assert (ended.status, ended.resume_count) == ("ABANDONED", 2)
    assert ended.error_message == (
        "gave up after 2 resumes without progress; last: RuntimeError: still bad"
    )


async def test_giving_up_spares_a_session_that_was_just_claimed(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    raw.put_attribute(store, "pipeline-sessions", "s", resumes_without_progress={"N": "17"})

    async def claim() -> None:
        with settings.use(store):
            assert await resume_pipeline("s")

    with injected(Fault("before", operation="UpdateItem", between=claim)):
        assert (await recover_sessions(finish)).lost == ["s"]
    assert (await get_pipeline_session("s")).status == "ACTIVE"


@pytest.mark.parametrize("workers", [1, 4])
async def test_recover_takes_every_session_once_with_many_workers(
    store: Settings, workers: int
) -> None:
    for number in range(12):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED")
    runs: list[str] = []

    async def runner(session: Resume) -> None:
        runs.append(session.session_id)
        await asyncio.sleep(0)

    await asyncio.gather(*(recover_sessions(runner, concurrency=3) for _ in range(workers)))
    assert sorted(runs) == sorted(f"s{number}" for number in range(12))


def test_recover_blocks_too_in_threads(store: Settings) -> None:
    for number in range(6):
        sync.save_pipeline_session(session_id=f"s{number}", status="FAILED")
    threads: set[str] = set()

    def runner(session: Resume) -> None:
        threads.add(threading.current_thread().name)
        time.sleep(0.05)
        with session.agent("nl_input") as run:
            run.output = 1

    done = sync.recover_sessions(runner, concurrency=3)
    assert sorted(done.completed) == [f"s{number}" for number in range(6)]
    assert len(threads) > 1


async def test_a_worker_remembers_the_last_only(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_IDS_KEPT", 2)
    for name in "abc":
        await fail(name)
    assert len((await recover_sessions(finish)).completed) == 2


async def test_recover_stops_on_an_event(store: Settings) -> None:
    for number in range(5):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED")
    stop = asyncio.Event()

    async def runner(session: Resume) -> None:
        stop.set()

    done = await asyncio.wait_for(recover_sessions(runner, stop=stop, poll_seconds=60), 20)
    assert len(done.completed) == 1
    assert len(await get_failed_sessions()) == 4


async def test_a_worker_that_polls_outlives_an_outage(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    stop = asyncio.Event()

    async def runner(session: Resume) -> None:
        stop.set()

    with injected(Fault("lost", operation="Query")):
        done = await asyncio.wait_for(recover_sessions(runner, stop=stop, poll_seconds=0.05), 20)
    assert done.completed == ["s"]
    with injected(Fault("lost", operation="Query")), pytest.raises(Unavailable):
        await recover_sessions(runner)


async def test_one_session_that_cannot_be_claimed_keeps_no_other_waiting(store: Settings) -> None:
    for name in ("a", "b"):
        await save_pipeline_session(session_id=name, status="FAILED")
    with injected(Fault("broken", operation="UpdateItem")):
        done = await recover_sessions(finish)
    assert sorted(done.lost + done.completed) == ["a", "b"]
    assert len(done.lost) == 1


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("runner", {"runner": None}),
        ("runner", {"runner": lambda: None}),
        ("runner", {"runner": lambda one, two: None}),
        ("backoff_seconds", {"backoff_seconds": 0}),
        ("poll_seconds", {"poll_seconds": 0}),
        ("max_attempts", {"max_attempts": 0}),
        ("older_than", {"older_than": 60}),
        ("accepts", {"accepts": "todo"}),
        ("accepts", {"accepts": asyncio.sleep}),
    ],
)
async def test_a_worker_checks_what_it_is_given(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await recover_sessions(**{"runner": print, **options})


async def test_pauses_are_any_number_above_0(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    stop = threading.Event()

    def runner(resume: Resume) -> None:
        threading.Timer(0.3, stop.set).start()
        raise KeyError

    pauses: dict[str, Any] = {"backoff_seconds": Decimal(100), "poll_seconds": Decimal("0.1")}
    assert (await recover_sessions(runner, stop=stop, **pauses)).failed == ["s"]


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


async def test_a_runner_whose_failure_cannot_be_recorded_stops_no_other(store: Settings) -> None:
    for name in ("a", "b"):
        await save_pipeline_session(session_id=name, status="FAILED")

    b_runs = asyncio.Event()

    async def runner(session: Resume) -> None:
        if session.session_id == "a":
            await b_runs.wait()
            raise ValueError("mine")
        b_runs.set()
        await asyncio.sleep(0.3)

    # Two claims, then the write of the failure.
    with injected(Fault("broken", operation="UpdateItem", nth=3)):
        done = await recover_sessions(runner, concurrency=2)
    assert (done.lost, done.completed) == (["a"], ["b"])


async def test_a_long_error_in_any_script_can_be_given_up(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", error_message="오류" * 680)
    raw.put_attribute(store, "pipeline-sessions", "s", resumes_without_progress={"N": "19"})
    assert (await recover_sessions(lambda session: None)).abandoned == ["s"]


async def test_backing_off_begins_with_the_failure(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    now = [time.time()]

    def runner(session: Resume) -> None:
        now[0] += 1800
        raise RuntimeError

    with settings.use(store, clock=lambda: now[0]):
        await recover_sessions(runner, backoff_seconds=1000)
        assert ((await get_pipeline_session("s")).due_at or 0) >= now[0] + 500


@pytest.mark.parametrize("status", ["FAILED", "ABANDONED", "COMPLETED"])
async def test_a_runner_may_end_its_session_itself(store: Settings, status: str) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def runner(session: Resume) -> None:
        await save_pipeline_session(session_id="s", status=status)

    done = await recover_sessions(runner)
    assert {status: getattr(done, status.lower())} == {status: ["s"]}
    assert (done.failed, done.completed, done.abandoned).count([]) == 2
    session = await get_pipeline_session("s")
    waits = (session.due_at or 0) - (session.last_updated or 0)
    assert 15 <= waits <= 30 if status == "FAILED" else waits == 0


@pytest.mark.parametrize("kind", ["resent", "unanswered"])
async def test_giving_up_whose_reply_was_lost_is_recognised(store: Settings, kind: str) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", error_message="why")
    raw.put_attribute(store, "pipeline-sessions", "s", resumes_without_progress={"N": "19"})
    with injected(Fault(kind, operation="UpdateItem")):
        done = await recover_sessions(lambda session: None)
    assert (done.abandoned or done.lost) == ["s"]
    assert done.abandoned == (["s"] if kind == "resent" else [])
    assert (
        await get_pipeline_session("s")
    ).error_message == "gave up after 19 resumes without progress; last: why"


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
    assert (done.failed, sorted(done.completed)) == (["a"], ["b", "c"])
    assert (await get_pipeline_session("a")).error_message == (
        "RuntimeError: the runner ended with CancelledError: "
    )


def test_a_cancellation_inside_a_blocking_runner_ends_its_session_and_not_the_worker(
    strict_store: Settings,
) -> None:
    """Of an event loop that its agents run."""
    for name in "abc":
        sync.save_pipeline_session(session_id=name, status="FAILED")

    async def awaits_what_was_cancelled() -> None:
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task

    def runner(resume: sync.Resume) -> None:
        resume.run("search", asyncio.run, awaits_what_was_cancelled(), critical=False)
        if resume.session_id == "a":
            with resume.agent("parser"):
                asyncio.run(awaits_what_was_cancelled())

    done = sync.recover_sessions(runner)
    assert (done.failed, sorted(done.completed)) == (["a"], ["b", "c"])
    session = sync.get_pipeline_session("a")
    assert (session.failed_agent, session.error_message) == (
        "parser",
        "RuntimeError: the runner ended with CancelledError: ",
    )


async def test_a_worker_that_is_cancelled_ends(strict_store: Settings) -> None:
    for name in "ab":
        await save_pipeline_session(session_id=name, status="FAILED")
    ran: list[str] = []

    async def runner(resume: Resume) -> None:
        ran.append(resume.session_id)
        await asyncio.sleep(10)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await recover_sessions(runner)
    (name,) = ran
    session = await get_pipeline_session(name)
    assert (session.status, session.lease_owner) == ("ACTIVE", None)


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
