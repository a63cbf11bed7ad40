"""One agent's run: when it has ended, what it hands back, how it fails."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress

import pytest

from tdev_models import (
    InvalidRequest,
    LeaseLost,
    Resume,
    Settings,
    get_agent_execution,
    get_pipeline_session,
    resume_pipeline,
    track_session,
    update_agent_execution,
)
from tests.faults import Fault, injected


async def test_a_cancelled_agent_has_not_ended_even_if_it_is_not_critical(store: Settings) -> None:
    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("nl_input", critical=False):
            task.cancel()
            await asyncio.sleep(30)

    task = asyncio.create_task(pipeline())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await resume_pipeline("s")).start_agent == "nl_input"


async def test_a_cancellation_that_nobody_requested_is_passed_over_where_it_is_not_critical(
    store: Settings,
) -> None:
    async def awaits_what_was_cancelled() -> None:
        task = asyncio.create_task(asyncio.sleep(30))
        task.cancel()
        await task

    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("nl_input", critical=False):
                await awaits_what_was_cancelled()
            raise KeyError
    async with await resume_pipeline("s") as session, session.agent("nl_input") as run:
        assert (run.done, run.status, run.error) == (True, "FAILED", "CancelledError: ")


@pytest.mark.parametrize("retry_failed", [False, True])
async def test_an_agent_of_ones_own_shows_how_it_ended_though_the_index_lags(
    strict_store: Settings, retry_failed: bool
) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("lint", critical=False) as run:
                run.fail("too long")
            raise KeyError
    with injected(Fault("stale", operation="Query")):
        async with await resume_pipeline("s") as resume:
            async with resume.agent("lint", retry_failed=retry_failed) as run:
                assert run.done is not retry_failed
            expected = ("COMPLETED", None) if retry_failed else ("FAILED", "too long")
            assert (run.status, run.error) == expected


@pytest.mark.parametrize("by", ["call", "block"])
async def test_an_agent_shows_how_it_ended_under_this_claim(
    strict_store: Settings, by: str
) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session, session.agent("parser"):
            raise KeyError
    async with await resume_pipeline("s") as resume:
        with pytest.raises(ValueError, match="around"):
            async with resume.agent("generation"):
                if by == "call":
                    await update_agent_execution(execution_id="s-parser", status="COMPLETED")
                else:
                    async with resume.agent("parser"):
                        pass
                raise ValueError("around")
        async with resume.agent("generation"), resume.agent("parser") as run:
            assert (run.done, run.status, run.error) == (True, "COMPLETED", None)


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


@pytest.mark.parametrize("once", [False, True])
async def test_what_is_made_is_stored_though_its_task_is_cancelled_meanwhile(
    strict_store: Settings, once: bool
) -> None:
    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("nl_input") as run:
            if once:
                await run.once("mail", lambda: "large" * 1000)
            run.usage(input_tokens=3)
            run.output = "large" * 1000

    # While its first chunk is stored.
    fault = Fault(
        "before",
        operation="UpdateItem",
        table="agent-executions",
        between=lambda: task.cancel() and asyncio.sleep(0),
    )
    with injected(fault):
        task = asyncio.create_task(pipeline())
        with pytest.raises(asyncio.CancelledError):
            await task
    async with track_session("s") as session, session.agent("nl_input") as run:
        if once:
            assert await run.once("mail", lambda: "again") == "large" * 1000
        else:
            assert (run.done, run.output) == (True, "large" * 1000)
    assert (await get_pipeline_session("s")).input_tokens == (None if once else 3)


async def test_an_agent_that_a_call_ended_hands_back_what_the_call_stored(
    strict_store: Settings,
) -> None:
    agent = {"execution_id": "s-nl_input"}
    async with track_session("s") as session:
        await update_agent_execution(agent, status="COMPLETED", output_data=[1])
        with pytest.raises(KeyError):
            async with session.agent("nl_input") as run:
                assert run.done
                assert run.output == [1]
                raise KeyError
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
    assert "is not recorded" in raised.value.__notes__[0]
    assert (await get_pipeline_session("s")).status == "FAILED"


async def test_what_a_call_stored_in_the_block_is_the_agents_output(strict_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("nl_input") as run:
                await update_agent_execution(
                    execution_id="s-nl_input", status="COMPLETED", output_data={"a": 1}
                )
            assert session.outputs == {"nl_input": {"a": 1}}
            assert run.output == {"a": 1}
            raise KeyError
    assert (await resume_pipeline("s")).outputs == {"nl_input": {"a": 1}}


async def test_a_session_is_not_completed_while_an_agent_of_a_former_claim_is_left_failed(
    strict_store: Settings,
) -> None:
    async def forgets(resume: Resume) -> None:
        async with resume.agent("download") as run:
            run.output = 1

    async def runs(resume: Resume) -> None:
        async with resume.agent("generation") as run:
            run.output = 1

    with pytest.raises(ValueError, match="broke"):
        async with track_session("s") as session, session.agent("generation"):
            raise ValueError("broke")
    await resume_pipeline("s", forgets)
    left = await get_pipeline_session("s")
    assert (left.status, left.failed_agent) == ("FAILED", "generation")
    assert "broke" in (left.error_message or "")
    await resume_pipeline("s", runs)
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_an_agent_of_a_former_claim_that_was_not_critical_may_be_left_out(
    strict_store: Settings,
) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("search", critical=False) as run:
                run.fail("found nothing")
            async with session.agent("parser"):
                raise KeyError
    async with await resume_pipeline("s") as resume, resume.agent("parser"):
        pass
    assert (await get_pipeline_session("s")).status == "COMPLETED"


@pytest.mark.parametrize("failed_by", ["block", "former claim", "call"])
async def test_a_session_ends_as_what_calls_in_its_block_have_made_of_an_agent(
    strict_store: Settings, failed_by: str
) -> None:
    run = {"execution_id": "s-parser"}

    async def calls(status: str) -> None:
        await update_agent_execution(run, status="RUNNING")
        more = {"error_message": "of a call"} if status == "FAILED" else {}
        await update_agent_execution({**run, **more}, status=status)

    with suppress(ValueError):
        async with track_session("s") as session:
            if failed_by != "call":
                with pytest.raises(ValueError, match="broke"):
                    async with session.agent("parser"):
                        raise ValueError("broke")
            if failed_by == "former claim":
                raise ValueError
            await calls("FAILED" if failed_by == "call" else "COMPLETED")
    left = await get_pipeline_session("s")
    if failed_by != "block":
        assert (left.status, left.failed_agent) == ("FAILED", "parser")
        assert left.error_message == ("of a call" if failed_by == "call" else "ValueError: ")
        async with await resume_pipeline("s"):
            await calls("COMPLETED")
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_what_a_call_failed_that_is_not_critical_fails_no_session(
    strict_store: Settings,
) -> None:
    async with track_session("s") as session:
        async with session.agent("parser", critical=False) as run:
            run.fail("found nothing")
        await update_agent_execution(
            execution_id="s-parser", status="FAILED", error_message="found nothing at all"
        )
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_an_input_that_cannot_be_stored_names_its_agent(strict_store: Settings) -> None:
    for session_id, caught in (("s", False), ("t", True)):
        with suppress(InvalidRequest):
            async with track_session(session_id) as session:
                with pytest.raises(InvalidRequest) if caught else nullcontext():
                    async with session.agent("parser", object()):
                        pass
        left = await get_pipeline_session(session_id)
        assert (left.status, left.failed_agent) == ("FAILED", "parser")
        assert "input_data: object has no JSON form" in (left.error_message or "")


async def test_an_agent_begins_no_second_time_while_its_end_is_stored(
    strict_store: Settings,
) -> None:
    async def again() -> None:
        with pytest.raises(InvalidRequest, match="is running"):
            async with asyncio.timeout(5), session.agent("parser"):
                pass

    fault = Fault("before", operation="TransactWriteItems", nth=2, between=again)
    with injected(fault):
        async with track_session("s") as session, session.agent("parser") as run:
            run.output = 1
    assert (await get_agent_execution("s-parser")).output_data == 1
