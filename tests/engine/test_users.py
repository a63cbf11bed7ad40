"""A session belongs to its user, and takes no executions but its owner's."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable
from typing import Any

import pytest

from tdev_models import (
    LeaseHeld,
    NotFound,
    Settings,
    WrongUser,
    get_agent_execution,
    get_agent_executions,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import clock, fail, finish
from tests.faults import Died, Fault, injected


async def test_a_second_user_gets_an_error_and_none_of_the_first_ones_data(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("todo", user_id="first") as session:
            async with session.agent("nl_input", "secret") as run:
                run.output = "secret"
            raise KeyError
    before = raw.everything(store, "pipeline-sessions")
    other = track_session("todo", user_id="second")
    with pytest.raises(WrongUser, match="session todo belongs to another user; nothing") as caught:
        await other.__aenter__()
    assert "first" not in str(caught.value)
    assert (other.outputs, other.lease) == ({}, None)
    assert raw.everything(store, "pipeline-sessions") == before
    async with track_session("todo", user_id="first") as session:
        assert session.outputs == {"nl_input": "secret"}


async def test_a_block_that_joins_another_users_session_writes_nothing(store: Settings) -> None:
    async with track_session("s", user_id="first", project_name="theirs"):
        before = raw.everything(store, "pipeline-sessions")
        with pytest.raises(WrongUser):
            async with track_session("s", user_id="second", project_name="mine"):
                pass
        assert raw.everything(store, "pipeline-sessions") == before
    assert (await get_pipeline_session("s")).status == "COMPLETED"


@pytest.mark.parametrize("state", ["live", "COMPLETED", "FAILED"])
async def test_another_user_is_told_nothing_else_of_a_session(store: Settings, state: str) -> None:
    if state == "live":
        await track_session("s", user_id="first").__aenter__()
    else:
        await save_pipeline_session(session_id="s", user_id="first", status=state)
    before = raw.everything(store, "pipeline-sessions")
    with pytest.raises(WrongUser):
        await track_session("s", user_id="second").__aenter__()

    async def bare(**fields: Any) -> None:
        with pytest.raises(WrongUser):
            await save_pipeline_session({"session_id": "s", "user_id": "second", **fields})

    await in_a_context_of_its_own(bare())
    await in_a_context_of_its_own(bare(status="ACTIVE"))
    assert raw.everything(store, "pipeline-sessions") == before


async def in_a_context_of_its_own(work: Awaitable[Any]) -> None:
    """Do the work as another task would that carries no lease."""

    async def run() -> None:
        await work

    await asyncio.create_task(run(), context=contextvars.Context())


async def test_the_user_is_set_once_by_whichever_call(store: Settings) -> None:
    await save_pipeline_session(session_id="s")
    assert (await save_pipeline_session(session_id="s", user_id="u")).user_id == "u"
    assert (await save_pipeline_session(session_id="s", user_id="u")).user_id == "u"
    async with track_session("s", user_id="u"):
        await save_pipeline_session(session_id="s", user_id="u", project_name="inside")
        with pytest.raises(WrongUser):
            await save_pipeline_session(session_id="s", user_id="v", project_name="other")
    async with track_session("t"):
        await save_pipeline_session(session_id="t", user_id="u")
        with pytest.raises(WrongUser):
            await save_pipeline_session(session_id="t", user_id="v", status="FAILED")
    sessions = [await get_pipeline_session(name) for name in "st"]
    assert [(one.user_id, one.status) for one in sessions] == [("u", "COMPLETED")] * 2
    assert sessions[0].project_name == "inside"


async def test_of_two_users_at_once_one_gets_the_session(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def first() -> None:
        with settings.use(store):
            await save_pipeline_session(session_id="s", user_id="first")

    with injected(Fault("before", operation="UpdateItem", between=first)):
        with pytest.raises(WrongUser):
            await track_session("s", user_id="second").__aenter__()
    session = await get_pipeline_session("s")
    assert (session.user_id, session.fence, session.status) == ("first", None, "FAILED")


async def test_reading_takes_the_user_as_a_condition(store: Settings) -> None:
    async with track_session("s", user_id="u") as session, session.agent("parser") as run:
        run.output = 1
    await update_agent_execution(execution_id="bare-parser", status="COMPLETED")
    assert (await get_pipeline_session("s", user_id="u")).user_id == "u"
    assert (await get_agent_execution("s-parser", user_id="u")).output_data == 1
    assert len(await get_agent_executions("s", user_id="u")) == 1
    with pytest.raises(NotFound) as missing:
        await get_agent_execution("t-parser")
    for read in (
        get_pipeline_session("s", user_id="v"),
        get_agent_execution("s-parser", user_id="v"),
        get_agent_executions("s", user_id="v"),
        get_agent_execution("bare-parser", user_id="u"),
        get_agent_executions("bare", user_id="u"),
    ):
        with pytest.raises(NotFound):
            await read
    with pytest.raises(NotFound) as hidden:
        await get_agent_execution("s-parser", user_id="v")
    assert str(hidden.value) == str(missing.value).replace("t-parser", "s-parser")


FORGED: list[dict[str, Any]] = [
    {"execution_id": "x", "agent_name": "mine", "project_id": "s"},
    {"execution_id": "x", "agent_name": "search", "project_id": "s"},
    {"execution_id": "s-mine", "agent_name": "mine"},
    {"execution_id": "s-generation"},
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("state", ["live", "FAILED"])
async def test_a_claimed_session_takes_no_executions_without_its_lease(
    store: Settings, state: str, forged: dict[str, Any]
) -> None:
    if state == "FAILED":
        await fail("s", at="generation")
    else:
        await track_session("s").__aenter__()
    before = raw.everything(store, "agent-executions")
    injection = {**forged, "status": "COMPLETED", "output_data": ["injected"]}
    with pytest.raises(LeaseHeld, match=r"session s was claimed \(claim 1\)"):
        await in_a_context_of_its_own(update_agent_execution(injection))
    assert raw.everything(store, "agent-executions") == before


@pytest.mark.parametrize("forged", FORGED)
async def test_an_execution_that_no_claim_wrote_is_never_handed_back(
    store: Settings, forged: dict[str, Any]
) -> None:
    session = track_session("s")
    await session.__aenter__()
    async with session.agent("nl_input") as run:
        run.output = "real"
    # As a program would that writes beside the package, or read before the claim.
    agent = forged.get("agent_name", "generation")
    raw.put_attribute(
        store,
        "agent-executions",
        forged["execution_id"],
        agent,
        project_id={"S": "s"},
        status={"S": "COMPLETED"},
        output_data={"S": '"injected"'},
        start_time={"N": "1900000000"},
        end_time={"N": "1900000000"},
    )
    with settings.use(store, clock=clock(61)):
        resume = await resume_pipeline("s")
        assert (resume.outputs, resume.start_agent) == ({"nl_input": "real"}, "ui_selection")
        async with resume, resume.agent(agent) as run:
            assert (run.done, run.output) == (False, None)
            run.output = "real, too"
    assert (await get_agent_execution(f"s-{agent}", agent)).output_data == "real, too"


async def test_what_was_done_before_the_first_claim_is_adopted_once(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    for number in range(60):
        run = {"execution_id": f"run{number}", "agent_name": f"mine-{number}", "project_id": "s"}
        await update_agent_execution(run, status="COMPLETED", output_data=number)
    await update_agent_execution(
        execution_id="s-nl_input", status="COMPLETED", output_data=["bare"]
    )
    expected = {f"mine-{number}": number for number in range(60)} | {"nl_input": ["bare"]}
    for skipped in (0, 100, 200):  # worker after worker dies before it begins
        with settings.use(store, clock=clock(skipped)):
            resume = await resume_pipeline("s")
            assert (resume.outputs, resume.start_agent) == (expected, "ui_selection")
    with pytest.raises(LeaseHeld):
        await update_agent_execution(
            execution_id="run7", agent_name="mine-7", output_data=["forged"]
        )
    with settings.use(store, clock=clock(300)):
        async with await resume_pipeline("s") as session:
            await finish(session)
    assert (await get_agent_execution("s-nl_input")).output_data == ["bare"]


@pytest.mark.parametrize("kind", ["dies", "dies-after"])
async def test_a_death_while_adopting_leaves_it_to_the_next(store: Settings, kind: str) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    await update_agent_execution(
        execution_id="s-nl_input", status="COMPLETED", output_data=["bare"]
    )
    with injected(Fault(kind, operation="TransactWriteItems")), pytest.raises(Died):
        await resume_pipeline("s")
    with settings.use(store, clock=clock(61)):
        assert (await resume_pipeline("s")).outputs == {"nl_input": ["bare"]}


async def test_a_bare_write_while_adopting_is_looked_at_again(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    await update_agent_execution(execution_id="s-nl_input", status="RUNNING")

    def completed() -> None:
        # By a call that read the session before it was claimed.
        raw.put_attribute(
            store,
            "agent-executions",
            "s-nl_input",
            "nl_input",
            status={"S": "COMPLETED"},
            output_data={"S": "1"},
            write_token={"S": "another"},
        )

    with injected(Fault("before", operation="TransactWriteItems", between=completed)):
        assert (await resume_pipeline("s")).outputs == {"nl_input": 1}


async def test_an_agent_that_bare_calls_end_just_before_the_claim_counts(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def ended() -> None:
        with settings.use(strict_store):
            await update_agent_execution(
                execution_id="s-nl_input", status="COMPLETED", output_data=["in time"]
            )

    with injected(Fault("before", operation="UpdateItem", between=ended)):
        resume = await resume_pipeline("s")
    assert (resume.outputs, resume.start_agent) == ({"nl_input": ["in time"]}, "ui_selection")


async def test_a_session_that_is_lost_while_adopting_is_not_resumed(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    await update_agent_execution(
        execution_id="s-nl_input", status="COMPLETED", output_data=["bare"]
    )

    def lost() -> None:
        raw.put_attribute(strict_store, "pipeline-sessions", "s", fence={"N": "9"})

    with injected(Fault("before", operation="TransactWriteItems", between=lost)):
        assert not await resume_pipeline("s")
    execution = raw.item(strict_store, "agent-executions", "s-nl_input", "nl_input")
    assert execution is not None
    assert "fence" not in execution
