"""Finding what failed, and resuming each session exactly once."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    InvalidRequest,
    LeaseHeld,
    PipelineSession,
    Resume,
    Settings,
    Unavailable,
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
from tdev_models.services import recovery
from tests import raw
from tests.faults import Fault, injected


async def fail(session_id: str, at: str = "search") -> None:
    with pytest.raises(ValueError, match="broke"):
        async with track_session(session_id) as session:
            for name in AGENTS:
                async with session.agent(name) as run:
                    if name == at:
                        raise ValueError("broke")
                    run.output = name


async def finish(session: Resume) -> None:
    for name in AGENTS:
        async with session.agent(name) as run:
            if not run.done:
                run.output = f"{name} again"


def clock(seconds: float) -> Any:
    return lambda: time.time() + seconds


async def test_failed_and_stalled_sessions_are_found_oldest_first(store: Settings) -> None:
    for number, status in enumerate(["FAILED", "ACTIVE", "COMPLETED", "FAILED", "ACTIVE"]):
        await save_pipeline_session(session_id=f"s{number}", status=status)
    await track_session("leased").__aenter__()
    assert [one.session_id for one in await get_failed_sessions()] == ["s0", "s3"]
    with settings.use(store, clock=clock(4000)):
        # The lease ran out, and the bare ones were not updated for over an hour.
        found = await get_failed_sessions()
        assert [one.session_id for one in found] == ["s0", "s1", "s3", "s4", "leased"]
        only_failed = await get_failed_sessions(include_stalled=False)
        assert [one.session_id for one in only_failed] == ["s0", "s3"]


async def test_pages_merge_both_statuses_and_end(store: Settings) -> None:
    for number in range(11):
        status = "FAILED" if number % 3 else "ACTIVE"
        await save_pipeline_session(session_id=f"s{number:02}", status=status)
    with settings.use(store, clock=clock(4000)):
        seen, cursor = [], None
        for _ in range(10):
            page = await get_failed_sessions(limit=4, cursor=cursor)
            updated = [one["last_updated"] for one in page]
            assert updated == sorted(updated)
            seen += [one.session_id for one in page]
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [f"s{number:02}" for number in range(11)]
        with pytest.raises(InvalidRequest, match=r"^cursor: "):
            first = await get_failed_sessions(limit=4)
            await get_failed_sessions(limit=4, include_stalled=False, cursor=first.cursor)


async def test_older_than_takes_a_moment_or_an_age(store: Settings) -> None:
    await save_pipeline_session(session_id="old", status="FAILED")
    middle = time.time()
    await asyncio.sleep(0.01)
    await save_pipeline_session(session_id="new", status="FAILED")
    for older_than in (middle, datetime.fromtimestamp(middle, UTC), datetime.fromtimestamp(middle)):  # noqa: DTZ006
        assert [one.session_id for one in await get_failed_sessions(older_than)] == ["old"]
    assert await get_failed_sessions(timedelta(hours=1)) == []
    with pytest.raises(InvalidRequest, match="for an age pass a timedelta"):
        await get_failed_sessions(3600)


async def test_what_an_index_shows_too_late_is_not_returned(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def claimed_meanwhile() -> None:
        with settings.use(store):
            assert await resume_pipeline("s")

    with injected(Fault("before", operation="TransactGetItems", between=claimed_meanwhile)):
        assert await get_failed_sessions() == []


async def test_a_session_that_is_not_resumable_says_why(store: Settings) -> None:
    await save_pipeline_session(session_id="done", status="COMPLETED")
    await save_pipeline_session(session_id="live")
    assert (await resume_pipeline("done")).reason == "it is COMPLETED"
    live = await resume_pipeline("live")
    assert (bool(live), live.lease) == (False, None)
    assert "too recently to be stalled" in (live.reason or "")
    with pytest.raises(LeaseHeld):
        await live.__aenter__()


@pytest.mark.parametrize("kind", ["resent", "conflict"])
async def test_a_claim_whose_reply_was_lost_is_recognised(store: Settings, kind: str) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with injected(Fault(kind, operation="UpdateItem")):
        resume = await resume_pipeline("s")
    assert resume
    assert (await get_pipeline_session("s")).fence == 1
    async with resume:
        await finish(resume)
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_claim_without_an_answer_runs_out(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with injected(Fault("unanswered", operation="UpdateItem")), pytest.raises(Unavailable):
        await resume_pipeline("s")
    assert not await resume_pipeline("s")
    with settings.use(store, clock=clock(61)):
        assert await resume_pipeline("s")


async def test_a_bare_failed_resent_after_a_claim_changes_nothing(store: Settings) -> None:
    await save_pipeline_session(session_id="s")
    claims: list[Resume] = []

    async def claim() -> None:
        with settings.use(store):
            claims.append(await resume_pipeline("s"))

    with injected(Fault("resent", operation="UpdateItem", between=claim)):
        await save_pipeline_session(session_id="s", status="FAILED", error_message="x")
    assert claims[0]
    owned = await get_pipeline_session("s")
    assert (owned.status, owned.fence) == ("ACTIVE", 1)
    async with claims[0]:
        await finish(claims[0])
    assert (await get_pipeline_session("s")).status == "COMPLETED"


@pytest.mark.parametrize(
    "meanwhile",
    [
        {"status": {"S": "COMPLETED"}},
        {"fence": {"N": "9"}},
        {"lease_expires": {"N": "99999999999"}},
    ],
    ids=["ended", "claimed", "heartbeat"],
)
async def test_a_claim_needs_the_session_as_it_was_read(
    store: Settings, meanwhile: dict[str, dict[str, str]]
) -> None:
    await track_session("s").__aenter__()
    with settings.use(store, clock=clock(61)) as late:

        def change() -> None:
            raw.put_attribute(store, "pipeline-sessions", "s", **meanwhile)

        with settings.use(late):
            with injected(Fault("before", operation="UpdateItem", between=change)):
                assert not await resume_pipeline("s")
    stored = raw.item(store, "pipeline-sessions", "s")
    assert stored is not None
    assert stored["lease_owner"]["S"]
    assert "resume_count" not in stored


async def test_a_bare_update_in_between_keeps_a_session_from_being_claimed(store: Settings) -> None:
    await save_pipeline_session(session_id="s")

    async def update() -> None:
        with settings.use(store, clock=clock(4000)):
            await save_pipeline_session(session_id="s", current_agent="parser")

    with settings.use(store, clock=clock(4000)):
        with injected(Fault("before", operation="UpdateItem", between=update)):
            resume = await resume_pipeline("s")
    assert not resume
    assert (await get_pipeline_session("s")).fence is None


async def test_from_agent_begins_again_there_and_whoever_resumes_next_does_too(
    store: Settings,
) -> None:
    await fail("s", at="download")
    resume = await resume_pipeline("s", from_agent="parser")
    assert (resume.start_agent, list(resume.outputs)) == ("parser", list(AGENTS[:2]))
    session = await get_pipeline_session("s")
    assert (session.progress, session.current_agent) == (2, "parser")

    with settings.use(store, clock=clock(61)):  # the worker died before it began
        second = await resume_pipeline("s")
        assert second.start_agent == "parser"
        async with second.agent("parser") as run:
            run.output = "new"
    with settings.use(store, clock=clock(200)):  # ... and this one after it did one agent
        third = await resume_pipeline("s")
        assert third.start_agent == "component_decision"
        assert third.outputs["parser"] == "new"
        async with third:
            await finish(third)
    done = await get_pipeline_session("s")
    assert (done.status, done.progress) == ("COMPLETED", 9)
    assert (await get_agent_execution("s-generation")).output_data == "generation again"
    attempts = (await get_agent_execution("s-parser")).attempts
    assert [(one.number, one.status) for one in attempts] == [(1, "COMPLETED"), (2, "COMPLETED")]
    with pytest.raises(InvalidRequest, match=r"^from_agent: "):
        await resume_pipeline("s", from_agent="nobody")


async def test_executions_under_other_ids_are_found(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    for execution_id, agent in (("run-1", "nl_input"), ("run-2", "ui_selection"), ("x", "mine")):
        await update_agent_execution(
            execution_id=execution_id,
            agent_name=agent,
            project_id="s",
            status="COMPLETED",
            output_data={"from": execution_id},
        )
    resume = await resume_pipeline("s")
    assert resume.start_agent == "parser"
    assert resume.outputs == {
        "nl_input": {"from": "run-1"},
        "ui_selection": {"from": "run-2"},
        "mine": {"from": "x"},
    }


async def test_a_runner_runs_inside_the_block(store: Settings) -> None:
    await fail("s")
    resume = await resume_pipeline("s", finish)
    assert resume
    assert (await get_pipeline_session("s")).status == "COMPLETED"


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
        assert now[0] <= waiting.next_retry_at <= now[0] + 100
        now[0] = waiting.next_retry_at - 0.001
        idle = await recover_sessions(runner, max_attempts=2)
        assert idle == type(idle)()
        now[0] += 4000
        assert (await recover_sessions(runner, max_attempts=2)).failed == ["bad"]
        now[0] += 4000
        assert (await recover_sessions(runner, max_attempts=2)).abandoned == ["bad"]
    ended = await get_pipeline_session("bad")
    assert (ended.status, ended.resume_count) == ("ABANDONED", 2)
    assert ended.error_message == "gave up after 2 resumes; last: RuntimeError: still bad"


async def test_giving_up_spares_a_session_that_was_just_claimed(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    raw.put_attribute(store, "pipeline-sessions", "s", resume_count={"N": "7"})

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
    monkeypatch.setattr(recovery, "_KEPT", 2)
    for name in "abc":
        await fail(name)
    assert (await recover_sessions(finish)).completed == ["b", "c"]


async def test_recover_stops_on_an_event(store: Settings) -> None:
    for number in range(5):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED")
    stop = asyncio.Event()

    async def runner(session: Resume) -> None:
        stop.set()

    done = await asyncio.wait_for(recover_sessions(runner, stop=stop, poll_seconds=60), 20)
    assert len(done.completed) == 1
    assert len(await get_failed_sessions()) == 4


async def test_a_session_of_another_program_with_finer_times_is_resumed(store: Settings) -> None:
    digits = {"N": "1700000000.1234567"}
    values: dict[str, Any] = {"last_updated": digits, "status": {"S": "ACTIVE"}}
    raw.put_attribute(store, "pipeline-sessions", "s", **values)
    assert await resume_pipeline("s")


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
    assert (done.lost, done.completed) == (["a"], ["b"])
