"""How blocks of sessions and agents end: the truth about what failed, and where."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    InvalidRequest,
    LeaseHeld,
    LeaseLost,
    NotFound,
    Settings,
    Unavailable,
    WrongUser,
    abandon_session,
    get_agent_execution,
    get_pipeline_session,
    query_metrics,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.errors import StoreError, Throttled
from tests.faults import Fault, Outage, injected


async def failure_of(session_id: str) -> tuple[str, str | None, str | None]:
    session = await get_pipeline_session(session_id)
    return session.status, session.failed_agent, session.error_message


async def test_a_caught_failure_of_a_critical_agent_fails_the_session(store: Settings) -> None:
    async with track_session("s") as session:
        with pytest.raises(ValueError, match="no code"):
            async with session.agent("generation"):
                raise ValueError("no code")
        async with session.agent("download") as run:
            run.output = "half"
    assert await failure_of("s") == ("FAILED", "generation", "ValueError: no code")
    assert (await resume_pipeline("s")).start_agent == "generation"


@pytest.mark.parametrize("nth", [1, 2])  # the begin of the agent, and its end
async def test_what_could_not_be_stored_of_a_critical_agent_fails_the_session(
    strict_store: Settings, nth: int
) -> None:
    for stored in (False, True):
        fault = Fault("broken", operation="TransactWriteItems", nth=nth)
        with injected(fault), sync.track_session("s") as session:
            with suppress(StoreError):
                session.run("parser", str, "a")
            if stored:
                assert session.run("parser", str, "b") == "b"
        found = await get_pipeline_session("s")
        assert found.status == ("COMPLETED" if stored else "FAILED")
        assert found.failed_agent == (None if stored else "parser")
        assert found.error_message == (None if stored else "StoreError: Injected (400): broken")


async def test_what_could_not_be_read_of_an_agent_of_ones_own_fails_the_session(
    strict_store: Settings,
) -> None:
    """Whether a former claim has ended it, which the index may not have shown."""
    await save_pipeline_session(session_id="s", status="FAILED")
    for stored in (False, True):
        with injected(Fault("broken", operation="GetItem", nth=2)):
            with sync.resume_pipeline("s") as session:
                with pytest.raises(StoreError):
                    session.run("lint", str, "a")
                if stored:
                    assert session.run("lint", str, "b") == "b"
        found = await get_pipeline_session("s")
        assert found.status == ("COMPLETED" if stored else "FAILED")
        assert found.failed_agent == (None if stored else "lint")


async def test_a_failure_that_was_made_good_completes_the_session(store: Settings) -> None:
    async with track_session("s") as session:
        with pytest.raises(ValueError, match="no code"):
            async with session.agent("generation"):
                raise ValueError("no code")
        async with session.agent("generation") as run:
            run.output = "code"
    assert await failure_of("s") == ("COMPLETED", None, None)


async def test_a_group_blames_the_agent_that_raised_and_tells_its_error(store: Settings) -> None:
    async def slow(session: Any) -> None:
        async with session.agent("parser"):
            await asyncio.sleep(30)

    async def broken(session: Any) -> None:
        async with session.agent("search"):
            await asyncio.sleep(0.05)
            raise ValueError("no results")

    with pytest.raises(ExceptionGroup):
        async with track_session("s") as session:
            async with asyncio.TaskGroup() as group:
                group.create_task(slow(session))
                group.create_task(broken(session))
    assert await failure_of("s") == ("FAILED", "search", "ValueError: no results")
    cancelled = await get_agent_execution("s-parser")
    assert (cancelled.status, cancelled.attempts[0].status) == ("PENDING", "CANCELLED")


async def test_a_cancelled_agent_is_no_failure_and_its_next_try_no_retry(
    strict_store: Settings,
) -> None:
    end = time.time() + 60
    with settings.use(strict_store, automatic_metrics=True):
        with pytest.raises(KeyboardInterrupt), sync.track_session("s") as session:
            with session.agent("parser"):
                raise KeyboardInterrupt
        with sync.track_session("s") as session, session.agent("parser") as run:
            run.output = 1
        sync.flush_metrics()
        for name in ("agent_failures", "agent_retries", "sessions_failed", "sessions_resumed"):
            assert await query_metrics(name, end - 7200, end) == [], name
        (row,) = await query_metrics("agent_execution_time", end - 7200, end, group_by="day")
    assert (row.count, row.error_rate) == (1, 0)


async def test_who_hangs_until_a_timeout_around_it_is_the_one_that_failed(store: Settings) -> None:
    with pytest.raises(TimeoutError):
        async with track_session("s") as session:
            async with asyncio.timeout(0.2):
                async with session.agent("parser"):
                    await asyncio.sleep(30)
    assert await failure_of("s") == ("FAILED", "parser", "TimeoutError: ")


@pytest.mark.parametrize("critical", [True, False])
async def test_an_agent_fails_without_an_exception(store: Settings, critical: bool) -> None:
    async with track_session("s") as session:
        async with session.agent("search") as run:
            run.output = {"success": False}
            run.fail("nothing found", critical=critical)
        assert (run.status, run.error, run.done) == ("FAILED", "nothing found", True)
    expected = ("FAILED", "search", "nothing found") if critical else ("COMPLETED", None, None)
    assert await failure_of("s") == expected
    execution = await get_agent_execution("s-search")
    assert (execution.status, execution.error_message, execution.output_data) == (
        "FAILED",
        "nothing found",
        None,
    )


async def test_an_error_that_counts_as_false_is_stored_as_any_other(strict_store: Settings) -> None:
    class NoProblems(Exception):
        def __len__(self) -> int:
            return 0

    with pytest.raises(NoProblems):
        async with track_session("s") as session, session.agent("parser"):
            raise NoProblems("but one")
    assert (await get_agent_execution("s-parser")).error_message == "NoProblems: but one"


async def test_a_session_fails_without_an_exception(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("search") as run:
            run.output = 1
        session.fail("7 of 9 agents are too few")
    assert await failure_of("s") == ("FAILED", None, "7 of 9 agents are too few")


@pytest.mark.parametrize("reason", ["", None, 7])
async def test_a_reason_is_a_text(strict_store: Settings, reason: Any) -> None:
    async with track_session("s") as session:
        with pytest.raises(InvalidRequest, match=r"^reason: "):
            session.fail(reason)
        async with session.agent("search") as run:
            with pytest.raises(InvalidRequest, match=r"^reason: "):
                run.fail(reason)
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_what_is_neither_true_nor_false_is_refused(strict_store: Settings) -> None:
    wrong: Any = "no"  # of the environment, say
    async with track_session("s") as session:
        with pytest.raises(InvalidRequest, match=r"^retry_failed: "):
            session.agent("search", retry_failed=wrong)
        async with session.agent("search") as run:
            with pytest.raises(InvalidRequest, match=r"^critical: "):
                run.fail("nothing found", critical=wrong)
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_what_failed_before_is_there_on_resume(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("parser", critical=False) as run:
            run.fail("no grammar")
        async with session.agent("search") as run:
            run.fail("nothing found")
    async with await resume_pipeline("s") as resume:
        async with resume.agent("parser") as run:
            assert (run.done, run.status, run.error) == (True, "FAILED", "no grammar")
        async with resume.agent("search") as run:
            assert (run.done, run.status, run.error) == (False, "RUNNING", None)
            run.output = 1
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_failure_that_was_not_critical_can_be_tried_again_on_resume(
    store: Settings,
) -> None:
    async with track_session("s") as session:
        async with session.agent("parser", critical=False) as run:
            run.fail("no grammar")
        session.fail("try again")
    async with await resume_pipeline("s") as resume:
        async with resume.agent("parser", retry_failed=True) as run:
            assert not run.done
            run.output = "grammar"
    assert (await get_agent_execution("s-parser")).status == "COMPLETED"


async def test_a_call_inside_its_block_ends_the_block_as_that(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("search") as run:
            await update_agent_execution(
                execution_id="s-search", status="FAILED", error_message="nothing found"
            )
            run.output = "thrown away"
        assert (run.status, run.error) == ("FAILED", "nothing found")
    assert await failure_of("s") == ("FAILED", "search", "nothing found")


async def test_ending_the_session_inside_the_last_agent_keeps_its_output(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("download") as run:
            run.output = "a zip"
            await save_pipeline_session(session_id="s", status="COMPLETED")
    execution = await get_agent_execution("s-download")
    assert (execution.status, execution.output_data) == ("COMPLETED", "a zip")
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_what_a_later_owner_wrote_stays_when_an_ended_block_ends_late(
    strict_store: Settings,
) -> None:
    with pytest.raises(LeaseLost):
        async with track_session("s") as session, session.agent("download") as run:
            run.output = "early"
            await save_pipeline_session(session_id="s", status="FAILED")

            async def later() -> None:
                async with await resume_pipeline("s") as resume:
                    async with resume.agent("download") as again:
                        again.output = "late"

            await asyncio.create_task(later(), context=contextvars.Context())
    assert (await get_agent_execution("s-download")).output_data == "late"


async def test_a_block_that_ends_late_writes_nothing_once_its_session_was_claimed(
    strict_store: Settings,
) -> None:
    with pytest.raises(LeaseLost):
        async with track_session("s") as session, session.agent("download") as run:
            run.output = "early"
            run.usage(cost_usd=1)
            await save_pipeline_session(session_id="s", status="FAILED")
            assert await resume_pipeline("s")  # which has not come to this agent yet
    assert (await get_agent_execution("s-download")).status == "RUNNING"
    assert (await get_pipeline_session("s")).cost_usd is None


async def test_who_has_lost_the_session_while_he_failed_is_not_called_again(
    strict_store: Settings,
) -> None:
    calls: list[int] = []

    async def fails() -> None:
        calls.append(1)
        outside = contextvars.Context()
        await asyncio.create_task(abandon_session("s", "enough"), context=outside)
        raise ValueError

    with pytest.raises(LeaseLost):
        async with track_session("s") as session:
            await session.run("parser", fails, attempts=3)
    assert calls == [1]


async def test_an_outage_after_the_session_was_ended_in_its_last_agent_loses_nothing(
    strict_store: Settings,
) -> None:
    outage = Outage(1.5)
    with settings.use(strict_store, transport=outage.wrap, retry_seconds=0):
        async with track_session("s") as session, session.agent("download") as run:
            run.output = "a zip"
            await save_pipeline_session(session_id="s", status="COMPLETED")
            outage.begin()
    assert (await get_agent_execution("s-download")).output_data == "a zip"


async def test_a_nested_block_of_the_same_session_joins_it(store: Settings) -> None:
    async def execute() -> None:  # an orchestrator's own entry
        async with track_session("s", project_name="todo") as session:
            for name in AGENTS[:3]:
                async with session.agent(name) as run:
                    run.output = run.output or name

    await save_pipeline_session(session_id="s", status="FAILED")

    async def runner(resume: Any) -> None:
        await execute()
        assert (await get_pipeline_session("s")).status == "ACTIVE"

    resume = await resume_pipeline("s", runner)
    assert resume
    session = await get_pipeline_session("s")
    assert (session.status, session.progress, session.fence) == ("COMPLETED", 3, 1)


async def test_a_block_that_is_entered_again_inside_itself_joins_itself(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def runner(resume: Any) -> None:
        joined, canceller = track_session("s"), resume.owned.canceller
        for number, block in enumerate((resume, joined, joined)):
            async with block as session, session.agent("evaluator", key=number) as run:
                run.output = number
            assert (await get_pipeline_session("s")).status == "ACTIVE"
        assert resume.owned.canceller is canceller  # of the task that owns it

    assert await resume_pipeline("s", runner)
    session = await get_pipeline_session("s")
    assert (session.status, session.fence) == ("COMPLETED", 1)


@pytest.mark.parametrize("is_entered", [False, True])
@pytest.mark.parametrize("joins", [False, True])
async def test_a_block_is_entered_by_one_task_at_a_time(
    strict_store: Settings, joins: bool, is_entered: bool
) -> None:
    tracker, entered = track_session("s"), asyncio.Event()

    async def first() -> None:
        async with tracker as session, session.agent("parser") as run:
            entered.set()
            await asyncio.sleep(0.1)
            run.output = 1

    async def second() -> None:
        if is_entered:
            await entered.wait()
        with pytest.raises(InvalidRequest, match=r"^session_id: the block of 's' runs in another"):
            tracker.__aenter__().close()  # not awaited: nothing is sent

    async with track_session("s") if joins else nullcontext():
        owner = asyncio.create_task(first())
        await asyncio.create_task(second(), context=contextvars.Context())
        await owner
    session = await get_pipeline_session("s")
    assert (session.status, session.fence) == ("COMPLETED", 1)


async def test_a_block_can_be_tried_again_that_could_not_be_entered(strict_store: Settings) -> None:
    tracker = track_session("s")

    async def enter() -> None:
        with settings.use(strict_store):
            async with tracker:
                pass

    async with track_session("s") as session:
        with pytest.raises(LeaseHeld):
            await asyncio.create_task(enter(), context=contextvars.Context())
        await session.release()
    await enter()
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_a_nested_block_can_fail_the_session_and_must_name_its_user(store: Settings) -> None:
    async with track_session("s", user_id="u1"):
        with pytest.raises(WrongUser):
            await track_session("s", user_id="u2").__aenter__()
        async with track_session("s", user_id="u1") as inner:
            inner.fail("3 of 9 agents failed")
    assert await failure_of("s") == ("FAILED", None, "3 of 9 agents failed")


async def test_a_failure_in_a_nested_block_is_the_outer_ones(store: Settings) -> None:
    async with track_session("s"):
        async with track_session("s") as inner:
            async with inner.agent("search") as run:
                run.fail("nothing found")
    assert await failure_of("s") == ("FAILED", "search", "nothing found")


@pytest.mark.parametrize("error", [Unavailable, Throttled])
async def test_an_outage_at_the_end_of_an_agent_loses_nothing(
    strict_store: Settings, error: type[Exception]
) -> None:
    outage = Outage(1.5, error)
    with settings.use(
        strict_store, transport=outage.wrap, retry_seconds=0, lease_seconds=0.9
    ):  # longer than the lease, and nothing else is tried again
        async with track_session("s") as session:
            async with session.agent("search") as run:
                run.output = {"text": "x" * 100_000}
                outage.begin()
    execution = await get_agent_execution("s-search")
    assert (execution.status, execution.output_data) == ("COMPLETED", {"text": "x" * 100_000})
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_heartbeats_go_on_while_the_executions_are_throttled(strict_store: Settings) -> None:
    throttled = Outage(2.0, Throttled)

    def only_executions(send: settings.Transport) -> settings.Transport:
        away = throttled.wrap(send)

        async def choose(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            sent = away if "executions" in str(request) else send
            return await sent(operation, request)

        return choose

    refusals: list[str | None] = []
    with settings.use(strict_store, transport=only_executions, lease_seconds=0.6):
        async with track_session("s") as session:
            async with session.agent("search") as run:
                run.output = 1
                await get_agent_execution("s-search")  # its begin is stored
                throttled.begin()
                watch = asyncio.create_task(watched(refusals))
            watch.cancel()
    assert len(refusals) > 3
    assert all("owns it (claim 1)" in (refusal or "") for refusal in refusals)
    assert (await get_agent_execution("s-search")).output_data == 1


async def watched(refusals: list[str | None]) -> None:
    while True:
        refusals.append((await resume_pipeline("s")).reason)
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("begins", ["begun", "still begins"])
async def test_cancelling_during_an_outage_takes_two_seconds(
    strict_store: Settings, begins: str
) -> None:
    """Also where the agent's begin is on its way: that waits no two seconds of its own."""
    outage, waits = Outage(60), asyncio.Event()

    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("search"):
            if begins == "begun":
                await asyncio.sleep(0.1)
            outage.begin()
            await asyncio.sleep(0.1)
            waits.set()
            await asyncio.sleep(30)

    with settings.use(strict_store, transport=outage.wrap):
        task = asyncio.create_task(pipeline())
        await waits.wait()
        begun = time.monotonic()
        await cancelled(task)
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_an_agent_that_is_cancelled_while_it_begins_is_pending(
    strict_store: Settings, moment: str, awaited: bool
) -> None:
    """Wherever its begin is: RUNNING, it would look as if its worker had died in it."""
    begin = Fault(moment, operation="TransactWriteItems", between=lambda: task.cancel())

    async def pipeline() -> None:
        async with track_session("s") as session, session.agent("search"):
            await asyncio.sleep(30)

    with settings.use(strict_store, cancel_when_out_of_touch=awaited), injected(begin):
        task = asyncio.create_task(pipeline())
        with pytest.raises(asyncio.CancelledError):
            await task
    execution = await get_agent_execution("s-search")
    assert (execution.status, execution.attempts[-1].status) == ("PENDING", "CANCELLED")
    assert (await get_pipeline_session("s")).lease_owner is None


