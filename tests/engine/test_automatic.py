"""The metrics that the package records by itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    RequestEvent,
    Settings,
    Throttled,
    abandon_session,
    agent_performance,
    flush_metrics,
    get_agent_execution,
    get_pipeline_session,
    query_metrics,
    record_download,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    settings,
    sync,
    track_session,
    update_agent_execution,
    usage_report,
)
from tdev_models.metrics import recorder as recording, reports
from tdev_models.settings import Transport
from tests import raw
from tests.faults import Fault, injected

DAY = 1_780_000_000.0


@pytest.fixture
def counted(store: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A store with metrics of its own; each look at the clock is a second later."""
    ticks = itertools.count()
    chosen = replace(store, automatic_metrics=True, clock=lambda: DAY + next(ticks))
    monkeypatch.setattr(settings, "_configured", chosen)
    return chosen


async def counts(name: str, group_by: str = "dimension") -> dict[str | None, int]:
    await flush_metrics()
    rows = await query_metrics(name, DAY - 3600, DAY + 36000, group_by=group_by)
    return {getattr(row, group_by.replace("agent", "agent_name")): row.count for row in rows}


async def test_a_tracked_run_records_its_agents_and_its_session(counted: Settings) -> None:
    async with track_session("s", pipeline_type="SIMPLE") as session:
        for name in AGENTS:
            async with session.agent(name, variant="B" if name == "search" else None) as run:
                run.output = 1
    assert await counts("agent_execution_time", "agent") == dict.fromkeys(AGENTS, 1)
    assert await counts("agent_execution_time") == {"": 8, "B": 1}
    assert (await get_agent_execution("s-search")).variant == "B"
    assert await counts("sessions_started") == {"SIMPLE": 1}
    assert await counts("sessions_completed") == {"SIMPLE": 1}
    assert await counts("agent_failures") == {}
    assert await counts("agent_retries") == {}
    (row,) = await query_metrics("session_duration", DAY, DAY + 36000)
    stored = await get_pipeline_session("s")
    assert row.sum == pytest.approx((stored.last_updated or 0) - (stored.created_at or 0))


async def test_a_failed_and_resumed_run_records_both(counted: Settings) -> None:
    with pytest.raises(ValueError, match="broke"):
        async with track_session("s", pipeline_type="PRODUCTION") as session:
            async with session.agent("parser", variant="A"):
                raise ValueError("broke")
    assert await counts("agent_failures") == {"A": 1}
    assert await counts("sessions_failed", "agent") == {"parser": 1}
    async with await resume_pipeline("s") as resume:
        async with resume.agent("parser", variant="A"):
            pass
    assert await counts("sessions_resumed") == {"PRODUCTION": 1}
    assert await counts("agent_retries", "agent") == {"parser": 1}
    assert await counts("sessions_started") == {"PRODUCTION": 1}
    assert await counts("sessions_completed") == {"PRODUCTION": 1}
    (row,) = await query_metrics("agent_execution_time", DAY, DAY + 36000)
    assert (row.count, row.error_rate) == (2, 0.5)


async def test_calls_of_the_plan_count_changes_and_no_repeats(counted: Settings) -> None:
    for _ in range(2):
        await save_pipeline_session(session_id="s", pipeline_type="SIMPLE", status="ACTIVE")
        await save_pipeline_session(session_id="s", current_agent="parser")
    for _ in range(2):
        await save_pipeline_session(session_id="s", status="FAILED")
    await save_pipeline_session(session_id="s", status="ACTIVE")
    for _ in range(2):
        await save_pipeline_session(session_id="s", status="COMPLETED")
    await save_pipeline_session(session_id="t")
    for _ in range(2):
        await abandon_session("t", "no more")
    assert await counts("sessions_started") == {"SIMPLE": 1, "": 1}
    assert await counts("sessions_failed", "agent") == {"parser": 1}
    assert await counts("sessions_resumed") == {"SIMPLE": 1}
    assert await counts("sessions_completed") == {"SIMPLE": 1}
    assert await counts("sessions_abandoned") == {"": 1}
    assert await counts("session_duration") == {"SIMPLE": 1}
    # The plan records its times itself.
    for status in ("RUNNING", "FAILED", "FAILED", "RUNNING", "COMPLETED", "COMPLETED"):
        await update_agent_execution(execution_id="s-parser", status=status, variant="A")
    assert await counts("agent_execution_time") == {}
    assert await counts("agent_failures", "agent") == {"parser": 1}
    assert await counts("agent_retries") == {"A": 1}
    assert (await get_agent_execution("s-parser")).variant == "A"


