"""Finding what failed: sessions and executions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    RequestEvent,
    Settings,
    get_failed_executions,
    get_failed_sessions,
    record_metric,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tdev_models.settings import Transport
from tests import raw
from tests.engine.pipelines import clock
from tests.faults import Fault, injected


async def test_failed_and_stalled_sessions_are_found_longest_due_first(store: Settings) -> None:
    for number, status in enumerate(["FAILED", "ACTIVE", "COMPLETED", "FAILED", "ACTIVE"]):
        await save_pipeline_session(session_id=f"s{number}", status=status)
    await track_session("leased").__aenter__()
    assert [one.session_id for one in await get_failed_sessions()] == ["s0", "s3"]
    with settings.use(store, clock=clock(4000)):
        # The lease ran out, and the bare ones were not updated for over an hour.
        found = await get_failed_sessions()
        assert [one.session_id for one in found] == ["s0", "s3", "s1", "s4", "leased"]
        only_failed = await get_failed_sessions(include_stalled=False)
        assert [one.session_id for one in only_failed] == ["s0", "s3"]


async def test_pages_merge_both_statuses_and_end(store: Settings) -> None:
    for number in range(11):
        status = "FAILED" if number % 3 else "ACTIVE"
        await save_pipeline_session(session_id=f"s{number:02}", status=status)
    with settings.use(store, clock=clock(4000)):
        seen, cursor = [], None
        for _ in range(10):
            page = await get_failed_sessions(limit=4, cursor=cursor)
            due = [one["due_at"] for one in page]
            assert due == sorted(due)
            seen += [one.session_id for one in page]
            cursor = page.cursor
            if cursor is None:
                break
        failed = [f"s{number:02}" for number in range(11) if number % 3]
        assert seen == [*failed, "s00", "s03", "s06", "s09"]
        with pytest.raises(InvalidRequest, match=r"^cursor: "):
            first = await get_failed_sessions(limit=4)
            await get_failed_sessions(limit=4, include_stalled=False, cursor=first.cursor)


async def test_older_than_takes_a_moment_or_an_age(store: Settings) -> None:
    await save_pipeline_session(session_id="old", status="FAILED")
    middle = time.time()
    await asyncio.sleep(0.01)
    await save_pipeline_session(session_id="new", status="FAILED")
    for older_than in (middle, datetime.fromtimestamp(middle, UTC), datetime.fromtimestamp(middle)):  # noqa: DTZ006
        assert [one.session_id for one in await get_failed_sessions(older_than)] == ["old"]
    assert await get_failed_sessions(timedelta(hours=1)) == []
    with pytest.raises(InvalidRequest, match="for an age pass a timedelta"):
        await get_failed_sessions(3600)


async def test_what_an_index_shows_too_late_is_not_returned(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def claimed_meanwhile() -> None:
        with settings.use(store):
            assert await resume_pipeline("s")

    with injected(Fault("before", operation="TransactGetItems", between=claimed_meanwhile)):
        assert await get_failed_sessions() == []


async def test_a_session_of_both_statuses_in_a_lagging_index_is_read_once(
    strict_store: Settings,
) -> None:
    with settings.use(strict_store, clock=lambda: time.time() - 10_000):
        await save_pipeline_session(session_id="s")
    stale: list[dict[str, Any]] = []

    def lagging(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            of_active = operation == "Query" and "ACTIVE" in str(request)
            if of_active and stale:
                return stale[0]
            response = await send(operation, request)
            if of_active:
                stale.append(response)
            return response

        return sent

    with settings.use(replace(strict_store, transport=lagging)):
        assert len(await get_failed_sessions()) == 1
        await save_pipeline_session(session_id="s", status="FAILED")  # by another worker
        assert (await recover_sessions(lambda resume: None)).completed == ["s"]


async def test_all_pages_have_the_bounds_of_the_first(store: Settings) -> None:
    for number in range(4):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED")
    middle = ((await get_failed_sessions())[1].last_updated or 0) + 1e-5
    first = await get_failed_sessions(middle, limit=1)
    assert first.cursor
    rest = await get_failed_sessions(limit=10, cursor=first.cursor)
    assert [one.session_id for one in [*first, *rest]] == ["s0", "s1"]


async def test_milliseconds_are_refused(store: Settings) -> None:
    with pytest.raises(InvalidRequest, match="not a moment in seconds"):
        await record_metric(metric_name="m", value=1, timestamp=time.time() * 1000)
    with pytest.raises(InvalidRequest, match="not a moment in seconds"):
        await get_failed_sessions(time.time() * 1000)


async def test_failures_are_found_newest_first_by_time_and_agent(store: Settings) -> None:
    for number in range(6):
        agent = "search" if number % 2 else "parser"
        await update_agent_execution(execution_id=f"p{number}-{agent}", status="FAILED")
    everything = await get_failed_executions()
    assert [one.execution_id[:2] for one in everything] == ["p5", "p4", "p3", "p2", "p1", "p0"]
    since = everything[2].failed_at
    assert [one.execution_id[:2] for one in await get_failed_executions(since)] == [
        "p5",
        "p4",
        "p3",
    ]
    first = await get_failed_executions(agent_name="search", limit=2)
    rest = await get_failed_executions(agent_name="search", limit=2, cursor=first.cursor)
    assert [one.execution_id[:2] for one in [*first, *rest]] == ["p5", "p3", "p1"]
    with pytest.raises(InvalidRequest, match=r"^cursor: "):
        await get_failed_executions(agent_name="parser", cursor=first.cursor)


async def test_an_execution_that_runs_again_is_no_failure(store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="FAILED", error_message="x")
    await update_agent_execution(execution_id="p-parser", status="RUNNING")
    assert await get_failed_executions() == []
    stored = raw.item(store, "agent-executions", "p-parser", "parser")
    assert stored is not None
    assert "end_time" not in stored


async def test_a_rare_agents_failure_is_found_with_few_requests(strict_store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="FAILED")
    for number in range(220):
        await update_agent_execution(execution_id=f"p{number}-search", status="FAILED")
    await update_agent_execution(execution_id="q-parser", status="FAILED")
    events: list[RequestEvent] = []
    with settings.use(on_request=events.append):
        first = await get_failed_executions(agent_name="parser", limit=1)
        assert [event.operation for event in events] == ["Query", "TransactGetItems"]
        rest = await get_failed_executions(agent_name="parser", limit=1, cursor=first.cursor)
    assert [one.execution_id for one in [*first, *rest]] == ["q-parser", "p-parser"]
    assert [event.operation for event in events[2:]] == ["Query", "TransactGetItems"]
