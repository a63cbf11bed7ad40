"""With a retention, everything of a session expires together, and what expired takes no writes."""

from __future__ import annotations

import pytest

from tdev_models import (
    InvalidTransition,
    NotFound,
    Settings,
    abandon_session,
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    get_failed_sessions,
    get_pipeline_session,
    list_pipeline_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import files


async def test_everything_of_a_session_expires_together(store: Settings) -> None:
    now = [1_900_000_000.5]
    with settings.use(store, retention_days=2, clock=lambda: now[0]):
        expires = {"N": str(1_900_000_000 + 2 * 86400)}
        async with track_session("s") as session:
            now[0] += 86400
            async with session.agent("parser", files(60_000)) as run:
                run.output = 1
        await save_pipeline_session(session_id="t", status="FAILED", user_id="u")
        now[0] += 3600
        await update_agent_execution(
            execution_id="t-parser", status="FAILED", output_data=files(60_000)
        )
        sessions = {
            one["session_id"]["S"]: one for one in raw.everything(store, "pipeline-sessions")
        }
        assert sessions["s"]["expires_at"] == expires
        mine = [
            one
            for one in raw.everything(store, "agent-executions")
            if one["execution_id"]["S"][0] == "s"
        ]
        assert len(mine) == 2
        assert all(one["expires_at"] == expires for one in mine)
        others = [
            one
            for one in raw.everything(store, "agent-executions")
            if one["execution_id"]["S"][0] == "t"
        ]
        assert all(one["expires_at"] == sessions["t"]["expires_at"] for one in others)

        now[0] = 1_900_000_000.5 + 2 * 86400
        with pytest.raises(NotFound):
            await get_pipeline_session("s")
        with pytest.raises(NotFound):
            await get_agent_execution("s-parser")
        assert await get_agent_executions("s") == []
        assert await list_pipeline_sessions(status="COMPLETED") == []
        assert len(await get_failed_sessions()) == len(await get_failed_executions()) == 1
        now[0] += 86400
        assert (await get_failed_sessions(), await get_failed_executions()) == ([], [])
        assert await list_pipeline_sessions(user_id="u") == []


@pytest.mark.parametrize("status", ["FAILED", "COMPLETED"])
async def test_what_expired_and_is_not_deleted_yet_takes_no_writes(
    store: Settings, status: str
) -> None:
    now = [1_900_000_000.5]
    with settings.use(store, retention_days=2, clock=lambda: now[0]):
        await save_pipeline_session(session_id="s", status=status)
        await update_agent_execution(execution_id="s-parser", status=status)
        now[0] += 2 * 86400
        before = [raw.everything(store, table) for table in raw.KEYS]
        for write in (
            lambda: save_pipeline_session(session_id="s", user_id="u"),
            lambda: save_pipeline_session(session_id="s", status=status),
            lambda: abandon_session("s", "late"),
            lambda: track_session("s").__aenter__(),
            lambda: update_agent_execution(execution_id="s-parser", status=status),
        ):
            refused = r"is (EXPIRED .* use another id|COMPLETED)"
            with pytest.raises(InvalidTransition, match=refused):
                await write()
        assert [raw.everything(store, table) for table in raw.KEYS] == before


async def test_retention_set_later_lets_no_claim_take_what_is_older(store: Settings) -> None:
    now = [1_900_000_000.5]
    with settings.use(store, clock=lambda: now[0]):
        await save_pipeline_session(session_id="s", status="FAILED")
        now[0] += 3 * 86400
        with settings.use(retention_days=2):
            assert (await resume_pipeline("s")).reason == "it has expired"
            with pytest.raises(InvalidTransition, match="session s is EXPIRED"):
                await track_session("s").__aenter__()
            assert (await get_pipeline_session("s")).status == "FAILED"
        assert await resume_pipeline("s")


async def test_without_retention_nothing_expires(store: Settings) -> None:
    async with track_session("s") as session, session.agent("parser", files(60_000)) as run:
        run.output = 1
    for table in ("pipeline-sessions", "agent-executions"):
        assert all("expires_at" not in item for item in raw.everything(store, table))
