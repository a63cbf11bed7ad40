"""A session of the plan's bare calls is alive as long as its agents are."""

from __future__ import annotations

import time

import pytest

from tdev_models import (
    AGENTS,
    LeaseHeld,
    RequestEvent,
    Settings,
    get_failed_sessions,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tests.dying import kill_worker

MINUTE = 60.0


async def test_nine_agents_of_eight_minutes_are_not_taken_over(store: Settings) -> None:
    now = [time.time()]
    with settings.use(store, clock=lambda: now[0]):
        await save_pipeline_session(session_id="s", status="ACTIVE", current_agent="nl_input")
        for name in AGENTS:
            await update_agent_execution(execution_id=f"s-{name}", status="RUNNING")
            now[0] += 8 * MINUTE
            assert await get_failed_sessions() == []
            assert "too recently to be stalled" in ((await resume_pipeline("s")).reason or "")
            await update_agent_execution(execution_id=f"s-{name}", status="COMPLETED")
        done = await recover_sessions(lambda session: None)
        assert done == type(done)()
        now[0] += 61 * MINUTE  # nothing was heard of it for an hour
        assert [one.session_id for one in await get_failed_sessions()] == ["s"]
        assert (await resume_pipeline("s")).start_agent is None


async def test_an_end_counts_though_others_began_later(store: Settings) -> None:
    now = [time.time()]
    with settings.use(store, clock=lambda: now[0]):
        await save_pipeline_session(session_id="s")
        for name in ("nl_input", "parser"):
            await update_agent_execution(execution_id=f"s-{name}", status="RUNNING")
            now[0] += 1
        now[0] += 50 * MINUTE
        await update_agent_execution(execution_id="s-nl_input", status="COMPLETED")
        now[0] += 50 * MINUTE
        assert await get_failed_sessions() == []
        now[0] += 11 * MINUTE
        assert len(await get_failed_sessions()) == 1


async def test_only_a_session_without_a_lease_is_asked_for_signs_of_life(
    store: Settings,
) -> None:
    now = [time.time()]
    events: list[RequestEvent] = []
    with settings.use(store, clock=lambda: now[0], on_request=events.append):
        leased = track_session("leased")
        await leased.__aenter__()
        async with leased.agent("parser") as run:
            run.output = 1
        await save_pipeline_session(session_id="failed", status="FAILED")
        await update_agent_execution(execution_id="failed-parser", status="FAILED")
        await save_pipeline_session(session_id="bare")
        kill_worker()
        now[0] += 4000
        for name, queries in (("bare", 3), ("leased", 1), ("failed", 2)):  # adopts: once more
            events.clear()
            assert await resume_pipeline(name)
            assert [one.operation for one in events].count("Query") == queries


@pytest.mark.parametrize("status", ["RUNNING", "COMPLETED"])
async def test_a_worker_of_bare_calls_that_is_taken_over_learns_of_it(
    store: Settings, status: str
) -> None:
    now = [time.time()]
    with settings.use(store, clock=lambda: now[0]):
        await save_pipeline_session(session_id="s")
        await update_agent_execution(execution_id="s-parser", status="RUNNING")
        now[0] += 4000
        assert await resume_pipeline("s")
        with pytest.raises(LeaseHeld):
            await update_agent_execution(execution_id="s-parser", status=status)
