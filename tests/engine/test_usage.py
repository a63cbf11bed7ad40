"""Tokens and money: counted once, summed up, and stopped by a budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from tdev_models import (
    BudgetSpent,
    InvalidRequest,
    Resume,
    Session,
    Settings,
    flush_metrics,
    get_agent_execution,
    get_pipeline_session,
    query_metrics,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import clock
from tests.faults import Died, Fault, injected

USAGE: dict[str, Any] = {"input_tokens": 100, "output_tokens": 10, "cost_usd": 0.1, "model": "m-1"}


def totals(of: Any) -> tuple[Any, ...]:
    return of.input_tokens, of.output_tokens, of.cost_usd


async def test_usage_adds_up_within_a_run_and_over_the_session(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("parser") as run:
            run.usage(**USAGE)
            run.usage(**{**USAGE, "cost_usd": 0.2, "model": "m-2"})
            run.usage(output_tokens=1)
        async with session.agent("search") as run:
            run.usage(cost_usd=1)
        async with session.agent("download"):
            pass
    parser = await get_agent_execution("s-parser")
    assert totals(parser) == (200, 21, pytest.approx(0.3))
    assert parser.model == "m-2"
    assert totals(await get_agent_execution("s-download")) == (None, None, None)
    assert totals(await get_pipeline_session("s")) == (200, 21, pytest.approx(1.3))


async def test_money_is_summed_up_without_the_errors_of_floats(strict_store: Settings) -> None:
    async with track_session("s") as session:
        for number in range(10):
            async with session.agent("evaluator", key=number) as run:
                run.usage(cost_usd=0.1)
    assert (await get_pipeline_session("s")).cost_usd == 1


async def test_a_budget_is_spent_by_a_sum_of_floats_that_is_a_little_less(
    strict_store: Settings,
) -> None:
    with pytest.raises(BudgetSpent):
        async with track_session("s", budget_usd=1) as session:
            for number in range(11):
                async with session.agent("evaluator", key=number) as run:
                    run.usage(cost_usd=0.1)
    assert (await get_pipeline_session("s")).cost_usd == 1


async def test_what_failed_attempts_used_counts_too(strict_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            for _ in range(2):
                with pytest.raises(ValueError, match="x"):
                    async with session.agent("parser") as run:
                        run.usage(**USAGE)
                        raise ValueError("x")
            raise KeyError
    async with await resume_pipeline("s") as resume, resume.agent("parser") as run:
        run.usage(**USAGE)
    assert totals(await get_agent_execution("s-parser")) == (300, 30, pytest.approx(0.3))
    assert totals(await get_pipeline_session("s")) == (300, 30, pytest.approx(0.3))


@pytest.mark.parametrize("kind", ["resent", "unanswered", "missed", "conflict", "throttled"])
@pytest.mark.parametrize("fails", [False, True])
async def test_an_end_that_is_sent_again_counts_once(
    strict_store: Settings, kind: str, fails: bool
) -> None:
    with injected(Fault(kind, operation="TransactWriteItems", nth=2)):
        async with track_session("s") as session:
            async with session.agent("parser", critical=False) as run:
                run.usage(**USAGE)
                if fails:
                    raise ValueError
    assert totals(await get_agent_execution("s-parser")) == (100, 10, 0.1)
    assert totals(await get_pipeline_session("s")) == (100, 10, 0.1)


@pytest.mark.parametrize("ended_by_a_call", [False, True])
async def test_an_end_that_is_made_anew_after_it_was_stored_counts_once(
    strict_store: Settings, ended_by_a_call: bool
) -> None:
    """Another agent's end comes between two copies: the second is another request."""
    fault = Fault("resent", operation="TransactWriteItems", nth=4 if ended_by_a_call else 2)
    with injected(fault):
        async with track_session("s") as session, session.agent("parser") as run:

            def between() -> None:
                lease = session.owned
                lease.ended_agents = {*lease.ended_agents, "search"}

            fault.between = between
            run.usage(**USAGE)
            if ended_by_a_call:
                await update_agent_execution(execution_id="s-parser", status="COMPLETED")
    assert totals(await get_agent_execution("s-parser")) == (100, 10, 0.1)
    assert totals(await get_pipeline_session("s")) == (100, 10, 0.1)


@pytest.mark.parametrize(("kind", "counted"), [("dies", None), ("dies-after", 100)])
async def test_who_dies_at_the_end_has_counted_it_or_not_with_the_end_itself(
    strict_store: Settings, kind: str, counted: int | None
) -> None:
    with injected(Fault(kind, operation="TransactWriteItems", nth=2)), pytest.raises(Died):
        async with track_session("s") as session, session.agent("parser") as run:
            run.usage(**USAGE)
    assert (await get_pipeline_session("s")).input_tokens == counted
    with settings.use(strict_store, clock=clock(61)):
        async with await resume_pipeline("s") as resume, resume.agent("parser") as run:
            assert run.done == (counted is not None)
            run.usage(**USAGE)
    assert (await get_pipeline_session("s")).input_tokens == 100


