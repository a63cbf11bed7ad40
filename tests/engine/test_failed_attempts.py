"""Failed attempts outlive their repair, and each is kept once."""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from contextlib import suppress
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    Failure,
    InvalidRequest,
    LeaseLost,
    RequestEvent,
    Settings,
    Unavailable,
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import clock, fail, finish
from tests.faults import Died, Fault, injected


class BrokenModel(Exception):
    """An error of a module of its own."""


def kept(store: Settings) -> list[tuple[str, str]]:
    """Return the keys of all items that keep a failed attempt."""
    return sorted(
        (item["execution_id"]["S"], item["agent_name"]["S"])
        for item in raw.everything(store, "agent-executions")
        if "#failed#" in item["agent_name"]["S"]
    )


def shown(failures: list[Failure]) -> list[tuple[str, int, bool]]:
    return [(one.agent_name, one.number, one.recovered) for one in failures]


async def failing(session: Any, name: str = "parser", error: Exception | None = None) -> None:
    with suppress(Exception):
        async with session.agent(name):
            raise error or BrokenModel("no answer")


async def test_what_failed_last_night_and_was_repaired_since_is_told(store: Settings) -> None:
    began = time.time()
    await fail("s")
    (now_failed,) = await get_failed_executions()
    assert not now_failed.recovered
    resumed = await resume_pipeline("s")
    async with resumed:
        await finish(resumed)
    assert (await get_pipeline_session("s")).status == "COMPLETED"
    assert await get_failed_executions() == []
    (one,) = await get_failed_executions(began, include_recovered=True)
    assert one == Failure(**{**now_failed, "recovered": True})
    assert (one.session_id, one.execution_id, one.agent_name) == ("s", "s-search", "search")
    assert (one.number, one.critical, one.variant) == (1, True, None)
    assert (one.error_class, one.error_message) == ("ValueError", "ValueError: broke")
    attempt = (await get_agent_execution("s-search")).attempts[0]
    assert (one.start_time, one.failed_at) == (attempt.start_time, attempt.end_time)
    assert one.worker == attempt.worker
    assert one.traceback is not None
    assert one.traceback.startswith("Traceback (most recent call last):")
    assert 'raise ValueError("broke")' in one.traceback
    assert one.traceback.endswith("ValueError: broke\n")


async def test_each_attempt_that_failed_is_kept(store: Settings) -> None:
    async with track_session("s") as session:
        for number in range(3):
            await failing(session, error=BrokenModel(f"try {number}"))
        async with session.agent("parser", variant="b") as run:
            run.output = 1
    assert kept(store) == [("s-parser", f"parser#failed#0000{number}") for number in (1, 2, 3)]
    found = await get_failed_executions(include_recovered=True)
    assert shown(found) == [("parser", 3, True), ("parser", 2, True), ("parser", 1, True)]
    assert [one.error_message for one in found] == [f"BrokenModel: try {n}" for n in (2, 1, 0)]
    assert {one.error_class for one in found} == {f"{__name__}.BrokenModel"}
    assert await get_failed_executions() == []


async def test_a_failure_costs_no_further_request(strict_store: Settings) -> None:
    events: list[RequestEvent] = []
    with settings.use(on_request=events.append, tracebacks=False):
        async with track_session("s") as session:
            before = len(events)
            await failing(session)
            assert [event.operation for event in events[before:]] == ["TransactWriteItems"] * 2
            begin, end = events[before:]
    # The item that keeps it is one unit, twice in a transaction; it and the execution one in the
    # index each.
    assert end.units == begin.units + 4


async def test_lists_and_resumes_see_executions_alone(store: Settings) -> None:
    await fail("s", at="parser")
    listed = await get_agent_executions("s")
    assert [one.agent_name for one in listed] == [*AGENTS[:3]]
    resumed = await resume_pipeline("s")
    assert resumed.start_agent == "parser"
    async with resumed:
        await finish(resumed)
    assert len(await get_agent_executions("s")) == len(AGENTS)


