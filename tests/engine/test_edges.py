"""Edges where things once went wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    InvalidRequest,
    LeaseLost,
    PayloadDamaged,
    Resume,
    Settings,
    Throttled,
    abandon_session,
    configure,
    get_agent_execution,
    get_agent_executions,
    get_failed_sessions,
    get_pipeline_session,
    record_metric,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.conftest import make_tables
from tests.faults import Fault, injected


async def test_a_given_project_is_kept_by_later_calls_without_one(store: Settings) -> None:
    run = {"execution_id": "run7-generation"}
    await update_agent_execution(run, project_id="proj-1", status="RUNNING")
    await update_agent_execution(run, status="COMPLETED")
    (one,) = await get_agent_executions("proj-1")
    assert (one.execution_id, one.status) == ("run7-generation", "COMPLETED")


async def test_a_pipeline_may_leave_agents_out(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            for name in ("nl_input", "parser", "generation"):
                async with session.agent(name) as run:
                    if name == "generation":
                        raise KeyError
                    run.output = name
    resume = await resume_pipeline("s")
    assert resume.start_agent == "generation"
    assert resume.outputs == {"nl_input": "nl_input", "parser": "parser"}
    assert (await get_pipeline_session("s")).progress == 2


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


async def test_a_lease_is_of_one_environment(store: Settings) -> None:
    other = make_tables(str(store.endpoint))
    async with track_session("s"):
        with settings.use(other):
            await save_pipeline_session(session_id="s", project_name="another session")
    with settings.use(other):
        assert (await get_pipeline_session("s")).status == "ACTIVE"


async def test_a_call_goes_where_it_was_made(store: Settings) -> None:
    other = make_tables(str(store.endpoint))
    with settings.use(other):
        call = save_pipeline_session(session_id="s", project_name="there")
    await call
    with settings.use(other):
        assert (await get_pipeline_session("s")).project_name == "there"
    assert raw.everything(store, "pipeline-sessions") == []


def test_runners_in_threads_see_the_settings_of_their_worker(store: Settings) -> None:
    other = make_tables(str(store.endpoint))
    with settings.use(other):
        for name in ("a", "b", "c"):
            sync.save_pipeline_session(session_id=name, status="FAILED")

        def runner(session: Resume) -> None:
            assert threading.current_thread() is not threading.main_thread()
            sync.save_pipeline_session(session_id=session.session_id, project_name="seen")

        assert len(sync.recover_sessions(runner, concurrency=3).completed) == 3
        assert sync.get_pipeline_session("b").project_name == "seen"


async def test_a_runner_whose_failure_cannot_be_recorded_stops_no_other(store: Settings) -> None:
    for name in ("a", "b"):
        await save_pipeline_session(session_id=name, status="FAILED")

    async def runner(session: Resume) -> None:
        if session.session_id == "a":
            raise ValueError("mine")
        await asyncio.sleep(0.3)

    # Two claims, then the write of the failure.
    with injected(Fault("broken", operation="UpdateItem", nth=3)):
        done = await recover_sessions(runner, concurrency=2)
    assert (done.lost, done.completed) == (["a"], ["b"])


async def test_a_long_error_in_any_script_can_be_given_up(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", error_message="오류" * 680)
    raw.put_attribute(store, "pipeline-sessions", "s", resume_count={"N": "9"})
    assert (await recover_sessions(lambda session: None)).abandoned == ["s"]


async def test_backing_off_begins_with_the_failure(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    now = [time.time()]

    def runner(session: Resume) -> None:
        now[0] += 1800
        raise RuntimeError

    with settings.use(store, clock=lambda: now[0]):
        await recover_sessions(runner, backoff_seconds=1000)
        assert ((await get_pipeline_session("s")).next_retry_at or 0) >= now[0]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("runner", {"runner": None}),
        ("runner", {"runner": lambda: None}),
        ("runner", {"runner": lambda one, two: None}),
        ("backoff_seconds", {"backoff_seconds": 0}),
        ("poll_seconds", {"poll_seconds": 0}),
        ("max_attempts", {"max_attempts": 0}),
    ],
)
async def test_a_worker_checks_what_it_is_given(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await recover_sessions(**{"runner": print, **options})


async def test_a_claim_whose_outputs_cannot_be_read_ends_as_failed(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("nl_input") as run:
                run.output = [number / 7 for number in range(3000)]
            raise KeyError
    (chunk,) = [one for one in raw.everything(store, "agent-executions") if "chunk" in one]
    raw.delete(store, "agent-executions", chunk["execution_id"]["S"], chunk["agent_name"]["S"])
    with pytest.raises(PayloadDamaged):
        await resume_pipeline("s")
    (failed,) = await get_failed_sessions()
    assert (failed.error_message or "").startswith("PayloadDamaged: s-nl_input")
    assert await resume_pipeline("s", from_agent="nl_input")


async def test_a_claim_whose_outputs_cannot_be_read_waits_before_the_next(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with injected(Fault("throttled", operation="TransactGetItems", nth=2)):
        assert (await recover_sessions(lambda session: None)).lost == ["s"]
    session = await get_pipeline_session("s")
    assert session.status == "FAILED"
    assert (session.next_retry_at or 0) > (session.last_updated or 0)


async def test_a_lease_is_kept_while_outputs_are_read(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def read_slowly() -> None:
        await asyncio.sleep(1.5)

    with settings.use(strict_store, lease_seconds=1):
        with injected(Fault("before", operation="TransactGetItems", between=read_slowly)):
            assert await resume_pipeline("s")
        assert "owns it" in ((await resume_pipeline("s")).reason or "")


async def test_a_session_that_is_lost_while_outputs_are_read_is_not_resumed(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def lose() -> None:
        with settings.use(strict_store):
            await abandon_session("s", "enough")
        await asyncio.sleep(0.6)

    with settings.use(strict_store, lease_seconds=1):
        with injected(Fault("before", operation="TransactGetItems", between=lose)):
            resume = await resume_pipeline("s")
    assert (bool(resume), resume.reason) == (
        False,
        "it was taken over while its outputs were read",
    )
    assert (await get_pipeline_session("s")).error_message == "enough"


async def test_a_claim_that_cannot_read_keeps_where_the_session_had_failed(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session, session.agent("search"):
            raise KeyError
    with injected(Fault("throttled", operation="TransactGetItems")), pytest.raises(Throttled):
        await resume_pipeline("s")
    session_now = await get_pipeline_session("s")
    assert (session_now.status, session_now.failed_agent) == ("FAILED", "search")


@pytest.mark.parametrize("status", ["FAILED", "ABANDONED", "COMPLETED"])
async def test_a_runner_may_end_its_session_itself(store: Settings, status: str) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def runner(session: Resume) -> None:
        await save_pipeline_session(session_id="s", status=status)

    done = await recover_sessions(runner)
    assert {status: getattr(done, status.lower())} == {status: ["s"]}
    assert (done.failed, done.completed, done.abandoned).count([]) == 2
    waits = (await get_pipeline_session("s")).next_retry_at is not None
    assert waits == (status == "FAILED")


async def test_abandoning_inside_the_block_waits_for_a_heartbeat_under_way(
    store: Settings,
) -> None:
    async with track_session("s") as session:
        with session.owned.write_lock:
            abandoning = asyncio.create_task(abandon_session("s", "enough"))
            await asyncio.sleep(0.1)
            assert (await get_pipeline_session("s")).status == "ACTIVE"
        await abandoning
    assert (await get_pipeline_session("s")).status == "ABANDONED"


@pytest.mark.parametrize("kind", ["resent", "unanswered"])
async def test_giving_up_whose_reply_was_lost_is_recognised(store: Settings, kind: str) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", error_message="why")
    raw.put_attribute(store, "pipeline-sessions", "s", resume_count={"N": "9"})
    with injected(Fault(kind, operation="UpdateItem")):
        done = await recover_sessions(lambda session: None)
    assert (done.abandoned or done.lost) == ["s"]
    assert done.abandoned == (["s"] if kind == "resent" else [])
    assert (await get_pipeline_session("s")).error_message == "gave up after 9 resumes; last: why"


async def test_a_cancelled_agent_has_not_ended_even_if_it_is_not_critical(store: Settings) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with track_session("s") as session, session.agent("nl_input", critical=False):
            raise asyncio.CancelledError
    assert (await resume_pipeline("s")).start_agent == "nl_input"


async def test_an_agent_that_succeeds_later_is_not_the_one_that_failed(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            with pytest.raises(ValueError, match="once"):
                async with session.agent("nl_input"):
                    raise ValueError("once")
            async with session.agent("nl_input") as run:
                run.output = 1
            raise KeyError
    assert (await get_pipeline_session("s")).failed_agent is None


async def test_a_payload_of_another_id_is_not_pointed_at(store: Settings) -> None:
    value = [number / 7 for number in range(3000)]
    await save_pipeline_session(session_id="s", status="FAILED")
    await update_agent_execution(
        execution_id="custom", agent_name="generation", project_id="s", input_data=value
    )
    resume = await resume_pipeline("s")
    async with resume, resume.agent("generation", value) as run:
        run.output = 1
    assert (await get_agent_execution("s-generation")).input_data == value


async def test_all_pages_have_the_bounds_of_the_first(store: Settings) -> None:
    for number in range(4):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED")
    middle = ((await get_failed_sessions())[1].last_updated or 0) + 1e-5
    first = await get_failed_sessions(middle, limit=1)
    assert first.cursor
    rest = await get_failed_sessions(limit=10, cursor=first.cursor)
    assert [one.session_id for one in [*first, *rest]] == ["s0", "s1"]


async def test_milliseconds_are_refused(store: Settings) -> None:
    with pytest.raises(InvalidRequest, match="not a moment in seconds"):
        await record_metric(metric_name="m", value=1, timestamp=time.time() * 1000)
    with pytest.raises(InvalidRequest, match="not a moment in seconds"):
        await get_failed_sessions(time.time() * 1000)


@pytest.mark.parametrize("text", ['{"score": NaN}', "[Infinity]", "[" * 100_000])
async def test_json_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^output_data: "):
        await update_agent_execution(execution_id="s-parser", output_data=text)


def test_a_second_configure_keeps_the_first(store: Settings) -> None:
    assert configure(lease_seconds=7).endpoint == store.endpoint
    assert configure(stalled_after_seconds=70).lease_seconds == 7


def test_a_hook_that_raises_changes_nothing(store: Settings) -> None:
    def hook(event: object) -> None:
        raise ValueError("of the hook")

    with settings.use(store, on_request=hook):
        with sync.track_session("s") as session, session.agent(AGENTS[0]) as run:
            run.output = 1
    assert sync.get_pipeline_session("s").status == "COMPLETED"
