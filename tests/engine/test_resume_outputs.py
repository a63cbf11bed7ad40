"""Resuming reads what ended agents stored, under a lease, before anything runs."""

from __future__ import annotations

import asyncio

import pytest

from tdev_models import (
    PayloadDamaged,
    Settings,
    Throttled,
    abandon_session,
    get_failed_sessions,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
)
from tests import raw
from tests.faults import Fault, injected


async def test_a_claim_whose_outputs_cannot_be_read_ends_as_failed(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("nl_input") as run:
                run.output = [number / 7 for number in range(3000)]
            raise KeyError
    (chunk,) = [one for one in raw.everything(store, "agent-executions") if "chunk" in one]
    raw.delete(store, "agent-executions", chunk["execution_id"]["S"], chunk["agent_name"]["S"])
    with pytest.raises(PayloadDamaged):
        await resume_pipeline("s")
    (failed,) = await get_failed_sessions()
    assert (failed.error_message or "").startswith("PayloadDamaged: s-nl_input")
    assert await resume_pipeline("s", from_agent="nl_input")


async def test_a_claim_whose_outputs_cannot_be_read_waits_before_the_next(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with injected(Fault("throttled", operation="TransactGetItems", nth=2)):
        assert (await recover_sessions(lambda session: None)).lost == ["s"]
    session = await get_pipeline_session("s")
    assert session.status == "FAILED"
    assert (session.next_retry_at or 0) > (session.last_updated or 0)


async def test_a_lease_is_kept_while_outputs_are_read(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def read_slowly() -> None:
        await asyncio.sleep(1.5)

    with settings.use(strict_store, lease_seconds=1):
        with injected(Fault("before", operation="TransactGetItems", between=read_slowly)):
            assert await resume_pipeline("s")
        assert "owns it" in ((await resume_pipeline("s")).reason or "")


async def test_a_session_that_is_lost_while_outputs_are_read_is_not_resumed(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def lose() -> None:
        with settings.use(strict_store):
            await abandon_session("s", "enough")
        await asyncio.sleep(0.6)

    with settings.use(strict_store, lease_seconds=1):
        with injected(Fault("before", operation="TransactGetItems", between=lose)):
            resume = await resume_pipeline("s")
    assert (bool(resume), resume.reason) == (
        False,
        "it was taken over while its outputs were read",
    )
    assert (await get_pipeline_session("s")).error_message == "enough"


async def test_a_claim_that_cannot_read_keeps_where_the_session_had_failed(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session, session.agent("search"):
            raise KeyError
    with injected(Fault("throttled", operation="TransactGetItems")), pytest.raises(Throttled):
        await resume_pipeline("s")
    session_now = await get_pipeline_session("s")
    assert (session_now.status, session_now.failed_agent) == ("FAILED", "search")
