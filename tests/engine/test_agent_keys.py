"""Agents that run more than once in a session, each run under a key of its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    Settings,
    Unavailable,
    flush_metrics,
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    get_pipeline_session,
    query_metrics,
    resume_pipeline,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import clock
from tests.faults import Fault, injected


async def test_each_key_is_an_execution_of_its_own(store: Settings) -> None:
    async with track_session("s") as session:

        async def evaluate(key: str | int) -> None:
            async with session.agent("evaluator", {"round": key}, key=key) as run:
                run.output = f"round {key}"

        await asyncio.gather(*(evaluate(number) for number in range(3)))
        await evaluate("last one")
        async with session.agent("parser", key="x") as run:
            run.output = 1
        assert session.outputs["evaluator@1"] == "round 1"
    stored = await get_agent_execution("s-evaluator", "evaluator@last one")
    assert (stored.agent_name, stored.project_id) == ("evaluator@last one", "s")
    assert (stored.input_data, stored.output_data) == ({"round": "last one"}, "round last one")
    session_after = await get_pipeline_session("s")
    assert (session_after.progress, session_after.current_agent) == (0, "parser@x")


@pytest.mark.parametrize("lags", [False, True])
async def test_a_resume_finds_each_key_even_if_the_index_lags(
    strict_store: Settings, lags: bool
) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            for number in range(3):
                async with session.agent("evaluator", key=number) as run:
                    run.output = number
                    if number == 2:
                        raise KeyError
    fault = Fault("stale", operation="Query")
    with injected(fault, needed=lags) if lags else settings.use():
        async with await resume_pipeline("s") as resume:
            done = []
            for number in range(3):
                async with resume.agent("evaluator", key=number) as run:
                    done.append((run.done, run.output))
                    run.output = run.output if run.done else "again"
    assert done == [(True, 0), (True, 1), (False, None)]
    attempts = (await get_agent_execution("s-evaluator", "evaluator@1")).attempts
    assert len(attempts) == 1


async def test_an_agent_that_is_tried_again_gets_what_had_ended_inside(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdev_models.retry.DICE.uniform", lambda least, most: 0.001)
    calls: list[int] = []

    def part(number: int) -> int:
        calls.append(number)
        if number == 2 and calls.count(2) == 1:
            raise ValueError("the first try of the last part")
        return number

    async with track_session("s") as session:

        async def parts() -> list[int]:
            first = asyncio.gather(*(session.run("part", part, one, key=one) for one in range(2)))
            return [*await first, await session.run("part", part, 2, key=2)]

        assert await session.run("generation", parts, attempts=2) == [0, 1, 2]
        with pytest.raises(InvalidRequest, match="'part@0' has ended"):
            await session.run("part", part, 0, key=0)
    with sync.track_session("t") as blocking:
        calls.clear()

        def one_part(number: int) -> Any:
            return blocking.run("part", part, number, key=number)

        for _ in range(2):
            with suppress(ValueError), blocking.agent("generation") as run:
                with ThreadPoolExecutor(2) as threads:
                    run.output = [*threads.map(one_part, range(3))]
        assert blocking.outputs["generation"] == [0, 1, 2]
    assert sorted(calls) == [0, 1, 2, 2]
    assert (await get_pipeline_session("t")).status == "COMPLETED"


@pytest.mark.parametrize("key", [None, "a"])
async def test_the_same_name_twice_in_one_claim_is_an_error_that_names_the_key(
    strict_store: Settings, key: str | None
) -> None:
    with pytest.raises(InvalidRequest, match=r"evaluator.* has ended .* key="):
        async with track_session("s") as session:
            async with session.agent("evaluator", key=key) as run:
                run.output = 1
            async with session.agent("evaluator", key=key) as run:
                raise AssertionError("skipped in silence before")
    # Nor does a resume pass the first one's output off as the second's.
    with pytest.raises(InvalidRequest, match="has ended"):
        async with await resume_pipeline("s") as resume:
            for _ in range(2):
                async with resume.agent("evaluator", key=key) as run:
                    assert (run.done, run.output) == (True, 1)


async def test_the_same_name_twice_at_once_is_an_error(strict_store: Settings) -> None:
    async with track_session("s") as session, session.agent("evaluator") as run:
        with pytest.raises(InvalidRequest, match="is running"):
            await session.agent("evaluator").__aenter__()
        run.output = 1
    assert (await get_agent_execution("s-evaluator", "evaluator")).output_data == 1


@pytest.mark.parametrize("critical", [True, False])
async def test_an_agent_that_failed_is_tried_again_under_its_name(
    strict_store: Settings, critical: bool
) -> None:
    async with track_session("s") as session:
        for number in range(3):
            try:
                async with session.agent("parser", critical=critical) as run:
                    assert not run.done
                    run.output = number
                    if number < 2:
                        raise ValueError
            except ValueError:
                assert critical
    attempts = (await get_agent_execution("s-parser")).attempts
    assert [one.status for one in attempts] == ["FAILED", "FAILED", "COMPLETED"]
    assert (await get_pipeline_session("s")).progress == 1


async def test_a_block_that_could_not_begin_may_be_tried_again(strict_store: Settings) -> None:
    with injected(Fault("broken", operation="TransactWriteItems")):
        async with track_session("s") as session:
            with pytest.raises(Exception, match="broken"):
                async with session.agent("parser"):
                    await asyncio.sleep(30)
            async with session.agent("parser") as run:
                run.output = 1


@pytest.mark.parametrize("critical", [True, False])
async def test_a_block_is_entered_once(strict_store: Settings, critical: bool) -> None:
    async with track_session("s") as session:
        block = session.agent("parser", critical=critical)
        with suppress(ValueError):
            async with block:
                raise ValueError
        with pytest.raises(InvalidRequest, match="this block of 'parser' was entered before"):
            await block.__aenter__()
        async with session.agent("parser") as run:
            run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_killed_run_of_a_key_runs_again_and_the_others_do_not(
    strict_store: Settings,
) -> None:
    tracker = await track_session("s").__aenter__()
    async with tracker.agent("evaluator", key="a") as run:
        run.output = 1
    await tracker.agent("evaluator", key="b").__aenter__()
    assert len(await get_agent_executions("s")) == 2  # it has begun
    with settings.use(strict_store, clock=clock(61)):
        async with await resume_pipeline("s") as resume:
            async with resume.agent("evaluator", key="a") as run:
                assert run.done
            async with resume.agent("evaluator", key="b") as run:
                assert not run.done


async def test_failures_of_keys_are_found_under_the_agent_and_counted_as_its(
    strict_store: Settings,
) -> None:
    with settings.use(strict_store, automatic_metrics=True):
        async with track_session("s") as session:
            for key in "ab":
                async with session.agent("evaluator", key=key, critical=False):
                    raise ValueError
        await flush_metrics()
        hours = (raw_now() - 3600, raw_now() + 3600)
        (row,) = await query_metrics("agent_failures", *hours, group_by="agent")
    assert (row.agent_name, row.count) == ("evaluator", 2)
    found = await get_failed_executions(agent_name="evaluator")
    assert {one.agent_name for one in found} == {"evaluator@a", "evaluator@b"}
    (one,) = await get_failed_executions(agent_name="evaluator@a")
    assert one.agent_name == "evaluator@a"


def raw_now() -> float:
    return settings.current().clock()


async def test_a_bare_call_reaches_the_run_of_a_key(strict_store: Settings) -> None:
    await update_agent_execution(
        execution_id="my-s-evaluator", agent_name="evaluator@a", status="COMPLETED", output_data=[1]
    )
    assert (await get_agent_execution("my-s-evaluator", "evaluator@a")).project_id == "my-s"


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a@b", None, "agent_name"),
        ("a", "x#y", "key"),
        ("a", "", "key"),
        ("a", 1.5, "key"),
        ("a", True, "key"),
        pytest.param("a", 10**5000, "key", id="which Python refuses to print"),
        ("a" * 100, "k" * 200, "key"),
        (7, None, "agent_name"),
        (None, 1, "agent_name"),
        ("", 1, "agent_name"),
    ],
)
def test_a_wrong_key_is_refused(strict_store: Settings, name: str, key: str, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        sync.track_session("s").agent(name, key=key)


def test_a_key_of_another_type_is_told_both_that_it_may_have(strict_store: Settings) -> None:
    with pytest.raises(InvalidRequest, match="must be a string or a whole number, not float"):
        sync.track_session("s").agent("a", key=1.5)  # type: ignore[arg-type]


async def test_an_unread_key_stops_the_agent_and_not_more(strict_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s"):
            raise KeyError
    fault = Fault("lost", operation="GetItem", table="agent-executions")
    with injected(fault), pytest.raises(Unavailable):
        async with await resume_pipeline("s") as resume, resume.agent("evaluator", key=1):
            raise AssertionError("began without knowing whether it had ended")
    assert raw.everything(strict_store, "agent-executions") == []
