"""What a run of nine agents costs, against the plan done plainly, by size of an agent's output.

Each agent's input is the output of the agent before it: source code of Python's library. Plainly
means one UpdateItem a step: an agent is PENDING with its input, RUNNING, and COMPLETED with its
output, and the session's `current_agent` and `progress` follow. Both on the same tables. Round
trips on the critical path: how much longer the run takes over a slow network, in round trips.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import fresh_tables
from benchmarks.write_units import source_code
from tdev_models import aws, get_pipeline_session, settings, track_session
from tdev_models.results import RequestEvent
from tdev_models.settings import Transport

ROUND_TRIP_SECONDS, AGENT_SECONDS = 0.2, 0.5
EXECUTIONS, SESSIONS = "agent-executions", "pipeline-sessions"


def update(table: str, key: Mapping[str, str], sets: Mapping[str, str | float]) -> float:
    """Set attributes of an item by one UpdateItem, and return its write units."""
    current = settings.current()
    names = {f"#{name}": name for name in sets}
    values = {
        f":{name}": {"N": str(value)} if isinstance(value, float) else {"S": value}
        for name, value in sets.items()
    }
    request = {
        "TableName": current.table_name(table),
        "Key": {name: {"S": value} for name, value in key.items()},
        "UpdateExpression": "SET " + ", ".join(f"#{name} = :{name}" for name in sets),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
        "ReturnConsumedCapacity": "TOTAL",
    }
    units: float = aws.call(current, "UpdateItem", request)["ConsumedCapacity"]["CapacityUnits"]
    return units


def plain_run(run_id: str, output: str) -> tuple[int, float]:
    """Do a run as the plan's words say, and return its requests and write units."""
    session = {"session_id": run_id}
    units = [update(SESSIONS, session, {"status": "ACTIVE", "created_at": 1.8e9, "due_at": 1.8e9})]
    for number, agent in enumerate(settings.current().agents):
        key = {"execution_id": f"{run_id}-{agent}", "agent_name": agent}
        begins = {"status": "PENDING", "project_id": run_id, "input_data": output}
        units += [
            update(EXECUTIONS, key, begins),
            update(EXECUTIONS, key, {"status": "RUNNING", "start_time": 1.8e9}),
            update(SESSIONS, session, {"current_agent": agent, "last_updated": 1.8e9}),
            update(EXECUTIONS, key, {"status": "COMPLETED", "output_data": output}),
            update(SESSIONS, session, {"progress": float(number + 1), "last_updated": 1.8e9}),
        ]
    units.append(update(SESSIONS, session, {"status": "COMPLETED", "due_at": 1.8e9}))
    return len(units), sum(units)


async def our_run(run_id: str, output: Mapping[str, str], agent_seconds: float = 0.0) -> float:
    """Do a run by the tracker, and return its seconds."""
    began = time.monotonic()
    async with track_session(run_id, user_id="u") as session:
        made: Any = None
        for agent in settings.current().agents:
            async with session.agent(agent, input_data=made) as run:
                await asyncio.sleep(agent_seconds)
                made = run.output = {**output, "agent": agent}
    return time.monotonic() - began


async def round_trips(run_id: str, output: Mapping[str, str]) -> float:
    """Return the round trips on the critical path of an agent."""

    def slow(send: Transport) -> Transport:
        async def transport(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            try:
                await asyncio.sleep(ROUND_TRIP_SECONDS)
            except RuntimeError:  # a heartbeat, in its own thread
                time.sleep(ROUND_TRIP_SECONDS)  # noqa: ASYNC251
            return await send(operation, request)

        return transport

    agents = len(settings.current().agents)
    with settings.use(transport=slow):
        async with track_session(f"{run_id}-warm"):
            pass
        none = await our_run(f"{run_id}-none", output, AGENT_SECONDS)
        with settings.use(agents=settings.current().agents[:1]):
            one = await our_run(f"{run_id}-one", output, AGENT_SECONDS)
    return ((none - one) / (agents - 1) - AGENT_SECONDS) / ROUND_TRIP_SECONDS


async def measure(kilobytes: int, events: list[RequestEvent]) -> None:
    text = source_code(kilobytes * 1024 - 100)
    run_id = f"run{kilobytes}"
    requests, plain = plain_run(f"plain-{run_id}", text)
    events.clear()
    await our_run(run_id, json.loads(text))
    agents = len(settings.current().agents)
    mine = [event for event in events if event.operation != "Query"]
    units = sum(event.units for event in mine if "Get" not in event.operation)
    reads = sum(event.units for event in events if "Get" in event.operation)
    trips = await round_trips(run_id, json.loads(text))
    print(
        f"{kilobytes:>5} KB {requests / agents:>9.1f} {len(mine) / agents:>9.1f}"
        f" {plain / agents:>9.1f} {units / agents:>9.1f} {units / plain:>6.2f}"
        f" {reads / agents:>6.1f} {trips:>6.1f}"
    )


async def main() -> None:
    with fresh_tables() as events:
        print("an agent of a run of nine, the session's begin and end included")
        print(f"{'':>8} {'requests':>19} {'write units':>19} {'':>6} {'read':>6} {'round':>6}")
        print(
            f"{'output':>8} {'plain':>9} {'ours':>9} {'plain':>9} {'ours':>9} {'ratio':>6}"
            f" {'units':>6} {'trips':>6}"
        )
        for kilobytes in (1, 20, 100):
            await measure(kilobytes, events)
        events.clear()
        await get_pipeline_session("run1")
        print(f"\nreading progress: requests {len(events)}, read units {events[0].units:g}")


if __name__ == "__main__":
    asyncio.run(main())
