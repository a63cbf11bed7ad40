"""Tracked sessions: leases, heartbeats, agents, ends."""

from __future__ import annotations

import asyncio
import contextvars
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    NotFound,
    PipelineSession,
    Settings,
    Tracker,
    get_agent_execution,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import cancel_an_agent
from tests.faults import Fault, injected


async def run_agents(
    session: Any, *, until: str | None = None, ran: list[str] | None = None
) -> None:
    for name in AGENTS:
        async with session.agent(name, {"for": name}) as run:
            if name == until:
                raise ValueError(f"{name} broke")
            if not run.done:
                run.output = {"by": name}
                if ran is not None:
                    ran.append(name)


async def test_a_tracked_pipeline_is_remembered_from_start_to_end(store: Settings) -> None:
    async with track_session(
        "p", user_id="u", pipeline_type="SIMPLE", metadata={"k": 1}
    ) as session:
        assert session.start_agent == "nl_input"
        await run_agents(session)
    done = await get_pipeline_session("p")
    assert (done.status, done.progress, done.current_agent) == ("COMPLETED", 9, "download")
    assert (done.user_id, done.pipeline_type, done.metadata) == ("u", "SIMPLE", {"k": 1})
    assert (done.fence, done.lease_expires, done.resume_count) == (1, None, None)
    execution = await get_agent_execution("p-generation")
    assert (execution.status, execution.input_data, execution.output_data) == (
        "COMPLETED",
        {"for": "generation"},
        {"by": "generation"},
    )


def test_the_block_of_the_other_colour_says_where_this_one_is(store: Settings) -> None:
    with pytest.raises(TypeError, match=r"tdev_models\.sync"), track_session("p"):
        pass


async def test_a_failure_names_the_agent_and_resume_goes_on_there(store: Settings) -> None:
    with pytest.raises(ValueError, match="search broke"):
        async with track_session("p") as session:
            await run_agents(session, until="search")
    failed = await get_pipeline_session("p")
    assert (failed.status, failed.failed_agent, failed.progress) == ("FAILED", "search", 5)
    assert failed.error_message == "ValueError: search broke"

    ran: list[str] = []
    resume = await resume_pipeline("p")
    assert resume
    assert (resume.start_agent, resume.outputs) == (
        "search",
        {name: {"by": name} for name in AGENTS[:5]},
    )
    async with resume:
        await run_agents(resume, ran=ran)
    assert ran == list(AGENTS[5:])
    done = await get_pipeline_session("p")
    assert (done.status, done.progress, done.failed_agent) == ("COMPLETED", 9, None)
    assert (done.fence, done.resume_count, done.error_message) == (2, 1, None)
    attempts = (await get_agent_execution("p-search")).attempts
    assert [(one.number, one.status) for one in attempts] == [(1, "FAILED"), (2, "COMPLETED")]


async def test_tracking_a_failed_session_again_resumes_it(store: Settings) -> None:
    with pytest.raises(ValueError, match="search broke"):
        async with track_session("p") as session:
            await run_agents(session, until="search")
    ran: list[str] = []
    async with track_session("p", project_name="named later") as session:
        await run_agents(session, ran=ran)
    assert ran == list(AGENTS[5:])
    done = await get_pipeline_session("p")
    assert (done.resume_count, done.project_name) == (1, "named later")


async def test_a_session_of_the_plans_calls_can_be_tracked(store: Settings) -> None:
    await save_pipeline_session(session_id="p", user_id="u", progress=0)
    await update_agent_execution(execution_id="p-nl_input", status="COMPLETED", output_data=[1])
    async with track_session("p") as session:
        assert session.outputs == {"nl_input": [1]}
        await run_agents(session)
    assert (await get_pipeline_session("p")).resume_count is None


async def enter(session_id: str) -> None:
    await track_session(session_id).__aenter__()


async def test_what_is_tracked_cannot_be_tracked_twice(store: Settings) -> None:
    async with track_session("p"):
        with pytest.raises(LeaseHeld, match="owned by"):
            await asyncio.create_task(enter("p"), context=contextvars.Context())
    with pytest.raises(InvalidTransition, match="is COMPLETED and cannot become ACTIVE"):
        await track_session("p").__aenter__()


