"""An agent as a call: `session.run`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from tdev_models import (
    BudgetSpent,
    InvalidRequest,
    Settings,
    get_agent_execution,
    get_failed_executions,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tests.engine.pipelines import clock
from tests.faults import Died, Fault, injected


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdev_models.retry.DICE.uniform", lambda least, most: 0.001)


class Flaky:
    """An agent that fails so many times."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self, prompt: str = "p") -> dict[str, Any]:
        self.calls += 1
        if self.calls <= self.failures:
            raise ValueError(f"try {self.calls}")
        return {"answer": f"{prompt} {self.calls}"}

    async def later(self, prompt: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self(prompt)


async def test_a_call_stores_and_returns_the_output_and_a_resume_hands_it_back(
    store: Settings,
) -> None:
    agent = Flaky(0)
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            answer = await session.run("parser", agent.later, "q", input_data=[1], variant="b")
            assert answer == {"answer": "q 1"}
            raise KeyError
    stored = await get_agent_execution("s-parser")
    assert (stored.status, stored.output_data, stored.input_data, stored.variant) == (
        "COMPLETED",
        {"answer": "q 1"},
        [1],
        "b",
    )
    async with await resume_pipeline("s") as resume:
        assert await resume.run("parser", agent.later, "q") == {"answer": "q 1"}
    assert agent.calls == 1


def test_the_blocking_form_is_the_same_without_await(store: Settings) -> None:
    agent = Flaky(1)
    with pytest.raises(KeyError), sync.track_session("s") as session:
        assert session.run("parser", agent, "q", attempts=2) == {"answer": "q 2"}
        raise KeyError
    with sync.resume_pipeline("s") as resume:
        assert resume.run("parser", agent, "q") == {"answer": "q 2"}
    assert agent.calls == 2
    assert [one.status for one in sync.get_agent_execution("s-parser").attempts] == [
        "FAILED",
        "COMPLETED",
    ]


async def test_what_is_returned_is_what_a_resume_returns(strict_store: Settings) -> None:
    @dataclass
    class Result:
        pair: tuple[int, int]

    async with track_session("s") as session:
        assert await session.run("parser", Result, (1, 2)) == {"pair": [1, 2]}
        assert await session.run("search", lambda: None) is None


async def test_attempts_are_stored_and_the_last_error_is_raised(strict_store: Settings) -> None:
    agent = Flaky(9)
    with pytest.raises(ValueError, match="try 3"):
        async with track_session("s") as session:
            await session.run("parser", agent.later, "q", attempts=3)
    stored = await get_agent_execution("s-parser")
    assert [(one.status, one.error_message) for one in stored.attempts] == [
        ("FAILED", f"ValueError: try {number}") for number in (1, 2, 3)
    ]
    failed = await get_pipeline_session("s")
    assert (failed.status, failed.failed_agent, failed.error_message) == (
        "FAILED",
        "parser",
        "ValueError: try 3",
    )


async def test_a_retry_that_succeeds_leaves_no_failure(strict_store: Settings) -> None:
    agent = Flaky(2)
    async with track_session("s") as session:
        assert await session.run("parser", agent, "q", attempts=3) == {"answer": "q 3"}
    done = await get_pipeline_session("s")
    assert (done.status, done.failed_agent, done.progress) == ("COMPLETED", None, 1)
    assert (await get_agent_execution("s-parser")).retry_count == 2


async def test_a_call_that_is_not_critical_returns_none_and_stores_its_failure(
    strict_store: Settings,
) -> None:
    async with track_session("s") as session:
        assert await session.run("parser", Flaky(9), attempts=2, critical=False) is None
    assert (await get_pipeline_session("s")).status == "COMPLETED"
    failed = await get_agent_execution("s-parser")
    assert (failed.status, len(failed.attempts)) == ("FAILED", 2)


async def test_who_dies_between_two_attempts_has_not_used_up_the_others(
    strict_store: Settings,
) -> None:
    agent = Flaky(1)
    # Session, begin, look, end: then the next attempt would begin.
    fault = Fault("dies-after", operation="TransactWriteItems", nth=2)
    with injected(fault), pytest.raises(Died):
        async with track_session("s") as session:
            await session.run("parser", agent, "q", attempts=2, critical=False)
    with settings.use(strict_store, clock=clock(61)):
        async with await resume_pipeline("s") as resume:
            assert await resume.run("parser", agent, "q", critical=False) == {"answer": "q 2"}


@pytest.mark.parametrize("kind", ["dies", "dies-after"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_who_dies_at_any_write_of_a_call_goes_on_there(
    strict_store: Settings, kind: str, nth: int
) -> None:
    agent = Flaky(0)
    with injected(Fault(kind, operation="TransactWriteItems", nth=nth)), pytest.raises(Died):
        async with track_session("s") as session:
            await session.run("parser", agent, "q", key=1)
    stored = (kind, nth) == ("dies-after", 2)
    before = agent.calls
    with settings.use(strict_store, clock=clock(61)):
        async with await resume_pipeline("s") as resume:
            await resume.run("parser", agent, "q", key=1)
    assert agent.calls - before == (0 if stored else 1)


async def test_a_coroutine_is_cancelled_at_its_timeout_and_tried_again(
    strict_store: Settings,
) -> None:
    cancelled: list[int] = []

    async def hangs_once(seconds: float) -> str:
        try:
            await asyncio.sleep(0 if cancelled else seconds)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return "in time"

    async with track_session("s") as session:
        assert await session.run("parser", hangs_once, 30, timeout=0.1, attempts=2) == "in time"
    assert cancelled == [1]
    first, _ = (await get_agent_execution("s-parser")).attempts
    assert first.status == "FAILED"
    assert first.error_message == "TimeoutError: it took longer than 0.1 s"
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_plain_function_leaves_the_loop_free_and_is_abandoned_at_its_timeout(
    strict_store: Settings,
) -> None:
    go, ticks = threading.Event(), 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(TimeoutError):
        async with track_session("s") as session:
            await session.run("parser", go.wait, 30, timeout=0.3)
    ticking.cancel()
    go.set()
    assert ticks > 5
    assert (await get_pipeline_session("s")).failed_agent == "parser"


def test_a_blocking_call_is_abandoned_at_its_timeout(strict_store: Settings) -> None:
    go = threading.Event()
    begun = time.monotonic()
    with sync.track_session("s") as session:
        assert session.run("parser", go.wait, 30, timeout=0.2, critical=False) is None
        # What was abandoned changes nothing any more.
        go.set()
        assert session.run("search", lambda: 1, timeout=5) == 1
    assert time.monotonic() - begun < 10
    failed = sync.get_agent_execution("s-parser")
    assert (failed.status, failed.output_data) == ("FAILED", None)
    assert failed.error_message == "TimeoutError: it took longer than 0.2 s"


async def test_a_timeout_of_the_functions_own_is_raised_as_it_is(strict_store: Settings) -> None:
    def agent() -> None:
        raise TimeoutError("of the model")

    async with track_session("s") as session:
        with pytest.raises(TimeoutError, match="of the model"):
            await session.run("parser", agent, timeout=30)
        await session.run("parser", lambda: 1)
    with sync.track_session("t") as blocking:
        with pytest.raises(TimeoutError, match="of the model"):
            blocking.run("parser", agent, timeout=30)
        blocking.run("parser", lambda: 1)


async def test_a_plain_function_that_raises_stop_iteration_has_failed(
    strict_store: Settings,
) -> None:
    """Python 3.11 would not wake the task that waits for its thread."""
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        async with asyncio.timeout(10), track_session("s") as session:
            await session.run("parser", next, iter(()))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        with sync.track_session("t") as blocking:
            blocking.run("parser", next, iter(()), timeout=10)
    assert (await get_pipeline_session("s")).status == "FAILED"


async def test_a_plain_function_acts_under_the_lease_in_its_thread(strict_store: Settings) -> None:
    def agent() -> str:
        return sync.save_pipeline_session(session_id="s", project_name="inside").status

    async with track_session("s") as session:
        assert await session.run("parser", agent) == "ACTIVE"
        assert await session.run("search", lambda: save_pipeline_session(session_id="s"))
    assert (await get_pipeline_session("s")).project_name == "inside"


async def test_parallel_calls_under_keys(strict_store: Settings) -> None:
    async with track_session("s") as session:
        results = await asyncio.gather(
            *(session.run("evaluator", pow, 2, number, key=number) for number in range(5))
        )
    assert results == [1, 2, 4, 8, 16]


async def test_an_output_that_cannot_be_stored_is_not_made_again(strict_store: Settings) -> None:
    calls: list[int] = []

    def agent() -> object:
        calls.append(1)
        return object()

    with pytest.raises(InvalidRequest, match=r"^output: object has no JSON form"):
        async with track_session("s") as session:
            await session.run("parser", agent, attempts=3)
    assert calls == [1]
    assert (await get_agent_execution("s-parser")).status == "FAILED"


async def test_usage_of_a_result_is_stored(strict_store: Settings) -> None:
    async with track_session("s") as session:
        await session.run(
            "parser", lambda: {"tokens": 7}, usage=lambda result: {"input_tokens": result["tokens"]}
        )
    assert (await get_agent_execution("s-parser")).input_tokens == 7


async def test_the_same_call_twice_in_one_claim_names_the_key(strict_store: Settings) -> None:
    with pytest.raises(InvalidRequest, match="key="):
        async with track_session("s") as session:
            for _ in range(2):
                await session.run("evaluator", Flaky(0))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("function", {"function": 7}),
        ("attempts", {"attempts": 0}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": float("nan")}),
        ("input_data", {"input_data": object()}),
        ("key", {"key": ""}),
        ("usage", {"usage": {"cost_usd": 1}}),
        ("usage", {"usage": Flaky(0).later}),
        ("critical", {"critical": "no"}),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_called(
    strict_store: Settings, field: str, arguments: dict[str, Any]
) -> None:
    calls: list[int] = []
    with sync.track_session("s") as session:
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            session.run("parser", **{"function": lambda: calls.append(1), **arguments})
    assert not calls


class Awaitable:
    async def __call__(self) -> str:
        return "done"


@pytest.mark.parametrize("function", [Awaitable().__call__, Awaitable()])
def test_a_coroutine_function_is_refused_where_it_cannot_be_awaited(
    strict_store: Settings, function: Any
) -> None:
    with sync.track_session("s") as session, session.agent("search") as run:
        for call in (session.run, run.once):
            with pytest.raises(InvalidRequest, match="is async"):
                call("parser", function)


async def test_the_settings_of_the_caller_say_what_becomes_json(strict_store: Settings) -> None:
    class Odd:
        """Has no JSON form of its own."""

    with settings.use(strict_store, json_default=lambda odd: "hooked", json_nan="refuse"):
        with pytest.raises(InvalidRequest, match="nan"):
            async with track_session("s") as session:
                assert await session.run("search", lambda: {"o": Odd()}) == {"o": "hooked"}
                async with session.agent("parser") as run:
                    assert await run.once("e", Odd) == "hooked"
                await session.run("generation", lambda: float("nan"))


@pytest.mark.parametrize("seconds", [Decimal("7.5"), 10**30])
async def test_a_timeout_is_any_number_above_0(strict_store: Settings, seconds: Any) -> None:
    def slow() -> int:
        time.sleep(0.1)
        return 1

    async with track_session("s") as session:
        assert await session.run("parser", slow, timeout=seconds) == 1
    with sync.track_session("t") as blocking:
        assert blocking.run("parser", slow, timeout=seconds) == 1


async def test_a_cancellation_that_nobody_requested_is_a_failure_like_any_other(
    strict_store: Settings,
) -> None:
    calls = 0

    async def agent() -> None:
        nonlocal calls
        calls += 1
        waits = asyncio.get_running_loop().create_future()
        waits.cancel()
        await waits

    async with track_session("s") as session:
        assert await session.run("search", agent, attempts=3, critical=False) is None
    assert calls == 3
    failed = await get_agent_execution("s-search")
    assert (failed.status, len(failed.attempts)) == ("FAILED", 3)
    assert failed.error_message == "RuntimeError: what the function awaited was cancelled"


def test_the_settings_of_the_session_say_so_in_any_thread(strict_store: Settings) -> None:
    with settings.use(strict_store, json_default=lambda odd: "hooked"):
        session = sync.track_session("s")

    def agents() -> None:
        assert session.run("search", lambda: object(), input_data=object()) == "hooked"
        with session.agent("parser") as run:
            assert run.once("e", lambda: object()) == "hooked"

    with session, ThreadPoolExecutor(1) as threads:
        threads.submit(agents).result()


async def test_a_wrong_usage_function_loses_no_result(strict_store: Settings) -> None:
    flaky = Flaky(0)
    with pytest.raises(InvalidRequest, match=r"^cost_usd: "):
        async with track_session("s") as session:
            await session.run("search", flaky, usage=lambda made: {"cost_usd": None})
    async with await resume_pipeline("s") as resume:
        assert await resume.run("search", flaky) == {"answer": "p 1"}
    assert flaky.calls == 1


async def test_a_spent_budget_inside_is_not_tried_again(strict_store: Settings) -> None:
    calls = 0
    with pytest.raises(BudgetSpent):
        async with track_session("s", budget_usd=1) as session:

            async def outer() -> None:
                nonlocal calls
                calls += 1
                async with session.agent("inner", key=calls) as run:
                    run.usage(cost_usd=1)
                async with session.agent("inner", key=f"{calls} more"):
                    pass

            await session.run("search", outer, attempts=3)
    assert calls == 1


async def test_the_traceback_of_a_timeout_says_where_it_waited(strict_store: Settings) -> None:
    async def waits_in_here() -> None:
        await asyncio.sleep(30)

    with pytest.raises(TimeoutError):
        async with track_session("s") as session:
            await session.run("search", waits_in_here, timeout=0.05)
    (failure,) = await get_failed_executions()
    assert "waits_in_here" in (failure.traceback or "")


def test_a_generator_is_refused_where_it_would_run_nothing(strict_store: Settings) -> None:
    def generator() -> Iterator[int]:
        yield 1

    with pytest.raises(ValueError, match="enough"), sync.track_session("s") as session:
        for call in (session.run, session.agent("parser").once):
            with pytest.raises(InvalidRequest, match=r"^function: is a generator"):
                call("search", generator)
        raise ValueError("enough")
    assert sync.get_agent_executions("s") == []
