"""This package: the requests of its services, and the services."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

import tdev_models
from benchmarks.clients import items
from tdev_models import AGENTS, configure
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.client import Client
from tdev_models.models import AgentExecution, PipelineSession


def operations(endpoint: str, variant: str) -> items.Blocking | Awaitable[items.Awaitables]:
    settings = configure(endpoint=endpoint, region=items.REGION)
    if variant == "botocore":
        settings = configure(transport="botocore")
    if variant == "blocking":
        from tdev_models import sync

        requests = _requests(BlockingClient.for_settings(settings))
        driven = {name: _driven(one) for name, one in requests.items()}
        return {**_services(sync), "track": _tracked_blocking, **driven}
    return _awaitable(AsyncClient.for_settings(settings))


def _driven(operation: Callable[[], Awaitable[object]]) -> Callable[[], object]:
    return lambda: drive(operation())


async def _awaitable(client: Client) -> items.Awaitables:
    return {**_services(tdev_models), "track": _tracked, **_requests(client)}


def _requests(client: Client) -> items.Awaitables:
    ours, executions, sessions = PipelineSession, client.executions, client.sessions
    output = json.loads(items.OUTPUT)

    async def query() -> None:
        found, _ = await sessions.page("ACTIVE", index=ours.status_index, limit=25)
        items.expect(len(found), 25)

    return {
        "get": lambda: sessions.get(items.SESSION_ID),
        "update": lambda: sessions.update(
            items.SESSION_ID,
            actions=[
                ours.status.set("ACTIVE"),
                ours.current_agent.set(items.AGENT),
                ours.progress.set(6),
                ours.last_updated.set(items.NOW),
            ],
            condition=ours.lease_token.does_not_exist() & ours.status.is_in("ACTIVE", "FAILED"),
        ),
        "query": query,
        "transaction": lambda: client.sender.transact_write(
            [
                sessions.requests.update_part(
                    items.SESSION_ID,
                    actions=[
                        ours.current_agent.set(items.AGENT),
                        ours.progress.set(6),
                        ours.last_updated.set(items.NOW),
                    ],
                    condition=ours.lease_token == "token",
                ),
                executions.requests.update_part(
                    items.EXECUTION_ID,
                    items.AGENT,
                    actions=[
                        AgentExecution.status.set("COMPLETED"),
                        AgentExecution.end_time.set(items.NOW),
                        AgentExecution.output_data.set(output),
                    ],
                ),
            ],
            "0123456789abcdef",
        ),
    }


_SAVED = {"status": "ACTIVE", "current_agent": items.AGENT, "progress": 6}
_SAMPLE = {"metric_name": "agent_seconds", "agent_name": items.AGENT, "value": 1.5}
_ENDED = {"status": "COMPLETED", "output_data": items.OUTPUT}
_INPUT, _OUTPUT = {"request": "y" * 200}, {"files": ["z" * 300]}
_seeds = itertools.cycle([f"seed-{number}" for number in range(items.SEEDS)])
_runs = map("{}-{}".format, itertools.repeat(os.getpid()), itertools.count())


async def _tracked() -> None:
    async with tdev_models.track_session(next(_runs), user_id="u") as session:
        for name in AGENTS:
            async with session.agent(name, input_data=_INPUT) as run:
                run.output = _OUTPUT


def _tracked_blocking() -> None:
    from tdev_models import sync

    with sync.track_session(next(_runs), user_id="u") as session:
        for name in AGENTS:
            with session.agent(name, input_data=_INPUT) as run:
                run.output = _OUTPUT


def _services(calls: Any) -> dict[str, Callable[[], Any]]:
    """Return the calls of `tdev_models`, or of `tdev_models.sync`."""
    return {
        "get_session": lambda: calls.get_pipeline_session(items.SESSION_ID),
        "save": lambda: calls.save_pipeline_session(_SAVED, session_id=next(_seeds)),
        "list": lambda: calls.list_pipeline_sessions(status="ACTIVE", limit=25),
        "update_execution": lambda: calls.update_agent_execution(
            _ENDED, execution_id=f"{next(_seeds)}-{items.AGENT}"
        ),
        "record_metric": lambda: calls.record_metric(_SAMPLE),
    }
