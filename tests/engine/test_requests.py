"""What is sent, and how: observed, bounded, from the right thread."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    ConfigurationError,
    InvalidTransition,
    LeaseHeld,
    RequestEvent,
    Settings,
    Unavailable,
    get_pipeline_session,
    record_metric,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.settings import Transport


async def test_every_request_can_be_observed(strict_store: Settings) -> None:
    events: list[RequestEvent] = []
    with settings.use(strict_store, on_request=events.append):
        await save_pipeline_session(session_id="s", user_id="u")
        await get_pipeline_session("s")
        await save_pipeline_session(session_id="s", status="COMPLETED")
        with pytest.raises(InvalidTransition):
            await save_pipeline_session(session_id="s", status="FAILED")
        async with track_session("t") as session, session.agent("parser") as run:
            run.output = 1
    table = strict_store.table_name("pipeline-sessions")
    assert [(one.operation, one.table, one.error) for one in events[:4]] == [
        ("UpdateItem", table, None),
        ("GetItem", table, None),
        ("UpdateItem", table, None),
        ("UpdateItem", table, "ConditionalCheckFailedException"),
    ]
    assert [one.units for one in events[:3]] == [3, 1, 4]  # two indexes; a status moves an entry
    assert all(one.seconds > 0 and one.attempts == 1 for one in events)
    transaction = next(one for one in events if one.operation == "TransactWriteItems")
    assert transaction.table == ",".join(
        sorted(strict_store.table_name(name) for name in ("agent-executions", "pipeline-sessions"))
    )
    assert transaction.units > 0


async def test_one_heartbeat_costs_three_units_however_many_sessions_it_keeps(
    strict_store: Settings,
) -> None:
    events: list[RequestEvent] = []
    observed = {"on_request": events.append, "lease_seconds": 1.8, "stalled_after_seconds": 60}
    with settings.use(strict_store, **observed):
        async with AsyncExitStack() as sessions:
            for number in range(40):
                more = {"user_id": "u", "metadata": {"x": "y" * 9000}}
                await sessions.enter_async_context(track_session(f"s{number}", **more))
            events.clear()
            await asyncio.sleep(0.95)
            beats = list(events)
    assert 2 <= len(beats) <= 4
    assert {(one.operation, one.units) for one in beats} == {("UpdateItem", 3.0)}


async def test_an_engine_that_never_answers_blocks_no_loop_and_is_given_up_in_time(
    slow: Settings,
) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        await get_pipeline_session("s")
    ticking.cancel()
    assert ticks > 100
    assert time.monotonic() - begun < slow.retry_seconds + 5


@pytest.fixture
def slow() -> Iterator[Settings]:
    """An engine that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with settings.use(region="us-east-1", endpoint=f"http://127.0.0.1:{port}") as chosen:
            yield chosen


def test_nobody_listening_is_unavailable() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with settings.use(region="us-east-1", endpoint=f"http://127.0.0.1:{port}"):
        with pytest.raises(Unavailable):
            sync.get_pipeline_session("s")