async def test_an_optional_failure_names_its_variant_and_is_not_recovered(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("match_rate", critical=False, variant="b"):
            raise KeyError("x")
    (one,) = await get_failed_executions(include_recovered=True)
    assert (one.critical, one.variant, one.recovered) == (False, "b", False)
    assert await get_failed_executions() == [one]


# -------------------------------------------------------------------------- the error


async def test_who_says_why_has_no_class_and_no_traceback(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("parser") as run:
            run.fail("the model refused")
    (one,) = await get_failed_executions()
    assert (one.error_class, one.error_message, one.traceback) == (None, "the model refused", None)
    assert one.worker is not None


async def test_of_a_long_traceback_the_end_is_kept(store: Settings) -> None:
    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        raise BrokenModel("\udc80é" * 5000)

    async with track_session("s") as session:
        with suppress(BrokenModel):
            async with session.agent("parser"):
                deeper(900)
    (one,) = await get_failed_executions()
    assert one.traceback is not None
    assert 8 * 1024 - 4 < len(one.traceback.encode()) <= 8 * 1024
    assert one.traceback.startswith("(its beginning is cut off)\n...")
    assert one.traceback.endswith("?é\n")


async def test_a_deep_traceback_shows_its_innermost_frames(store: Settings) -> None:
    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        raise BrokenModel

    async with track_session("s") as session:
        with suppress(BrokenModel):
            async with session.agent("parser"):
                deeper(900)
    (one,) = await get_failed_executions()
    assert (one.traceback or "").count("raise BrokenModel") == 1


async def test_tracebacks_are_left_out_where_they_are_off(store: Settings) -> None:
    assert Settings.from_env({"TDEV_TRACEBACKS": "off"}).tracebacks is False
    with pytest.raises(InvalidRequest, match="TDEV_TRACEBACKS must be on or off, not 'no'"):
        Settings.from_env({"TDEV_TRACEBACKS": "no"})
    with settings.use(tracebacks=False):
        await fail("s")
    (one,) = await get_failed_executions()
    assert (one.error_class, one.traceback) == ("ValueError", None)


async def test_an_error_that_cannot_say_its_text_is_kept_all_the_same(store: Settings) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            return self.missing  # type: ignore[attr-defined,no-any-return]

    with pytest.raises(Mute):
        async with track_session("s") as session, session.agent("parser"):
            raise Mute
    (one,) = await get_failed_executions()
    assert one.error_message == "Mute: <exception str() failed>"
    stored = await get_pipeline_session("s")
    assert (stored.status, stored.error_message) == ("FAILED", one.error_message)


async def test_an_error_that_python_cannot_format_is_kept_all_the_same(
    strict_store: Settings,
) -> None:
    place: Any = ("generated.py", 1, "3", "x = ")  # the column is a text
    async with track_session("s") as session:
        await failing(session, error=SyntaxError("no code", place))
    (one,) = await get_failed_executions(session_id="s")
    assert one.error_class == "SyntaxError"
    assert "in failing\n" in (one.traceback or "")
    assert (one.traceback or "").endswith("SyntaxError: no code (generated.py, line 1)")


async def test_of_a_group_it_is_the_error_of_the_agent(store: Settings) -> None:
    async def broken() -> None:
        raise BrokenModel("inside")

    async with track_session("s") as session:
        with suppress(ExceptionGroup):
            async with session.agent("parser"), asyncio.TaskGroup() as group:
                group.create_task(broken())
    (one,) = await get_failed_executions()
    assert one.error_class == f"{__name__}.BrokenModel"
    assert "in broken" in (one.traceback or "")


async def test_a_timeout_shows_where_it_was(store: Settings) -> None:
    async def waits_for_the_model() -> None:
        await asyncio.sleep(60)

    async with track_session("s") as session:
        with suppress(TimeoutError):
            async with session.agent("parser", timeout=0.05):
                await waits_for_the_model()
    (one,) = await get_failed_executions()
    assert one.error_class == "TimeoutError"
    assert "in waits_for_the_model" in (one.traceback or "")


async def test_an_interruption_is_no_failure(store: Settings) -> None:
    with pytest.raises(KeyboardInterrupt):
        async with track_session("s") as session, session.agent("parser"):
            raise KeyboardInterrupt
    assert kept(store) == []
    assert await get_failed_executions(include_recovered=True) == []


# -------------------------------------------------------------------------- bare calls


async def test_a_bare_failure_is_kept_and_may_be_said_twice(store: Settings) -> None:
    run = {"execution_id": "p-parser", "input_data": {"x": 1}}
    await update_agent_execution(run, status="RUNNING")
    failed = await update_agent_execution(run, status="FAILED")
    assert (failed.status, failed.input_data) == ("FAILED", {"x": 1})
    first = await get_failed_executions()
    await update_agent_execution(run, status="FAILED")
    assert await get_failed_executions() == first
    again = await update_agent_execution(run, status="FAILED", error_message="why")
    assert (again.error_message, again.retry_count) == ("why", 0)
    assert kept(store) == [("p-parser", "parser#failed#00001")]
    await update_agent_execution(run, status="RUNNING")
    assert await get_failed_executions() == []
    (one,) = await get_failed_executions(include_recovered=True)
    assert (one.error_message, one.failed_at) == ("why", first[0].failed_at)
    assert not one.recovered
    await update_agent_execution(run, status="COMPLETED")
    assert shown(await get_failed_executions(include_recovered=True)) == [("parser", 1, True)]


async def test_a_call_inside_the_block_and_the_error_after_it_are_one_failure(
    store: Settings,
) -> None:
    async with track_session("s") as session:
        with suppress(BrokenModel):
            async with session.agent("parser"):
                await update_agent_execution(execution_id="s-parser", status="FAILED")
                raise BrokenModel("later")
    assert kept(store) == [("s-parser", "parser#failed#00001")]
    (one,) = await get_failed_executions()
    assert (one.error_message, one.error_class) == ("BrokenModel: later", f"{__name__}.BrokenModel")


async def test_a_failure_after_the_session_was_ended_inside_the_block_is_kept(
    store: Settings,
) -> None:
    with pytest.raises(BrokenModel):
        async with track_session("s") as session, session.agent("parser"):
            await save_pipeline_session(session_id="s", status="FAILED")
            raise BrokenModel
    (one,) = await get_failed_executions()
    assert one.error_class == f"{__name__}.BrokenModel"


# -------------------------------------------------------------------------- written once


@pytest.mark.parametrize("kind", ["resent", "unanswered", "lost", "throttled", "conflict"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_a_failure_at_a_lost_reply_is_kept_once(store: Settings, kind: str, nth: int) -> None:
    fault = Fault(kind, operation="TransactWriteItems", nth=nth)
    with injected(fault):
        async with track_session("s") as session:
            await failing(session)
            await failing(session)
    found = await get_failed_executions(include_recovered=True)
    assert shown(found) == [("parser", 2, False), ("parser", 1, False)]
    assert len(kept(store)) == 2


@pytest.mark.parametrize("kind", ["resent", "unanswered", "lost"])
async def test_a_bare_failure_at_a_lost_reply_is_kept_once(store: Settings, kind: str) -> None:
    with injected(Fault(kind, operation="TransactWriteItems")):
        with suppress(Unavailable):
            await update_agent_execution(execution_id="p-parser", status="FAILED")
    await update_agent_execution(execution_id="p-parser", status="FAILED")
    assert kept(store) == [("p-parser", "parser#failed#00001")]
    assert len(await get_failed_executions()) == 1


async def test_of_two_workers_that_fail_at_once_one_attempt_is_kept(strict_store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="RUNNING")
    names = [f"worker {number}" for number in range(8)]
    await asyncio.gather(
        *(
            update_agent_execution(execution_id="p-parser", status="FAILED", error_message=name)
            for name in names
        )
    )
    assert len(kept(strict_store)) == 1
    (one,) = await get_failed_executions()
    stored = await get_agent_execution("p-parser")
    assert one.error_message == stored.error_message
    assert len(stored.attempts) == 1


@pytest.mark.parametrize("bare", [False, True])
async def test_a_failure_that_another_worker_has_repaired_in_between_is_none(
    store: Settings, bare: bool
) -> None:
    async def repaired() -> None:
        with settings.use(store):
            await update_agent_execution(execution_id="p-parser", status="COMPLETED")

    async def taken_over() -> None:
        async def other_worker() -> None:
            with settings.use(store):
                resumed = await resume_pipeline("s", force=True)
                async with resumed:
                    await finish(resumed)

        await asyncio.create_task(other_worker(), context=contextvars.Context())

    if bare:
        await update_agent_execution(execution_id="p-parser", status="RUNNING")
        with injected(Fault("before", operation="TransactWriteItems", between=repaired)):
            with suppress(Exception):
                await update_agent_execution(execution_id="p-parser", status="FAILED")
    else:
        fault = Fault("before", operation="TransactWriteItems", nth=2, between=taken_over)
        with injected(fault), suppress(LeaseLost, asyncio.CancelledError):
            async with track_session("s") as session, session.agent("parser"):
                raise BrokenModel
    assert kept(store) == []
    assert await get_failed_executions(include_recovered=True) == []


async def test_an_older_claims_failure_is_kept_beside_that_of_a_newer_one(store: Settings) -> None:
    for _ in range(2):
        await fail("s", at="parser")
    found = await get_failed_executions(include_recovered=True)
    assert shown(found) == [("parser", 2, False), ("parser", 1, False)]
    assert shown(await get_failed_executions()) == [("parser", 2, False)]
    resumed = await resume_pipeline("s")
    async with resumed:
        await finish(resumed)
    found = await get_failed_executions(include_recovered=True)
    assert shown(found) == [("parser", 2, True), ("parser", 1, True)]
    again = await resume_pipeline("s", from_agent="parser", force=True)
    assert not again  # COMPLETED for good


async def test_an_agent_that_is_to_run_again_was_recovered_and_is_not_failed(
    store: Settings,
) -> None:
    await fail("s", at="parser")
    resumed = await resume_pipeline("s")
    with suppress(BrokenModel):
        async with resumed:
            async with resumed.agent("parser") as run:
                run.output = 1
            raise BrokenModel
    assert await resume_pipeline("s", from_agent="parser")
    assert await get_failed_executions() == []
    assert shown(await get_failed_executions(include_recovered=True)) == [("parser", 1, True)]


async def test_a_failed_agent_that_is_given_another_start_is_failed_until_it_begins(
    store: Settings,
) -> None:
    await fail("s", at="parser")
    resumed = await resume_pipeline("s", from_agent="parser")
    assert shown(await get_failed_executions()) == [("parser", 1, False)]
    async with resumed, resumed.agent("parser"):
        await get_agent_execution("s-parser")  # waits until the begin is stored
        assert await get_failed_executions() == []
    assert shown(await get_failed_executions(include_recovered=True)) == [("parser", 1, True)]


async def test_any_history_keeps_each_failed_attempt_once(strict_store: Settings) -> None:
    skipped = [0.0]
    chosen = random.Random(12)
    for history in range(12):
        name = f"s{history}"
        with settings.use(clock=lambda: time.time() + skipped[0]):
            await save_pipeline_session(session_id=name, status="FAILED")
            for _ in range(5):
                kind = chosen.choice(["resent", "unanswered", "lost", "dies", "dies-after", "none"])
                fault = Fault(kind, operation="TransactWriteItems", nth=chosen.randint(1, 4))
                fault.hit = kind == "none"
                fails = chosen.random() < 0.7
                with injected(fault, needed=False), suppress(Died, KeyError):
                    resumed = await resume_pipeline(name, force=chosen.random() < 0.5)
                    if resumed:
                        async with resumed, resumed.agent("parser") as run:
                            if fails and not run.done:
                                raise KeyError
                            await resumed.agent("search").__aenter__()
                            raise KeyError  # so that the session can be resumed
                skipped[0] += 4000
                await check_history(strict_store, name)


async def check_history(store: Settings, name: str) -> None:
    try:
        execution = await get_agent_execution(f"{name}-parser")
    except LookupError:
        return
    failed = [one.number for one in execution.attempts if one.status == "FAILED"]
    keys = [(execution.execution_id, f"parser#failed#{number:05}") for number in failed]
    assert [key for key in kept(store) if key[0] == execution.execution_id] == keys
    completed = max(
        (one.number for one in execution.attempts if one.status == "COMPLETED"), default=0
    )
    found = await get_failed_executions(
        agent_name="parser", session_id=name, include_recovered=True
    )
    assert [(one.number, one.recovered) for one in reversed(found)] == [
        (number, number < completed) for number in failed
    ]
    everywhere = await get_failed_executions(agent_name="parser", include_recovered=True)
    assert [one for one in everywhere if one.session_id == name] == found
    left = [one for one in await get_failed_executions() if one.execution_id == f"{name}-parser"]
    assert len(left) == (execution.status == "FAILED")


# -------------------------------------------------------------------------- finding them


async def test_failures_of_one_session_are_found_by_page_agent_and_time(store: Settings) -> None:
    await fail("other")
    async with track_session("s") as session:
        for key in "ab":
            await failing(session, "parser")
            with suppress(KeyError):
                async with session.agent("evaluator", key=key):
                    raise KeyError
        async with session.agent("parser") as run:
            run.output = 1
    everything = await get_failed_executions(session_id="s", include_recovered=True)
    expected = [("evaluator@b", 1, False), ("parser", 2, True)]
    expected += [("evaluator@a", 1, False), ("parser", 1, True)]
    assert shown(everything) == expected
    assert shown(await get_failed_executions(session_id="s")) == expected[::2]
    of_agent = await get_failed_executions(session_id="s", agent_name="evaluator")
    assert shown(of_agent) == expected[::2]
    since = everything[1].failed_at
    assert (
        await get_failed_executions(since, session_id="s", include_recovered=True)
        == (everything[:2])
    )
    seen, cursor = list[Failure](), None
    for _ in range(4):
        page = await get_failed_executions(
            session_id="s", include_recovered=True, limit=1, cursor=cursor
        )
        seen, cursor = [*seen, *page], page.cursor
    assert (seen, cursor) == (everything, None)
    other = (await get_failed_executions(session_id="s", limit=1)).cursor
    with pytest.raises(InvalidRequest, match=r"^cursor: "):
        await get_failed_executions(session_id="other", cursor=other)


async def test_pages_of_all_failures_are_whole_and_end(store: Settings) -> None:
    for number in range(7):
        await update_agent_execution(execution_id=f"p{number}-parser", status="FAILED")
        if number % 2:
            await update_agent_execution(execution_id=f"p{number}-parser", status="RUNNING")
    for include_recovered, expected in ((True, "6543210"), (False, "6420")):
        seen, cursor = "", None
        sizes: list[int] = []
        while cursor or not sizes:
            page = await get_failed_executions(
                include_recovered=include_recovered, limit=3, cursor=cursor
            )
            seen += "".join((one.session_id or "")[1] for one in page)
            sizes, cursor = [*sizes, len(page)], page.cursor
        assert seen == expected
        assert set(sizes[:-1]) == {3}


async def test_a_failure_that_the_index_shows_too_late_is_not_returned(store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="FAILED")

    async def retried() -> None:
        with settings.use(store):
            await update_agent_execution(execution_id="p-parser", status="RUNNING")

    with injected(Fault("before", operation="TransactGetItems", between=retried)):
        assert await get_failed_executions() == []


async def test_one_that_cannot_be_read_hides_no_other(store: Settings) -> None:
    for name in "abc":
        await update_agent_execution(execution_id=f"{name}-parser", status="FAILED")
    key = ("b-parser", "parser#failed#00001")
    raw.put_attribute(store, "agent-executions", *key, start_time={"N": "1"}, critical={"S": "no"})
    raw.put_attribute(store, "agent-executions", "c-parser", "parser", attempts={"S": "no"})
    for include_recovered in (False, True):
        found = await get_failed_executions(include_recovered=include_recovered)
        assert [one.session_id for one in found] == ["b", "a"]  # of b, what its execution says
    await update_agent_execution(execution_id="b-parser", status="RUNNING")
    (one,) = await get_failed_executions(include_recovered=True)
    assert one.session_id == "a"


async def test_more_failures_than_one_transaction_reads(strict_store: Settings) -> None:
    async with track_session("s") as session:
        for number in range(33):
            async with session.agent("evaluator", key=number, critical=False):
                raise KeyError(number)
    found = await get_failed_executions(session_id="s")
    assert [one.error_message for one in found] == [f"KeyError: {n}" for n in range(32, -1, -1)]
    assert await get_failed_executions() == found
    assert sync.get_failed_executions(include_recovered=True) == found


async def test_a_failed_attempt_expires_with_its_session(store: Settings) -> None:
    with settings.use(retention_days=2):
        await fail("s", at="parser")
        resumed = await resume_pipeline("s")
        async with resumed:
            await finish(resumed)
        (item,) = [
            one
            for one in raw.everything(store, "agent-executions")
            if "#failed#" in one["agent_name"]["S"]
        ]
        stored = raw.item(store, "pipeline-sessions", "s")
        assert stored is not None
        assert item["expires_at"] == stored["expires_at"]
        assert len(await get_failed_executions(include_recovered=True)) == 1
        with settings.use(clock=clock(2 * 86400 + 10)):
            assert await get_failed_executions(include_recovered=True) == []


async def test_a_failure_of_an_earlier_form_is_found_once_it_is_written(store: Settings) -> None:
    at = {"N": str(time.time() - 60)}
    raw.put_attribute(
        store,
        "agent-executions",
        *("p-parser", "parser"),
        project_id={"S": "p"},
        status={"S": "FAILED"},
        start_time=at,
        end_time=at,
        retry_count={"N": "1"},
    )
    (one,) = await get_failed_executions(session_id="p")
    assert (one.number, one.failed_at) == (2, float(at["N"]))
    assert await get_failed_executions() == []
    await update_agent_execution(execution_id="p-parser", error_message="why")
    (one,) = await get_failed_executions()
    assert (one.number, one.error_message) == (2, "why")
    assert one.failed_at == pytest.approx(time.time() - 60, abs=10)
    assert kept(store) == [("p-parser", "parser#failed#00002")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"include_recovered": 1},
        {"session_id": ""},
        {"agent_name": "a#b"},
        {"limit": 0},
        {"since": "yesterday"},
        {"cursor": "x"},
    ],
)
async def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"^{next(iter(wrong))}: "):
        await get_failed_executions(**wrong)