@pytest.mark.parametrize("fault", ["before", "resent", "unanswered", "conflict"])
@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
async def test_what_ends_after_its_session_was_ended_in_its_block_counts_too(
    strict_store: Settings, fault: str, status: str
) -> None:
    with injected(Fault(fault, operation="TransactWriteItems", nth=4)):
        async with track_session("s") as session:
            async with session.agent("search") as run:
                run.usage(**USAGE)
            async with session.agent("parser") as run:
                run.usage(**USAGE)
                await save_pipeline_session(session_id="s", status=status)
    assert totals(await get_agent_execution("s-parser")) == (100, 10, 0.1)
    session_after = await get_pipeline_session("s")
    assert (session_after.status, totals(session_after)) == (status, (200, 20, 0.2))


async def test_what_a_call_ended_after_its_session_was_ended_counts_too(
    strict_store: Settings,
) -> None:
    async with track_session("s") as session, session.agent("parser") as run:
        run.usage(**USAGE)
        await update_agent_execution(execution_id="s-parser", status="FAILED", error_message="x")
        await save_pipeline_session(session_id="s", status="FAILED")
    assert totals(await get_agent_execution("s-parser")) == (100, 10, 0.1)
    assert totals(await get_pipeline_session("s")) == (100, 10, 0.1)


async def test_parallel_agents_are_all_counted(strict_store: Settings) -> None:
    async with track_session("s") as session:

        async def agent(number: int) -> None:
            async with session.agent("evaluator", key=number) as run:
                await asyncio.sleep(0.01)
                run.usage(**USAGE)

        await asyncio.gather(*(agent(number) for number in range(6)))
    assert totals(await get_pipeline_session("s")) == (600, 60, pytest.approx(0.6))


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_tokens": -1},
        {"input_tokens": 1.5},
        {"input_tokens": True},
        {"output_tokens": 10**16},
        {"cost_usd": -0.01},
        {"cost_usd": float("nan")},
        {"cost_usd": float("inf")},
        {"cost_usd": "1"},
        {"cost_usd": 1e60},
        {"model": "a#b"},
        {"model": ""},
        {"model": 7},
    ],
)
def test_wrong_numbers_are_refused_and_add_nothing(
    strict_store: Settings, wrong: dict[str, Any]
) -> None:
    with sync.track_session("s") as session, session.agent("parser") as run:
        with pytest.raises(InvalidRequest, match=f"^{next(iter(wrong))}: "):
            run.usage(**{**USAGE, **wrong})
        run.usage(cost_usd=Decimal("0.5"))  # type: ignore[arg-type]
    assert totals(sync.get_agent_execution("s-parser")) == (None, None, 0.5)


async def test_the_largest_and_the_smallest_costs_add_up(store: Settings) -> None:
    async with track_session("s") as session:
        for number, cost in enumerate((1e15, 1e15, 0.1, 1.2345e-9, 5.551115123125783e-30)):
            async with session.agent("parser", key=number) as run:
                run.usage(cost_usd=cost)
    assert (await get_pipeline_session("s")).cost_usd == pytest.approx(2e15)


async def test_usage_outside_of_a_running_agent_is_not_lost_in_silence(
    strict_store: Settings,
) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            run = session.agent("parser")
            with pytest.raises(InvalidRequest, match="belongs inside parser's block"):
                run.usage(**USAGE)
            async with run:
                pass
            with pytest.raises(InvalidRequest, match="belongs inside"):
                run.usage(**USAGE)
            raise KeyError
    async with await resume_pipeline("s") as resume, resume.agent("parser") as run:
        assert run.done
        run.usage(**USAGE)
    assert totals(await get_pipeline_session("s")) == (None, None, None)


async def test_usage_is_in_the_metrics(strict_store: Settings) -> None:
    with settings.use(strict_store, automatic_metrics=True):
        async with track_session("s") as session:
            for key in "ab":
                async with session.agent("evaluator", key=key) as run:
                    run.usage(**USAGE)
        await flush_metrics()
        hours = (time.time() - 3600, time.time() + 3600)
        (tokens,) = await query_metrics("agent_tokens", *hours, group_by="dimension")
        (cost,) = await query_metrics("agent_cost_usd", *hours, group_by="agent")
    assert (tokens.dimension, tokens.count, tokens.sum) == ("m-1", 2, 220)
    assert cost.agent_name == "evaluator"
    assert cost.sum == pytest.approx(0.2)


