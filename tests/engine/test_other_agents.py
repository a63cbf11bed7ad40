"""A pipeline of other agents than the nine: the setting `agents`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tdev_models import (
    InvalidRequest,
    Settings,
    get_agent_execution,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)

AGENTS = ("plan", "code", "test-code", "review", *(f"step-{n}" for n in range(8)))


@pytest.fixture(autouse=True)
def _other_agents(store: Settings) -> Iterator[None]:
    with settings.use(store, agents=AGENTS):
        yield


async def test_a_resume_goes_on_where_the_pipeline_stopped() -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            assert session.start_agent == "plan"
            for name in AGENTS:
                async with session.agent(name) as run:
                    if name == "step-7":
                        raise KeyError
                    run.output = name
    assert (await get_pipeline_session("s")).progress == 11
    resume = await resume_pipeline("s", from_agent="review")
    assert (resume.start_agent, [*resume.outputs]) == ("review", [*AGENTS[:3]])
    async with resume:
        for name in AGENTS:
            async with resume.agent(name) as run:
                assert run.done == (name in AGENTS[:3])
                run.output = name
    done = await get_pipeline_session("s")
    assert (done.status, done.progress) == ("COMPLETED", 12)
    with pytest.raises(InvalidRequest, match="from_agent: 'parser' is not one of plan, code"):
        await resume_pipeline("s", from_agent="parser")


async def test_ids_end_in_the_pipelines_agents() -> None:
    await update_agent_execution(execution_id="s-test-code", status="COMPLETED")
    await update_agent_execution(execution_id="s-code", status="COMPLETED")
    for name in ("test-code", "code"):
        execution = await get_agent_execution(f"s-{name}")
        assert (execution.agent_name, execution.project_id) == (name, "s")
    with pytest.raises(InvalidRequest, match=r"ends in no known agent.* \(the setting agents\)"):
        await get_agent_execution("s-parser")


async def test_progress_counts_up_to_the_number_of_agents() -> None:
    assert (await save_pipeline_session(session_id="s", progress=12)).progress == 12
    with pytest.raises(InvalidRequest, match="progress: 13 is not a whole number from 0 to 12"):
        await save_pipeline_session(session_id="s", progress=13)