async def test_what_is_saved_again_within_one_tick_of_the_clock_counts_once(
    counted: Settings,
) -> None:
    with settings.use(clock=lambda: DAY):
        for _ in range(3):
            await save_pipeline_session(session_id="s", status="ACTIVE")
            await save_user_project(user_id="u", project_id="p", tech_stack=["React"])
        assert await counts("sessions_started") == {"": 1}
        assert await counts("projects_saved") == {"React": 1}


async def test_a_change_of_status_whose_reply_was_lost_counts(counted: Settings) -> None:
    calls: tuple[tuple[Callable[[], Awaitable[object]], str], ...] = (
        (lambda: save_pipeline_session(session_id="s", status="FAILED"), "sessions_failed"),
        (lambda: save_pipeline_session(session_id="s", status="ACTIVE"), "sessions_resumed"),
        (lambda: save_pipeline_session(session_id="s", status="COMPLETED"), "sessions_completed"),
        (lambda: save_pipeline_session(session_id="t"), "sessions_started"),
        (lambda: abandon_session("t", "enough"), "sessions_abandoned"),
    )
    for call, name in calls:
        before = (await counts(name)).get("", 0)
        with injected(Fault("resent", table="pipeline-sessions")):
            await call()
            await flush_metrics()  # of the settings of this block
        assert (await counts(name))[""] == before + 1, name


@pytest.mark.parametrize("ended", [False, True])
async def test_a_change_resent_after_a_claim_counts_as_what_it_was(
    counted: Settings, ended: bool
) -> None:
    await save_pipeline_session(session_id="s", current_agent="parser")

    async def claim() -> None:
        with settings.use(counted):
            resume = await resume_pipeline("s")
            if ended:
                async with resume:
                    pass

    fault = Fault("resent", table="pipeline-sessions", between=claim)
    with injected(fault):
        await save_pipeline_session(session_id="s", status="FAILED")
        await flush_metrics()
    assert await counts("sessions_failed", "agent") == {"parser": 1}
    assert await counts("sessions_completed") == ({"": 1} if ended else {})
    assert await counts("session_duration") == ({"": 1} if ended else {})


async def test_a_retry_comes_after_a_try_that_ended(counted: Settings) -> None:
    session = await track_session("s").__aenter__()
    await session.agent("parser").__aenter__()  # and dies
    later = replace(counted, clock=lambda: DAY + 4000)
    with settings.use(later):
        async with await resume_pipeline("s") as resumed, resumed.agent("parser"):
            pass
        await flush_metrics()
    assert (await get_agent_execution("s-parser")).retry_count == 1
    assert await counts("agent_execution_time", "agent") == {"parser": 1}
    assert await counts("agent_retries") == {}


async def test_the_plans_calls_inside_an_agents_block_count_once(counted: Settings) -> None:
    async with track_session("s") as session, session.agent("parser") as run:
        run.output = 1
        await update_agent_execution(execution_id="s-parser", status="COMPLETED")
    assert await counts("agent_execution_time", "agent") == {"parser": 1}


