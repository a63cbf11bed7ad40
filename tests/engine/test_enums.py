"""An Enum that is a str, too, as programs had before StrEnum, is given wherever a text is."""

from __future__ import annotations

from enum import Enum
from typing import Any

from tdev_models import (
    PipelineSession,
    Settings,
    assign_variant,
    compare_variants,
    get_agent_executions,
    get_pipeline_session,
    list_pipeline_sessions,
    query_metrics,
    record_metric,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)

NOW = 1_780_000_000.0


class Name(str, Enum):  # noqa: UP042 (its str() is not its value)
    AGENT = "search"
    ID = "s"
    NEW = "b"
    OLD = "a"
    RUNNING = "RUNNING"
    STATUS = "ACTIVE"


class Number(int, Enum):  # its str() is not its value, either
    DESIGN = 3


async def test_sessions_and_executions_have_its_value(store: Settings) -> None:
    await save_pipeline_session(session_id=Name.ID, status=Name.STATUS)
    await update_agent_execution(
        execution_id="s-search", agent_name=Name.AGENT, status=Name.RUNNING
    )
    assert (await list_pipeline_sessions(status=Name.STATUS))[0].session_id == "s"
    (execution,) = await get_agent_executions(Name.ID)
    assert (execution.agent_name, execution.status) == ("search", "RUNNING")


async def test_agents_run_under_its_value(strict_store: Settings) -> None:
    with settings.use(strict_store, agents=(Name.AGENT, Name.NEW)) as chosen:
        async with track_session(Name.ID) as session, session.agent(Name.AGENT):
            pass
    (execution,) = await get_agent_executions("s")
    assert execution.execution_id == "s-search"
    assert [type(name) for name in chosen.agents] == [str, str]


async def test_settings_have_its_value(strict_store: Settings) -> None:
    """A client is kept by equal settings: later calls without an Enum used its wrong tables."""
    texts = {name: getattr(strict_store, name) for name in ("environment", "endpoint", "region")}
    enum = Enum("enum", texts, type=str)  # type: ignore[misc]
    changes: dict[str, Any] = {one.name: one for one in enum}
    with settings.use(strict_store, **changes) as chosen:
        await save_pipeline_session(session_id="s")
    assert (await get_pipeline_session("s")).session_id == "s"
    assert chosen.table_name("x") == strict_store.table_name("x")


async def test_metrics_are_found_by_its_value(store: Settings) -> None:
    for dimension in (Name.OLD, Name.NEW):
        await record_metric(
            metric_name=Name.ID, value=1, agent_name=Name.AGENT, dimension=dimension, timestamp=NOW
        )
    for name, agent in ((Name.ID, Name.AGENT), ("s", "search")):
        (row,) = await query_metrics(name, NOW, NOW + 1, agent_name=agent)
        assert (row.metric_name, row.agent_name, row.count) == ("s", "search", 2)
    found = await compare_variants(Name.AGENT, Name.OLD, Name.NEW, Name.ID, NOW, NOW + 1)
    assert found.a is not None
    assert found.a.count == 1
    assert "1 samples of a and 1 of b" in found.verdict
    weights: dict[str, float] = {Name.OLD: 1, Name.NEW: 1}
    for unit in ("search", "s", "b", "a"):
        assert assign_variant(Name.ID, Name(unit), weights) == assign_variant(
            "s", unit, {"a": 1, "b": 1}
        )


async def test_a_number_has_its_value(store: Settings) -> None:
    await save_pipeline_session(session_id="s", progress=Number.DESIGN)
    assert (await get_pipeline_session("s")).progress == 3
    async with (
        track_session("other") as session,
        session.agent("search", key=Number.DESIGN) as run,
    ):
        run.usage(input_tokens=Number.DESIGN)
    (execution,) = await get_agent_executions("other")
    assert (execution.agent_name, execution.input_tokens) == ("search@3", 3)
    item = PipelineSession("s")
    item.refresh()
    item.progress, item.project_name = Number.DESIGN, "p"  # moto takes no update that sets nothing
    item.save(PipelineSession.progress == Number.DESIGN)
