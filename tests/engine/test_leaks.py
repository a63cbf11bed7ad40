"""What users and their agents made is in no repr and in no log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    RequestEvent,
    Settings,
    get_agent_execution,
    get_failed_executions,
    get_failed_sessions,
    get_pipeline_session,
    get_user_project,
    list_user_projects,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    settings,
    track_session,
)
from tdev_models.models import AgentExecution, PipelineSession, UserProject
from tests import canary

SECRET = "SECRET-OF-A-USER"


async def failed_session() -> None:
    with pytest.raises(RuntimeError):
        async with track_session("s", user_id="u", metadata={"k": SECRET}) as session:
            async with session.agent("nl_input", {"in": SECRET}) as run:
                run.output = {"out": SECRET}
            async with session.agent("ui_selection"):
                raise RuntimeError(SECRET)


async def test_a_repr_shows_keys_and_status(strict_store: Settings) -> None:
    await failed_session()
    await save_user_project(user_id="u", project_id="p", description=SECRET, tech_stack=[SECRET])
    with settings.use(clock=lambda: strict_store.clock() + 7200):
        waiting = await get_failed_sessions()
    shown: list[Any] = [
        await get_pipeline_session("s"),
        await get_agent_execution("s-nl_input"),
        await get_agent_execution("s-ui_selection"),
        await get_failed_executions(),
        waiting,
        await get_user_project("u", "p"),
        await list_user_projects("u"),
        PipelineSession.get("s", consistent_read=True),
        AgentExecution.get("s-nl_input", "nl_input", consistent_read=True),
        UserProject.get("u", "p", consistent_read=True),
    ]
    async with await resume_pipeline("s") as resume:
        async with resume.agent("ui_selection", SECRET) as run:
            token = PipelineSession.get("s", consistent_read=True).lease_token
            shown += [resume, run, resume.lease]
            run.output = SECRET
    for one in shown:
        assert SECRET not in repr(one), type(one)
        assert SECRET not in str(one), type(one)
        assert token
        assert token not in repr(one), type(one)
    assert "session_id='s'" in repr(shown[0])
    assert "status='FAILED'" in repr(shown[0])
    assert repr(shown[7]) == "PipelineSession(session_id='s', status='FAILED')"


def test_an_endpoint_holds_no_password() -> None:
    with pytest.raises(InvalidRequest, match=r"^endpoint: ") as refused:
        Settings(endpoint=f"https://me:{SECRET}@dynamodb.example")
    assert SECRET not in str(refused.value)


async def test_what_a_runner_raises_is_logged_by_its_class(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await failed_session()
    await save_pipeline_session(session_id="t", status="FAILED")

    def run(session: object) -> None:
        raise ConnectionRefusedError(SECRET)

    def hook(event: RequestEvent) -> None:
        raise ZeroDivisionError(SECRET)

    with caplog.at_level(logging.DEBUG):
        with settings.use(clock=lambda: strict_store.clock() + 7200, on_request=hook):
            await recover_sessions(run)
    assert "session s failed: ConnectionRefusedError" in caplog.text
    assert "the on_request hook failed: ZeroDivisionError" in caplog.text
    assert SECRET not in caplog.text


async def test_the_canary_finds_what_leaks(strict_store: Settings) -> None:
    with canary.watching() as leaked:
        await save_pipeline_session(session_id="s", metadata={"k": SECRET})
        assert leaked() == []
        logging.getLogger("any").debug("sending %s", f'{{"k":"{SECRET}"}}')
        assert len(leaked()) == 1
