"""What a run of nine agents costs, against the plan done plainly, by size of an agent's output.

Each agent's output is source code of Python's library; its input is the output of the agent before
it, or all outputs so far, as T-Developer has it. Plainly means one UpdateItem a step: an agent is
PENDING with its input, RUNNING, and COMPLETED with its output, and the session's `current_agent`
and `progress` follow. Both on the same tables. Round trips on the critical path: how much longer
the run takes over a slow network.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import fresh_tables
from benchmarks.write_units import source_code
from tdev_models import ItemTooLarge, aws, get_pipeline_session, settings, track_session
from tdev_models.results import RequestEvent
from tdev_models.settings import Transport

ROUND_TRIP_SECONDS, AGENT_SECONDS = 0.2, 0.5
EXECUTIONS, SESSIONS = "agent-executions", "pipeline-sessions"
WRITES = ("UpdateItem", "TransactWriteItems")


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


class Inputs:
    """What each agent of a run takes, and makes."""

    def __init__(self, code: Mapping[str, str], *, all_so_far: bool) -> None:
        self._code, self._all_so_far = code["app.py"], all_so_far
        self.input: dict[str, Any] = {"request": "a todo app"}

    def output_of(self, agent: str) -> dict[str, Any]:
        """Return what an agent makes, which the next one takes."""
        shift = len(agent) * 50  # no two are the same
        output = {"agent": agent, "app.py": self._code[shift:] + self._code[:shift]}
        self.input = {**self.input, agent: output} if self._all_so_far else output
        return output


def plain_run(run_id: str, inputs: Inputs) -> tuple[int, float]:
    """Do a run as the plan's words say, and return its requests and write units."""
    session = {"session_id": run_id}
    units = [update(SESSIONS, session, {"status": "ACTIVE", "created_at": 1.8e9, "due_at": 1.8e9})]
    for number, agent in enumerate(settings.current().agents):
        key = {"execution_id": f"{run_id}-{agent}", "agent_name": agent}
        given = json.dumps(inputs.input, separators=(",", ":"))
        made = json.dumps(inputs.output_of(agent), separators=(",", ":"))
        begins = {"status": "PENDING", "project_id": run_id, "input_data": given}
        units += [
            update(EXECUTIONS, key, begins),
            update(EXECUTIONS, key, {"status": "RUNNING", "start_time": 1.8e9}),
            update(SESSIONS, session, {"current_agent": agent, "last_updated": 1.8e9}),
            update(EXECUTIONS, key, {"status": "COMPLETED", "output_data": made}),
            update(SESSIONS, session, {"progress": float(number + 1), "last_updated": 1.8e9}),
        ]
    units.append(update(SESSIONS, session, {"status": "COMPLETED", "due_at": 1.8e9}))
    return len(units), sum(units)


async def our_run(run_id: str, inputs: Inputs, agent_seconds: float = 0.0) -> float:
    """Do a run by the tracker, and return its seconds."""
    began = time.monotonic()
    async with track_session(run_id, user_id="u") as session:
        for agent in settings.current().agents:
            async with session.agent(agent, input_data=inputs.input) as run:
                await asyncio.sleep(agent_seconds)
                run.output = inputs.output_of(agent)
    return time.monotonic() - began


def slow(send: Transport) -> Transport:
    """Send over a slow network."""

    async def transport(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
        try:
            await asyncio.sleep(ROUND_TRIP_SECONDS)
        except RuntimeError:  # a heartbeat, in its own thread
            time.sleep(ROUND_TRIP_SECONDS)  # noqa: ASYNC251
        return await send(operation, request)

    return transport


async def round_trips(run_id: str, code: Mapping[str, str]) -> float:
    """Return the round trips on the critical path of an agent."""
    agents = settings.current().agents
    with settings.use(transport=slow):
        async with track_session(f"{run_id}-warm"):
            pass
        all_seconds = await our_run(run_id, Inputs(code, all_so_far=False), AGENT_SECONDS)
        with settings.use(agents=agents[:1]):
            seconds = await our_run(f"{run_id}-1", Inputs(code, all_so_far=False), AGENT_SECONDS)
    return ((all_seconds - seconds) / (len(agents) - 1) - AGENT_SECONDS) / ROUND_TRIP_SECONDS


def code_of(kilobytes: float) -> dict[str, str]:
    """Return so much of an agent's output."""
    code: dict[str, str] = json.loads(source_code(int(kilobytes * 1024) - 50))
    return code


async def measure(kilobytes: float, events: list[RequestEvent], *, all_so_far: bool) -> None:
    code = code_of(kilobytes)
    run_id = f"{kilobytes}-{all_so_far}"
    try:
        requests, plain = plain_run(f"plain-{run_id}", Inputs(code, all_so_far=all_so_far))
    except ItemTooLarge:  # input and output stand in one item
        requests, plain = 0, float("inf")
    events.clear()
    await our_run(f"ours-{run_id}", Inputs(code, all_so_far=all_so_far))
    writes = [event for event in events if event.operation in WRITES]
    units, agents = sum(event.units for event in writes), len(settings.current().agents)
    print(
        f"{kilobytes:>5g} KB {requests / agents:>9.1f} {len(events) / agents:>9.1f}"
        f" {plain / agents:>9.1f} {units / agents:>9.1f} {units / plain:>6.2f}"
    )


async def main() -> None:
    with fresh_tables() as events:
        for all_so_far, given in (False, "the output before"), (True, "all outputs so far"):
            print(f"an agent of nine, the session's begin and end included; input: {given}")
            print(f"{'':>8} {'requests':>19} {'write units':>19}")
            print(f"{'output':>8} {'plain':>9} {'ours':>9} {'plain':>9} {'ours':>9} {'ratio':>6}")
            for kilobytes in (0.3, 1, 20, 100):
                await measure(kilobytes, events, all_so_far=all_so_far)
            print()
        events.clear()
        await get_pipeline_session("ours-1-False")
        print(f"reading progress: requests {len(events)}, read units {events[0].units:g}\n")
        print("round trips on the critical path of an agent")
        for kilobytes in (1, 20):
            trips = await round_trips(f"slow-{kilobytes}", code_of(kilobytes))
            print(f"{kilobytes:>5} KB {trips:>9.1f}")


if __name__ == "__main__":
    asyncio.run(main())