def test_missing_tables_credentials_and_region_name_the_remedy(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with settings.use(region="us-east-1", endpoint=endpoint, environment="nowhere"):
        with pytest.raises(ConfigurationError, match="tdev migrate apply"):
            sync.get_pipeline_session("s")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with (
        settings.use(endpoint=f"{endpoint}/"),
        pytest.raises(ConfigurationError, match="AWS_REGION"),
    ):
        sync.get_pipeline_session("s")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with settings.use(region="eu-west-1", endpoint=f"{endpoint}/"):
        with pytest.raises(ConfigurationError, match="no credentials"):
            sync.get_pipeline_session("s")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        with pytest.raises(ConfigurationError, match="tdev migrate apply"):
            sync.get_pipeline_session("s")  # found again once they are there


def test_blocking_calls_need_no_loop_and_start_no_threads(store: Settings) -> None:
    before = threading.active_count()
    sync.save_pipeline_session(session_id="s")
    assert sync.get_pipeline_session("s").status == "ACTIVE"
    assert threading.active_count() == before


async def test_both_colours_work_side_by_side_in_one_loop(store: Settings) -> None:
    sync.save_pipeline_session(session_id="s")
    assert (await get_pipeline_session("s")) == sync.get_pipeline_session("s")


def suspending(send: Transport) -> Transport:
    """Return a transport that suspends at each request, whatever is raised into it meanwhile."""

    async def suspended(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        for _ in range(2):
            with suppress(Exception):
                await asyncio.sleep(0)
        return await send(operation, request)

    return suspended


def test_a_blocking_call_whose_transport_suspends_says_so(strict_store: Settings) -> None:
    with (
        settings.use(strict_store, transport=suspending),
        pytest.raises(ConfigurationError, match="must not suspend"),
    ):
        sync.get_pipeline_session("s")


async def test_a_transport_that_suspends_stops_no_thread_that_writes_metrics(
    strict_store: Settings,
) -> None:
    with settings.use(strict_store, transport=suspending):
        for _ in range(10):  # there are eight threads
            with pytest.raises(ConfigurationError, match="must not suspend"):
                await asyncio.wait_for(record_metric(metric_name="m", value=1), 5)


async def test_many_calls_at_once_share_the_threads(store: Settings) -> None:
    await asyncio.gather(*(save_pipeline_session(session_id=f"s{n}") for n in range(60)))
    found = await asyncio.gather(*(get_pipeline_session(f"s{n}") for n in range(60)))
    assert [one.session_id for one in found] == [f"s{n}" for n in range(60)]


def test_a_child_process_of_a_fork_opens_its_own_connections(strict_store: Settings) -> None:
    sync.save_pipeline_session(session_id="s")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in range(20):
                sync.save_pipeline_session(session_id=f"child{number}")
            status = 0
        finally:
            os._exit(status)
    for number in range(20):
        sync.save_pipeline_session(session_id=f"parent{number}")
    assert os.waitpid(child, 0)[1] == 0
    assert sync.get_pipeline_session("child19").status == "ACTIVE"


async def test_the_cost_of_a_tracked_run_is_bounded(strict_store: Settings) -> None:
    events: list[RequestEvent] = []
    with settings.use(strict_store, on_request=events.append):
        async with track_session("s") as session:
            for name in AGENTS:
                async with session.agent(name, 1) as run:
                    run.output = 1
    # Each agent: begin, end. The session: look, claim, end. The process: register as a worker.
    assert len(events) == 2 * len(AGENTS) + 4


async def test_progress_counts_the_nine_agents_only(store: Settings) -> None:
    async with track_session("s") as session:
        for name in ("parser", *(f"mine-{number}" for number in range(12))):
            async with session.agent(name) as run:
                run.output = name
    assert (await get_pipeline_session("s")).progress == 1


async def test_a_lease_is_not_carried_to_other_sessions(store: Settings) -> None:
    await save_pipeline_session(session_id="other", status="FAILED")
    assert await resume_pipeline("other")
    async with track_session("s"):
        with pytest.raises(LeaseHeld):
            await save_pipeline_session(session_id="other", project_name="x")
        await update_agent_execution(execution_id="another-parser", status="COMPLETED")
    assert (await get_pipeline_session("s")).progress == 0


def test_an_answer_that_tells_no_units_counts_none(strict_store: Settings) -> None:
    def telling_none(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            return {**await send(operation, request), "ConsumedCapacity": {"TableName": "t"}}

        return sent

    events: list[RequestEvent] = []
    with settings.use(transport=telling_none, on_request=events.append):
        sync.save_pipeline_session(session_id="s")
    assert [one.units for one in events] == [0.0]


def test_a_hook_that_raises_changes_nothing(store: Settings) -> None:
    def hook(event: object) -> None:
        raise ValueError("of the hook")

    with settings.use(store, on_request=hook):
        with sync.track_session("s") as session, session.agent(AGENTS[0]) as run:
            run.output = 1
    assert sync.get_pipeline_session("s").status == "COMPLETED"
