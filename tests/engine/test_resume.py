"""Resuming one session, exactly once, where it stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    InvalidRequest,
    LeaseHeld,
    Resume,
    Settings,
    Unavailable,
    get_agent_execution,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tdev_models.settings import Transport
from tests import raw
from tests.engine.pipelines import clock, fail, finish
from tests.faults import Fault, injected
from tests.fuzz import Broken


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


@pytest.mark.parametrize("by", ["resume_pipeline", "track_session"])
async def test_who_was_quicker_is_not_declared_dead_for_it(store: Settings, by: str) -> None:
    # Its lease is over in the store, after an outage, say, and its next heartbeat is under way.
    alive = {"status": {"S": "WORKER"}, "due_at": {"N": str(time.time() - 1)}}
    raw.put_attribute(store, "pipeline-sessions", "#worker:quicker", **alive)
    await save_pipeline_session(session_id="s", status="FAILED")
    claimed = {
        "status": {"S": "ACTIVE"},
        "fence": {"N": "1"},
        "lease_token": {"S": "its"},
        "worker_id": {"S": "#worker:quicker"},
    }

    def claim() -> None:
        raw.put_attribute(store, "pipeline-sessions", "s", **claimed)

    with injected(Fault("before", operation="UpdateItem", between=claim)):
        if by == "resume_pipeline":
            resume = await resume_pipeline("s")
            assert resume.reason == "another worker changed it at the same time"
        else:
            with pytest.raises(LeaseHeld):
                await track_session("s").__aenter__()
    assert raw.item(store, "pipeline-sessions", "#worker:quicker") == {
        "session_id": {"S": "#worker:quicker"},
        **alive,
    }


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


@pytest.mark.parametrize("field", ["runner", "from_agent", "force"])
async def test_an_argument_that_refuses_to_be_shown_or_compared_is_refused(
    strict_store: Settings, field: str
) -> None:
    given: dict[str, Any] = {field: Broken()}
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await resume_pipeline("s", **given)


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
    assert pages == 3  # once more after the claim, which adopts


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


async def test_a_runner_runs_inside_the_block(store: Settings) -> None:
    await fail("s")
    resume = await resume_pipeline("s", finish)
    assert resume
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_session_of_another_program_with_finer_times_is_resumed(store: Settings) -> None:
    digits = {"N": "1700000000.1234567"}
    values: dict[str, Any] = {"last_updated": digits, "status": {"S": "ACTIVE"}}
    raw.put_attribute(store, "pipeline-sessions", "s", **values)
    assert await resume_pipeline("s")


async def test_an_attempt_whose_worker_was_killed_is_lost(store: Settings) -> None:
    killed = track_session("s")
    await killed.__aenter__()
    await killed.agent("parser").__aenter__()
    with settings.use(store, clock=clock(61)):
        async with await resume_pipeline("s") as session, session.agent("parser") as run:
            run.output = 1
    attempts = (await get_agent_execution("s-parser")).attempts
    assert [(one.status, one.end_time is None) for one in attempts] == [
        ("LOST", True),
        ("COMPLETED", False),
    ]


async def test_from_agent_takes_the_agents_of_another_pipeline(strict_store: Settings) -> None:
    with settings.use(strict_store, agents=("draft", "second review")):
        await save_pipeline_session(session_id="s", status="FAILED")
        resume = await resume_pipeline("s", from_agent="second review")
        assert resume.start_agent == "second review"