@pytest.mark.parametrize("raises", [False, True])
async def test_a_failure_that_a_call_says_inside_an_agents_block_is_a_run_that_failed(
    counted: Settings, raises: bool
) -> None:
    with suppress(ValueError):
        async with track_session("s") as session, session.agent("search", variant="B") as run:
            run.usage(input_tokens=5)
            await update_agent_execution(execution_id="s-search", status="FAILED")
            if raises:
                raise ValueError
    await flush_metrics()
    (found,) = (await agent_performance(DAY - 3600, DAY + 36000)).agents
    assert (found.runs, found.failures, found.success_rate) == (1, 1, 0)
    for name in ("agent_execution_time", "agent_failures"):
        assert await counts(name) == {"B": 1}
    assert await counts("agent_tokens") == {"": 1}


async def test_a_run_that_raises_after_a_call_has_completed_it_is_counted_and_paid(
    counted: Settings,
) -> None:
    with pytest.raises(ValueError, match="late"):
        async with track_session("s") as session, session.agent("search") as run:
            run.usage(input_tokens=5, cost_usd=0.5)
            await update_agent_execution(execution_id="s-search", status="COMPLETED")
            raise ValueError("late")
    stored, session_after = await get_agent_execution("s-search"), await get_pipeline_session("s")
    assert (stored.status, session_after.status) == ("COMPLETED", "FAILED")
    assert session_after.error_message == "ValueError: late"
    for found in (stored, session_after):
        assert (found.input_tokens, found.cost_usd) == (5, 0.5)
    assert await counts("agent_execution_time", "agent") == {"search": 1}
    assert await counts("agent_cost_usd", "agent") == {"search": 1}
    assert await counts("agent_failures", "agent") == {}


async def test_two_that_say_the_same_failure_count_once(counted: Settings) -> None:
    await update_agent_execution(execution_id="s-parser", status="RUNNING")

    async def fail() -> None:
        with settings.use(counted):
            await update_agent_execution(execution_id="s-parser", status="FAILED")

    with injected(Fault("before", operation="TransactWriteItems", between=fail)):
        await update_agent_execution(execution_id="s-parser", status="FAILED")
        await flush_metrics()
    assert await counts("agent_failures", "agent") == {"parser": 1}


async def stops() -> dict[str, int]:
    await flush_metrics()
    report = await usage_report(DAY - 3600, DAY + 36000)
    return {step.agent_name: step.stopped for step in report.funnel if step.stopped}