@pytest.mark.parametrize("field", ["status", "progress"])
def test_the_tracker_keeps_status_and_progress_itself(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        track_session("p", **{field: "ACTIVE"})


async def test_a_non_critical_agent_may_fail_while_the_session_goes_on(store: Settings) -> None:
    async with track_session("p") as session:
        async with session.agent("nl_input") as run:
            run.output = 1
        async with session.agent("ui_selection", critical=False):
            raise RuntimeError("no picture today")
        async with session.agent("parser") as run:
            run.output = 3
    done = await get_pipeline_session("p")
    assert (done.status, done.progress, done.failed_agent) == ("COMPLETED", 3, None)
    failed = await get_agent_execution("p-ui_selection")
    assert (failed.status, failed.error_message) == ("FAILED", "RuntimeError: no picture today")


async def test_a_non_critical_failure_has_ended_for_a_resume_too(store: Settings) -> None:
    with pytest.raises(ValueError, match="parser broke"):
        async with track_session("p") as session:
            async with session.agent("nl_input") as run:
                run.output = 1
            async with session.agent("ui_selection", critical=False):
                raise RuntimeError
            async with session.agent("parser"):
                raise ValueError("parser broke")
    resume = await resume_pipeline("p")
    assert (resume.start_agent, resume.outputs) == ("parser", {"nl_input": 1})
    async with resume, resume.agent("ui_selection") as run:
        assert (run.done, run.output) == (True, None)


async def test_an_output_comes_back_as_it_was(store: Settings) -> None:
    values = ["text", '{"json": "text"}', "", 0, 1.5, False, [None], {"é": 10**20}]
    with pytest.raises(KeyError):
        async with track_session("p") as session:
            for name, value in zip(AGENTS, values, strict=False):
                async with session.agent(name, value) as run:
                    run.output = value
            raise KeyError
    assert list((await resume_pipeline("p")).outputs.values()) == values


async def test_an_output_without_json_form_fails_the_agent(
    store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with track_session("p") as session, session.agent("search", critical=False) as run:
        run.output = {"found": [1, object()]}
    search = await get_agent_execution("p-search")
    assert search.status == "FAILED"
    assert "output.found[1]: object has no JSON form; give it" in (search.error_message or "")
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage() == "p-search: its output cannot be stored"
    with pytest.raises(InvalidRequest, match=r"^output: object has no JSON form; give it"):
        async with track_session("q") as session, session.agent("parser") as run:
            run.output = object()
    assert (await get_agent_execution("q-parser")).status == "FAILED"
    assert (await get_pipeline_session("q")).failed_agent == "parser"


@pytest.mark.parametrize("size", [1, 100_000])
async def test_input_without_json_form_sends_nothing_of_the_agent(
    strict_store: Settings, size: int
) -> None:
    with pytest.raises(InvalidRequest, match=rf"^input_data\[{size}\]: object has no JSON form"):
        async with track_session("p") as session, session.agent("parser", [0] * size + [object()]):
            raise AssertionError
    with pytest.raises(NotFound):
        await get_agent_execution("p-parser")


async def test_cancelling_the_task_hands_the_session_back(store: Settings) -> None:
    await cancel_an_agent("p")
    await handed_back("p")


async def handed_back(session_id: str) -> None:
    """Check that a session cut off in `parser` can be resumed at once, and counts as no failure."""
    session = await get_pipeline_session(session_id)
    assert (session.status, session.failed_agent, session.error_message) == ("ACTIVE", None, None)
    execution = await get_agent_execution(f"{session_id}-parser")
    assert execution.status == "PENDING"
    assert [attempt.status for attempt in execution.attempts] == ["CANCELLED"]
    async with await resume_pipeline(session_id) as resume:
        async with resume.agent("parser") as run:
            run.output = 1
    session = await get_pipeline_session(session_id)
    assert (session.status, session.resume_count) == ("COMPLETED", None)
    attempts = (await get_agent_execution(f"{session_id}-parser")).attempts
    assert [attempt.status for attempt in attempts] == ["CANCELLED", "COMPLETED"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_hands_the_session_back(
    store: Settings, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), sync.track_session("p") as session:
        with session.agent("parser"):
            raise kind
    await handed_back("p")


def test_the_blocking_form_is_the_same_without_await(store: Settings) -> None:
    with pytest.raises(ValueError, match="broke"), sync.track_session("p", user_id="u") as session:
        with session.agent("nl_input", [1]) as run:
            run.output = [2]
        with session.agent("ui_selection"):
            raise ValueError("broke")
    resume = sync.resume_pipeline("p")
    assert (bool(resume), resume.outputs, resume.start_agent) == (
        True,
        {"nl_input": [2]},
        "ui_selection",
    )
    with resume:
        with resume.agent("nl_input") as run:
            assert (run.done, run.output) == (True, [2])
        with resume.agent("ui_selection") as run:
            run.output = [3]
    assert sync.get_pipeline_session("p").status == "COMPLETED"


async def test_calls_on_the_session_inside_the_block_carry_its_lease(store: Settings) -> None:
    async with track_session("p"):
        await save_pipeline_session(session_id="p", project_name="inside", progress=7)
        await update_agent_execution(execution_id="p-nl_input", status="RUNNING")
        # A child task carries it too.
        await asyncio.create_task(_complete("p-nl_input"))
        session = await get_pipeline_session("p")
        assert (session.project_name, session.progress, session.current_agent) == (
            "inside",
            1,
            "nl_input",
        )
        await save_pipeline_session(session_id="p", status="COMPLETED")
    done = await get_pipeline_session("p")
    assert (done.status, done.lease_expires) == ("COMPLETED", None)
    with pytest.raises(LeaseHeld):
        await update_agent_execution(execution_id="p-nl_input", error_message="outside")


async def _complete(execution_id: str) -> None:
    await update_agent_execution(execution_id=execution_id, status="COMPLETED", output_data=[1])


async def test_heartbeats_keep_a_session_while_agent_code_blocks_the_loop(store: Settings) -> None:
    with settings.use(store, lease_seconds=0.6, stalled_after_seconds=1.2):
        async with track_session("p") as session, session.agent("parser") as run:
            time.sleep(1.5)  # noqa: ASYNC251
            refused = await resume_pipeline("p")
            assert not refused
            assert "owns it (claim 1)" in (refused.reason or "")
            run.output = 1
    assert (await get_pipeline_session("p")).status == "COMPLETED"


async def test_the_next_heartbeat_cancels_the_task_of_a_session_that_was_taken(
    store: Settings,
) -> None:
    with settings.use(store, lease_seconds=0.6, stalled_after_seconds=1.2):
        begun = time.monotonic()
        with pytest.raises(LeaseLost, match="claim 1"):
            async with track_session("p") as session, session.agent("parser"):
                assert await resume_pipeline("p", force=True)
                await asyncio.sleep(30)
        assert time.monotonic() - begun < 10
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    untouched = await get_pipeline_session("p")
    assert (untouched.status, untouched.error_message) == ("ACTIVE", None)
    assert (await get_agent_execution("p-parser")).status == "RUNNING"


def test_blocking_code_learns_of_a_lost_lease_at_its_next_write(store: Settings) -> None:
    with pytest.raises(LeaseLost), sync.track_session("p") as session:
        raw.put_attribute(store, "pipeline-sessions", "p", lease_token={"S": "another"})
        with session.agent("parser"):
            raise AssertionError("the agent must not start")
    assert raw.item(store, "agent-executions", "p-parser", "parser") is None


async def long_agent(tracker: Tracker) -> None:
    async with tracker.agent("assembly"):
        await asyncio.sleep(30)


@pytest.mark.parametrize("changed", [{"fence": {"N": "2"}}, {"lease_token": {"S": "x"}}])
async def test_every_leased_write_needs_fence_and_token(
    store: Settings, changed: dict[str, dict[str, str]]
) -> None:
    tracker = track_session("p", project_name="mine")
    await tracker.__aenter__()
    async with tracker.agent("parser") as run:
        run.output = 1
    raw.put_attribute(store, "pipeline-sessions", "p", **changed)
    before = raw.everything(store, "pipeline-sessions"), raw.everything(store, "agent-executions")
    for late in (
        save_pipeline_session(session_id="p", project_name="late"),
        save_pipeline_session(session_id="p", status="FAILED"),
        update_agent_execution(execution_id="p-parser", status="COMPLETED", output_data=[2]),
        update_agent_execution(execution_id="p-search", status="RUNNING"),
        long_agent(tracker),
        tracker.__aexit__(None, None, None),
    ):
        with pytest.raises(LeaseLost):
            await late
    after = raw.everything(store, "pipeline-sessions"), raw.everything(store, "agent-executions")
    assert after == before


@pytest.mark.parametrize("forged", [{"fence": 2}, {"token": "guessed"}])
async def test_a_worker_that_forges_fence_or_token_writes_nothing(
    store: Settings, forged: dict[str, Any]
) -> None:
    tracker = track_session("p", project_name="mine")
    await tracker.__aenter__()
    for name, value in forged.items():
        setattr(tracker.owned, name, value)
    before = raw.everything(store, "pipeline-sessions")
    for write in (
        save_pipeline_session(session_id="p", project_name="late"),
        update_agent_execution(execution_id="p-search", status="COMPLETED", output_data=[2]),
        tracker.__aexit__(None, None, None),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert raw.everything(store, "pipeline-sessions") == before
    assert raw.everything(store, "agent-executions") == []


# Of the claim itself, the first UpdateItem, what fails without an answer is the caller's to decide.
FAULTS = [
    (kind, operation, nth)
    for kind in ("resent", "throttled", "conflict", "unanswered", "lost")
    for operation in ("UpdateItem", "TransactWriteItems")
    for nth in (1, 2)
    if (operation, nth) != ("UpdateItem", 1) or kind in ("resent", "conflict")
]


@pytest.mark.parametrize(("kind", "operation", "nth"), FAULTS)
async def test_a_faulty_request_of_a_tracked_run_is_sent_again(
    store: Settings, kind: str, operation: str, nth: int
) -> None:
    with injected(Fault(kind, operation=operation, table="pipeline-sessions", nth=nth)):
        async with track_session("p") as session, session.agent("parser") as run:
            run.output = 1
    done = await get_pipeline_session("p")
    assert (done.status, done.progress, done.fence) == ("COMPLETED", 1, 1)
    assert [one.number for one in (await get_agent_execution("p-parser")).attempts] == [1]


async def test_agents_side_by_side_are_all_counted(strict_store: Settings) -> None:
    async with track_session("p") as session:

        async def agent(name: str) -> None:
            async with session.agent(name) as run:
                await asyncio.sleep(0.01)
                run.output = name

        await asyncio.gather(*(agent(name) for name in AGENTS[:6]))
        assert (await get_pipeline_session("p")).progress == 6


async def test_a_write_that_was_done_before_a_takeover_counts_as_done(
    strict_store: Settings,
) -> None:
    async def takeover() -> None:
        with settings.use(strict_store, clock=lambda: time.time() + 61):
            assert await resume_pipeline("p")

    went_on = False
    fault = Fault("unanswered", operation="TransactWriteItems", nth=2, between=takeover)
    with injected(fault), pytest.raises(LeaseLost):
        async with track_session("p") as session:
            async with session.agent("parser") as run:
                run.output = 1
            went_on = True  # the request's token told DynamoDB that it has done this
    assert went_on
    assert (await get_agent_execution("p-parser")).output_data == 1


async def test_an_owner_moves_due_at_only_a_lease_before_its_time(store: Settings) -> None:
    now = time.time()
    clock = [now]
    with settings.use(replace(store, stalled_after_seconds=1000, clock=lambda: clock[0])):
        async with track_session("p") as session:
            for age, due_at in ((0, 1000), (969, 1000), (971, 1971), (972, 1971)):
                clock[0] = now + age
                async with session.agent("parser", key=age):
                    pass
                await save_pipeline_session(session_id="p", project_name=str(age))
                stored = PipelineSession.get("p", consistent_read=True)
                assert stored.due_at == pytest.approx(now + due_at, abs=0.01)


async def test_a_failure_that_cannot_be_recorded_is_said_in_a_note(store: Settings) -> None:
    with settings.use(store, lease_seconds=0.4, stalled_after_seconds=1):
        with (
            injected(Fault("broken", operation="UpdateItem", nth=2)),
            pytest.raises(ValueError, match="mine") as caught,
        ):
            async with track_session("p"):
                raise ValueError("mine")
    assert "is not marked FAILED" in caught.value.__notes__[0]


async def test_entering_inside_wait_for_is_the_same(store: Settings) -> None:
    with settings.use(store, lease_seconds=0.6, stalled_after_seconds=1.2):
        tracker = track_session("p")
        session = await asyncio.wait_for(tracker.__aenter__(), 10)
        await save_pipeline_session(session_id="p", project_name="under the lease")
        with pytest.raises(LeaseLost, match="claim 1"):
            try:
                assert await resume_pipeline("p", force=True)
                await asyncio.sleep(30)
            except BaseException as error:
                await session.__aexit__(type(error), error, error.__traceback__)
                raise
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    with pytest.raises(LeaseHeld):  # not under the lease that is over
        await save_pipeline_session(session_id="p", project_name="outside")


async def test_a_nested_block_leaves_the_lease_of_the_block_around_it(store: Settings) -> None:
    async with track_session("p"):
        for _ in range(3):
            async with track_session("p"):
                pass
        await save_pipeline_session(session_id="p", project_name="under the lease")
    with pytest.raises(InvalidTransition):
        await save_pipeline_session(session_id="p", status="FAILED")


def _in_a_child(work: Callable[[], None]) -> None:
    """Do the work in a forked child, and wait for it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_forked_child_that_exits_ends_neither_agent_nor_session(strict_store: Settings) -> None:
    with sync.track_session("p") as session:
        with session.agent("parser") as run:

            def leave() -> None:
                for error in (SystemExit(0), None):
                    run.__exit__(type(error) if error else None, error, None)
                    session.__exit__(type(error) if error else None, error, None)

            _in_a_child(leave)
            assert sync.get_agent_execution("p-parser").status == "RUNNING"
            assert sync.get_pipeline_session("p").status == "ACTIVE"
            run.output = "of the parent"
    assert sync.get_pipeline_session("p").status == "COMPLETED"
    assert sync.get_agent_execution("p-parser").output_data == "of the parent"


def test_what_a_forked_child_runs_itself_is_stored(strict_store: Settings) -> None:
    with sync.track_session("p") as session, session.agent("parser") as outer:
        _in_a_child(lambda: session.run("search", lambda: {"found": 1}))
        outer.output = "of the parent"
    found = sync.get_agent_execution("p-search")
    assert (found.status, found.output_data) == ("COMPLETED", {"found": 1})
    assert sync.get_agent_execution("p-parser").output_data == "of the parent"
    assert sync.get_pipeline_session("p").status == "COMPLETED"


def test_a_child_that_enters_what_its_parent_claimed_ends_it(strict_store: Settings) -> None:
    sync.save_pipeline_session(session_id="p", status="FAILED")
    resume = sync.resume_pipeline("p")

    def run() -> None:
        with resume:
            pass

    _in_a_child(run)
    assert sync.get_pipeline_session("p").status == "COMPLETED"


@pytest.mark.parametrize("caught", [True, False])
async def test_a_lost_session_inside_another_ones_agent_fails_that_one(
    strict_store: Settings, caught: bool
) -> None:
    with suppress(LeaseLost):
        async with track_session("outer") as outer:
            with pytest.raises(LeaseLost) if caught else nullcontext():
                async with outer.agent("parser"), track_session("inner") as inner:
                    new = {"lease_token": {"S": "of another"}}
                    raw.put_attribute(strict_store, "pipeline-sessions", "inner", **new)
                    async with inner.agent("search"):
                        pass
    assert (await get_agent_execution("outer-parser")).status == "FAILED"
    left = await get_pipeline_session("outer")
    assert (left.status, left.failed_agent) == ("FAILED", "parser")
