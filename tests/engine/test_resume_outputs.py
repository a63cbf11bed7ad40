"""Resuming reads what ended agents stored before it claims anything."""

from __future__ import annotations

from functools import partial

import pytest

from tdev_models import (
    PayloadDamaged,
    Settings,
    TdevError,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
)
from tests import raw
from tests.engine.pipelines import clock, fail, finish
from tests.faults import Fault, injected


async def test_a_session_whose_outputs_cannot_be_read_is_left_as_it_is(store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("nl_input") as run:
                run.output = [number / 7 for number in range(3000)]
            raise KeyError
    (chunk,) = [one for one in raw.everything(store, "agent-executions") if "chunk" in one]
    raw.delete(store, "agent-executions", chunk["execution_id"]["S"], chunk["agent_name"]["S"])
    await save_pipeline_session(session_id="t", status="FAILED")
    before = await get_pipeline_session("s")
    with pytest.raises(PayloadDamaged, match="s-nl_input"):
        await resume_pipeline("s")
    with pytest.raises(PayloadDamaged, match="s-nl_input"):
        await track_session("s").__aenter__()
    done = await recover_sessions(lambda session: None)
    assert (done.unreadable, done.completed) == (["s"], ["t"])
    assert await get_pipeline_session("s") == before
    assert await resume_pipeline("s", from_agent="nl_input")


@pytest.mark.parametrize("operation", ["Query", "TransactGetItems"])
@pytest.mark.parametrize("kind", ["throttled", "lost", "broken"])
@pytest.mark.parametrize("status", ["FAILED", "ACTIVE"])
async def test_what_cannot_be_read_before_the_claim_changes_nothing(
    store: Settings, operation: str, kind: str, status: str
) -> None:
    await fail("s")
    dead = await resume_pipeline("s") if status == "ACTIVE" else None
    before = raw.item(store, "pipeline-sessions", "s")
    with settings.use(store, clock=clock(4000)):
        fault = partial(Fault, kind, operation=operation, table="agent-executions")
        with injected(fault()), pytest.raises(TdevError):
            await resume_pipeline("s")
        with injected(fault()), pytest.raises(TdevError):
            await track_session("s").__aenter__()
        with injected(fault()):
            assert (await recover_sessions(finish)).lost == ["s"]
    assert raw.item(store, "pipeline-sessions", "s") == before
    del dead


async def test_what_the_owner_writes_while_outputs_are_read_keeps_the_session_his(
    strict_store: Settings,
) -> None:
    """A frozen owner wakes between the read of its executions and the claim."""
    owner = await track_session("s").__aenter__()

    async def write() -> None:
        with settings.use(strict_store):
            async with owner.agent("nl_input") as run:
                run.output = 1

    with settings.use(strict_store, clock=clock(4000)):
        with injected(Fault("before", operation="Query", between=write)):
            refused = await resume_pipeline("s")
        assert not refused
        assert (await resume_pipeline("s")).outputs == {"nl_input": 1}