async def cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_cancellation_has_two_seconds_of_its_own(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the first of a session that goes on after it."""
    monkeypatch.setattr("tdev_models.services.session_run.CANCELLED_SECONDS", 1.5)
    outage, waits = Outage(0.2), asyncio.Event()

    async def pipeline() -> None:
        async with track_session("s") as session:
            for name, pause in (("parser", 1.7), ("search", 3.2)):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2), session.agent(name) as run:
                        run.usage(input_tokens=1)
                        await asyncio.sleep(0.1)  # its begin is stored meanwhile
                        outage.begin()
                        await asyncio.sleep(30)
                await asyncio.sleep(pause)
            outage.begin()
            waits.set()
            await asyncio.sleep(30)

    with settings.use(strict_store, transport=outage.wrap):
        task = asyncio.create_task(pipeline())
        await waits.wait()
        await cancelled(task)
    session = await get_pipeline_session("s")
    assert (session.input_tokens, session.lease_owner) == (2, None)
    assert (await get_agent_execution("s-search")).status == "PENDING"


@pytest.mark.parametrize("written", ["claim", "begin", "once", "end"])
async def test_a_write_that_is_cancelled_takes_of_the_same_two_seconds(
    strict_store: Settings, written: str
) -> None:
    away, begun = False, asyncio.Event()

    def unanswered(send: settings.Transport) -> settings.Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if away:
                begun.set()
                await asyncio.sleep(60)
            return await send(operation, request)

        return sent

    async def pipeline() -> None:
        nonlocal away
        away = written == "claim"
        async with track_session("s") as session:
            away = written == "begin"
            async with session.agent("search") as run:
                await get_agent_execution("s-search")  # its begin is stored
                away = True
                if written == "once":
                    await run.once("mail", lambda: 1)

    awaited = written == "begin"
    with settings.use(strict_store, transport=unanswered, cancel_when_out_of_touch=awaited):
        task = asyncio.create_task(pipeline())
        await begun.wait()
        moment = time.monotonic()
        await cancelled(task)
    assert time.monotonic() - moment < 3.5


def far_away(send: settings.Transport) -> settings.Transport:
    async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
        await asyncio.sleep(0.1)
        return await send(operation, request)

    return sent


@pytest.mark.parametrize("seconds", [0, 3])
@pytest.mark.parametrize("ends", ["as it should", "by the same cancellation"])
async def test_what_is_done_after_an_agents_end_takes_nothing_of_the_two_seconds(
    strict_store: Settings, ends: str, seconds: float
) -> None:
    """A process that ends then would leave a session that looks as if its worker had died."""
    inside = asyncio.Event()

    async def pipeline() -> None:
        async with track_session("s") as session:
            try:
                async with session.agent("search"):
                    if ends == "by the same cancellation":
                        inside.set()
                        await asyncio.sleep(30)
                inside.set()
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(seconds)

    with settings.use(strict_store, transport=far_away):
        task = asyncio.create_task(pipeline())
        await inside.wait()
        await cancelled(task)
    assert (await get_pipeline_session("s")).lease_owner is None


async def test_a_claim_that_is_cancelled_is_handed_back(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    entered: asyncio.Task[Any] | None = None

    async def cancel() -> None:
        assert entered is not None
        entered.cancel()
        await asyncio.sleep(0)

    fault = Fault("before", operation="UpdateItem", between=cancel)
    with injected(fault):
        entered = asyncio.ensure_future(track_session("s").__aenter__())
        with pytest.raises(asyncio.CancelledError):
            await entered
    session = await get_pipeline_session("s")
    assert (session.status, session.fence, session.lease_owner) == ("ACTIVE", 1, None)
    assert await resume_pipeline("s")


async def test_nothing_is_claimed_where_no_heartbeat_can_start(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            sync.track_session("s").__enter__()
    with pytest.raises(NotFound):
        sync.get_pipeline_session("s")
    with sync.track_session("s"):
        pass


@pytest.mark.parametrize("status", ["FAILED", "ACTIVE"])
async def test_who_claims_while_an_agent_of_the_last_owner_ends_does_not_run_it_again(
    strict_store: Settings, status: str
) -> None:
    async with track_session("s") as session:
        run = session.agent("parser")
        await run.__aenter__()
        run.output = 1
        if status == "FAILED":
            await save_pipeline_session(session_id="s", status=status)
        else:
            await session.release()

        async def ends() -> None:
            with settings.use(strict_store):
                await run.__aexit__(None, None, None)

        with injected(Fault("before", operation="UpdateItem", between=ends)):
            late = await resume_pipeline("s")
        assert late.reason == "another worker changed it at the same time"
        assert (await resume_pipeline("s")).outputs == {"parser": 1}