async def test_a_spent_budget_stops_the_next_agent_and_a_larger_one_goes_on(
    store: Settings,
) -> None:
    with pytest.raises(BudgetSpent, match=r"s has spent 0\.2 USD of its budget of 0\.15 USD"):
        async with track_session("s", budget_usd=0.15) as session:
            for name in ("nl_input", "ui_selection", "parser"):
                async with session.agent(name) as run:
                    run.usage(cost_usd=0.1)
                    run.output = name
    failed = await get_pipeline_session("s")
    assert (failed.status, failed.budget_usd, failed.cost_usd) == ("FAILED", 0.15, 0.2)
    assert (failed.error_message or "").startswith("BudgetSpent: ")
    assert raw.item(store, "agent-executions", "s-parser", "parser") is None
    # What had ended is handed back all the same.
    with pytest.raises(BudgetSpent):
        async with await resume_pipeline("s") as resume:
            async with resume.agent("nl_input") as run:
                assert run.output == "nl_input"
            await resume.agent("parser").__aenter__()
    async with track_session("s", budget_usd=0.5) as session, session.agent("parser") as run:
        run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_budget_can_be_raised_by_a_call_inside_and_between(strict_store: Settings) -> None:
    with pytest.raises(BudgetSpent):
        async with track_session("s", budget_usd=1) as session:
            async with session.agent("nl_input") as run:
                run.usage(cost_usd=1)
            with pytest.raises(BudgetSpent):
                await session.agent("ui_selection").__aenter__()
            await save_pipeline_session(session_id="s", budget_usd=2)
            async with session.agent("ui_selection") as run:
                run.usage(cost_usd=1)
            await session.agent("parser").__aenter__()
    assert isinstance(await save_pipeline_session(session_id="s", budget_usd=3), Session)
    async with await resume_pipeline("s") as resume, resume.agent("parser"):
        pass
    with pytest.raises(InvalidRequest, match=r"^budget_usd: must be above 0"):
        track_session("t", budget_usd=0)


async def test_a_spent_budget_that_is_caught_still_fails_the_session(
    strict_store: Settings,
) -> None:
    async with track_session("s", budget_usd=1) as session:
        async with session.agent("nl_input") as run:
            run.usage(cost_usd=1)
        with pytest.raises(BudgetSpent):
            await session.agent("ui_selection").__aenter__()
    assert (await get_pipeline_session("s")).status == "FAILED"


async def test_an_orchestrator_inside_a_runner_raises_the_budget(strict_store: Settings) -> None:
    async def orchestrate(session_id: str, budget: float) -> None:
        async with track_session(session_id, budget_usd=budget, metadata={"b": budget}) as session:
            for name in ("nl_input", "parser", "search"):
                async with session.agent(name) as run:
                    run.usage(cost_usd=3)

    with pytest.raises(BudgetSpent, match="track it again, or save it, with a larger budget_usd"):
        await orchestrate("s", 5)
    assert await resume_pipeline("s", lambda resume: orchestrate(resume.session_id, 100))
    done = await get_pipeline_session("s")
    assert (done.status, done.budget_usd, done.metadata) == ("COMPLETED", 100, {"b": 100})


async def save_it() -> None:
    await save_pipeline_session(session_id="s", budget_usd=2)


async def track_it() -> None:
    """Fail for another reason, before an agent has ended."""
    with pytest.raises(KeyError):
        async with track_session("s", budget_usd=2):
            raise KeyError


def in_a_runner(give_money: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def runner(_: Resume) -> None:
        await give_money()
        raise KeyError

    async def resume() -> None:
        with pytest.raises(KeyError):
            await resume_pipeline("s", runner)

    return resume


@pytest.mark.parametrize(
    "give_money",
    [save_it, in_a_runner(save_it), track_it, in_a_runner(track_it)],
    ids=["saved", "saved in a runner", "tracked", "tracked in a runner"],
)
async def test_a_session_that_waits_for_money_is_not_given_up(
    strict_store: Settings, give_money: Callable[[], Awaitable[None]]
) -> None:
    async def runner(resume: Resume) -> None:
        async with resume.agent("search"):
            pass

    async def as_before(resume: Resume) -> None:
        async with track_session("s", budget_usd=1):  # this is no more money
            await runner(resume)

    with pytest.raises(BudgetSpent):
        async with track_session("s", budget_usd=1) as session:
            async with session.agent("parser") as run:
                run.usage(cost_usd=1)
            async with session.agent("search"):
                pass
    for seconds, ids in ((0, ["s"]), (4000, ["s"]), (8000, [])):
        with settings.use(strict_store, clock=clock(seconds)):
            tried = await recover_sessions(as_before, max_attempts=2)
            assert (tried.failed, tried.abandoned) == (ids, [])
    await give_money()
    with settings.use(strict_store, clock=clock(12000)):
        assert (await recover_sessions(runner, max_attempts=2)).completed == ["s"]
