"""Taking a session over though its owner lives, and bringing an abandoned one back."""

from __future__ import annotations

import asyncio
import contextvars
import logging

import pytest

from tdev_models import (
    LeaseLost,
    Settings,
    abandon_session,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    track_session,
)
from tests import raw
from tests.engine.pipelines import fail, finish
from tests.faults import Fault, injected


async def test_an_abandoned_session_is_brought_back_with_a_budget_of_its_own(
    store: Settings,
) -> None:
    await fail("s")
    raw.put_attribute(store, "pipeline-sessions", "s", resumes_without_progress={"N": "99"})
    assert (await recover_sessions(finish)).abandoned == ["s"]
    assert (await resume_pipeline("s")).reason == "it is ABANDONED"
    resume = await resume_pipeline("s", finish, force=True)
    assert resume
    assert (await get_pipeline_session("s")).status == "COMPLETED"

    await fail("t")
    raw.put_attribute(store, "pipeline-sessions", "t", resumes_without_progress={"N": "99"})
    await abandon_session("t", "enough")
    with pytest.raises(KeyError):
        async with await resume_pipeline("t", force=True):
            raise KeyError
    assert (await recover_sessions(finish, max_attempts=2)).completed == ["t"]


async def test_a_live_owner_is_taken_over_and_told(store: Settings) -> None:
    owner = await track_session("s").__aenter__()
    async with owner.agent("nl_input") as run:
        run.output = 1
    elsewhere = contextvars.Context()
    assert not await resume_pipeline("s")

    async def an_agent_ends() -> None:
        async with owner.agent("ui_selection") as run:
            run.output = 2

    # What the owner ends between the read and the claim counts: all of it is read again.
    with injected(Fault("before", operation="UpdateItem", between=an_agent_ends)):
        resume = await resume_pipeline("s", force=True)
    assert resume.outputs == {"nl_input": 1, "ui_selection": 2}
    with pytest.raises(LeaseLost):
        async with owner.agent("parser"):
            pass

    async def end() -> None:
        async with resume:
            await finish(resume)

    await asyncio.create_task(end(), context=elsewhere)
    session = await get_pipeline_session("s")
    assert (session.status, session.fence) == ("COMPLETED", 2)


async def test_what_is_completed_stays_so(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="COMPLETED")
    assert (await resume_pipeline("s", force=True)).reason == "it is COMPLETED"


async def test_a_claim_that_nobody_runs_is_logged(
    store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        await save_pipeline_session(session_id=name, status="FAILED")
    await resume_pipeline("a")
    await resume_pipeline("a")  # refused: nothing to say
    async with await resume_pipeline("b"):
        pass
    await resume_pipeline("c", finish)
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("session a was claimed, and nobody runs it; give")