async def test_each_stop_counts_once_where_it_was(counted: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session, session.agent("parser"):
            raise KeyError
    assert await stops() == {"parser": 1}
    resumed = await resume_pipeline("s")
    for name in ("parser", "search"):
        async with resumed.agent(name):
            pass
    await abandon_session("s", "in the middle of search")
    assert await stops() == {"parser": 1, "search": 1}
    # An error that the orchestrator keeps for later is the agent's that raised it.
    with pytest.raises(KeyError):
        async with track_session("late") as session:
            try:
                async with session.agent("assembly"):
                    raise KeyError
            except KeyError as error:
                async with session.agent("download"):
                    pass
                raise error
    assert await stops() == {"parser": 1, "search": 1, "assembly": 1}
    # The plan's calls say the same.
    await save_pipeline_session(session_id="t", status="FAILED", failed_agent="nl_input")
    await save_pipeline_session(session_id="t", status="ACTIVE", current_agent="generation")
    assert (await get_pipeline_session("t")).failed_agent is None
    await save_pipeline_session(session_id="t", status="FAILED")
    await abandon_session("t", "lies there already")
    expected = {"parser": 1, "search": 1, "assembly": 1, "nl_input": 1, "generation": 1}
    assert await stops() == expected
    report = await usage_report(DAY - 3600, DAY + 36000)
    assert (report.abandonment_rate, report.success_rate) == (1, 0)
    assert [step.agent_name for step in report.funnel] == [*AGENTS]


async def test_a_stop_at_an_agent_of_ones_own_is_in_the_funnel(counted: Settings) -> None:
    for number in range(3):
        with suppress(KeyError):
            async with track_session(f"s{number}") as session:
                async with session.agent("evaluator", key=1):
                    pass
                async with session.agent("evaluator", key=2):
                    if number:
                        raise KeyError
                async with session.agent("judge"):
                    pass
    assert await stops() == {"evaluator": 2}
    report = await usage_report(DAY - 3600, DAY + 36000)
    assert [step.agent_name for step in report.funnel] == [*AGENTS, "evaluator"]
    assert report.funnel[-1].completed == 4
    assert sum(step.stopped for step in report.funnel) == report.sessions.failed


async def test_sessions_that_wait_to_be_resumed_are_counted(counted: Settings) -> None:
    for number in range(30):
        status = "FAILED" if number < 22 else "COMPLETED"
        await save_pipeline_session(session_id=f"s{number}", status=status)
    for number in range(2):  # in backoff
        later = {"N": str(DAY + 90_000)}
        raw.put_attribute(counted, "pipeline-sessions", f"s{number}", due_at=later)
    expired = {"N": str(DAY - 1)}
    raw.put_attribute(counted, "pipeline-sessions", "s2", expires_at=expired)
    await flush_metrics()
    report = await usage_report(DAY - 3600, DAY + 36000)
    assert (report.sessions.completed, report.success_rate) == (8, 1)
    assert (report.waiting, report.due) == (21, 19)


async def test_counting_those_that_wait_is_cheap_and_bounded(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        reason = "x" * 2000
        await save_pipeline_session(session_id=f"s{number}", status="FAILED", error_message=reason)
    events: list[RequestEvent] = []
    with settings.use(strict_store, on_request=events.append):
        assert (await usage_report(DAY, DAY + 3600)).waiting == 30
        asked = [event for event in events if event.table.endswith("pipeline-sessions")]
        assert len(asked) == 2
        assert 7 <= sum(event.units for event in asked) <= 10
        monkeypatch.setattr(reports, "_MOST_COUNTED", 20)
        with injected(Fault("short", operation="Query", nth=10)):
            report = await usage_report(DAY, DAY + 3600)
    assert (report.waiting, report.due) == (20, 20)


async def test_the_time_of_an_agent_is_that_of_its_work(store: Settings) -> None:
    now = [DAY]

    def store_slowly() -> None:
        now[0] += 100

    with settings.use(store, automatic_metrics=True, clock=lambda: now[0], lease_seconds=900):
        fault = Fault("before", operation="TransactWriteItems", nth=2, between=store_slowly)
        with injected(fault):
            async with track_session("s") as session, session.agent("parser"):
                now[0] += 7
            await flush_metrics()
        (row,) = await query_metrics("agent_execution_time", DAY, DAY + 3600)
        assert row.sum == 7


async def test_a_project_counts_for_20_technologies_at_most(counted: Settings) -> None:
    await save_user_project(user_id="u", project_id="p", tech_stack=[str(n) for n in range(99)])
    assert await counts("projects_saved") == {str(n): 1 for n in range(20)}


async def test_projects_count_by_technology_once_and_downloads_by_id(counted: Settings) -> None:
    for _ in range(2):
        await save_user_project(
            user_id="u", project_id="p", tech_stack=["React", "C#", "x" * 300, 7]
        )
        await record_download("u", "p", "first")
    assert await counts("projects_saved") == {"React": 1, "C♯": 1, "x" * 200: 1}
    assert await counts("project_downloads") == {"": 1}
    for download_id in ("second", None):
        with injected(Fault("resent", operation="UpdateItem", table="user-projects")):
            await record_download("u", "p", download_id)
            await flush_metrics()
    assert await counts("project_downloads") == {"": 3}


async def test_one_setting_turns_them_off(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("parser"):
            pass
    await flush_metrics()
    assert raw.everything(store, "metrics") == []
    assert Settings.from_env({"TDEV_AUTOMATIC_METRICS": "off"}).automatic_metrics is False


class Broken:
    """A metrics table that answers nothing of use, after a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.tried = seconds, 0

    def wrap(self, send: Transport) -> Transport:
        async def broken(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if request.get("TableName", "").endswith("metrics"):
                self.tried += 1
                time.sleep(self.seconds)  # noqa: ASYNC251 (in a thread of its own)
                raise Throttled("injected")
            return await send(operation, request)

        return broken


def run_agents() -> None:
    with sync.track_session("s") as session:
        for name in AGENTS:
            with session.agent(name) as run:
                run.output = 1


def test_a_broken_table_neither_fails_nor_slows_the_pipeline(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(0.3)
    with settings.use(strict_store, automatic_metrics=True, transport=broken.wrap, retry_seconds=1):
        begun = time.monotonic()
        run_agents()
        assert time.monotonic() - begun < 1
        assert sync.get_pipeline_session("s").status == "COMPLETED"
        sync.flush_metrics()
    assert broken.tried > len(AGENTS)
    assert "samples of agent_execution_time lost: Throttled: injected" in caplog.text


def test_a_loss_is_in_the_log_when_flushing_returns(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def take_time(_: object) -> bool:
        time.sleep(0.2)
        return True

    caplog.handler.addFilter(take_time)
    broken = Broken(0)
    with settings.use(strict_store, automatic_metrics=True, transport=broken.wrap, retry_seconds=0):
        recorder = recording.Recorder.for_settings(settings.current())
        recorder.add(recording.CellKey(0, "m", "", ""), 1, error=False, awaited=False)
        sync.flush_metrics()
    assert "1 samples of m lost" in caplog.text


def test_what_waits_is_bounded(
    strict_store: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_MOST_QUIET", 3)
    slow = Broken(1.0)
    with settings.use(strict_store, automatic_metrics=True, transport=slow.wrap, retry_seconds=0.5):
        recorder = recording.Recorder.for_settings(settings.current())
        for _ in range(50):
            recorder.add(recording.CellKey(0, "m", "", ""), 1, error=False, awaited=False)
        assert sum(len(c.pending.values) for c in recorder._cells.values() if c.pending) <= 3
        sync.flush_metrics()
    assert "samples of m lost" in caplog.text


def test_what_waits_in_many_cells_is_bounded(
    strict_store: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_MOST_CELLS", 5)
    slow = Broken(0.1)
    with settings.use(strict_store, automatic_metrics=True, transport=slow.wrap, retry_seconds=0.5):
        recorder = recording.Recorder.for_settings(settings.current())
        for number in range(50):
            with suppress(Throttled):
                recorder.add(
                    recording.CellKey(0, f"m{number}", "", ""), 1, error=False, awaited=False
                )
        assert len(recorder._cells) == 5
        run_agents()
        sync.flush_metrics()
    assert "run_ended: not recorded" in caplog.text


def test_an_error_of_their_own_is_logged_only(
    strict_store: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(recording.Recorder, "for_settings", broken)
    with settings.use(strict_store, automatic_metrics=True):
        run_agents()
    assert "run_ended: not recorded" in caplog.text


async def test_the_time_of_an_agent_is_that_of_its_attempt_however_long_storing_takes(
    strict_store: Settings,
) -> None:
    chunk = Fault(
        "before",
        operation="UpdateItem",
        table="agent-executions",
        between=lambda: time.sleep(0.3),
    )
    with settings.use(strict_store, automatic_metrics=True):
        with injected(chunk):
            async with track_session("s") as session:
                async with session.agent("parser") as run:
                    run.output = {str(number): number * 7919 for number in range(100_000)}
            await flush_metrics()
        now = time.time()
        (row,) = await query_metrics("agent_execution_time", now - 3600, now + 3600)
        (attempt,) = (await get_agent_execution("s-parser")).attempts
    assert attempt.start_time is not None
    assert attempt.end_time is not None
    assert row.mean == pytest.approx(attempt.end_time - attempt.start_time, abs=1e-5)
