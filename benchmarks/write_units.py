"""Write units of one agent that fails once, against the plan's way; and of a heartbeat.

The agent is PENDING with its input, RUNNING, FAILED, RUNNING again, and COMPLETED. The plan's way:
the input is one String attribute, in an item that every status change rewrites. Both on the same
table with its indexes; the input is source code of Python's library.
"""

from __future__ import annotations

import json
import random
import sysconfig
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.tables import fresh_tables
from tdev_models import aws, configure, settings, sync
from tdev_models.results import RequestEvent

STEPS = ("PENDING", "RUNNING", "FAILED", "RUNNING", "COMPLETED")


def source_code(size: int) -> str:
    """Return so many bytes of generated-looking files, as JSON text."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(1).shuffle(paths)
    text = "".join(path.read_text(errors="ignore") for path in paths[:60])
    whole = json.dumps({"app.py": text})
    for spare in range(2, 8):  # not in the middle of an escape
        cut = whole[: size - spare] + " " * (spare - 2) + '"}'
        with suppress(ValueError):
            json.loads(cut)
            return cut
    raise AssertionError("no escape is that long")


def plan_way(payload: str) -> float:
    current = settings.current()
    units = 0.0
    for number, status in enumerate(STEPS):
        values = {":s": {"S": status}, ":t": {"N": str(1.8e9 + number)}, ":p": {"S": "p"}}
        sets = "#s = :s, start_time = :t, project_id = :p"
        if status in ("FAILED", "COMPLETED"):
            sets += ", end_time = :t"
        if status == "PENDING":
            sets, values[":d"] = f"{sets}, input_data = :d", {"S": payload}
        response = aws.call(
            current,
            "UpdateItem",
            {
                "TableName": current.table_name("agent-executions"),
                "Key": {"execution_id": {"S": f"plan-{len(payload)}"}, "agent_name": {"S": "a"}},
                "UpdateExpression": f"SET {sets}",
                "ExpressionAttributeNames": {"#s": "status"},
                "ExpressionAttributeValues": values,
                "ReturnConsumedCapacity": "TOTAL",
            },
        )
        units += response["ConsumedCapacity"]["CapacityUnits"]
    return units


def our_way(payload: str, events: list[RequestEvent]) -> float:
    execution_id = f"ours{len(payload)}-generation"
    events.clear()
    for status in STEPS:
        sync.update_agent_execution(
            execution_id=execution_id,
            status=status,
            input_data=payload if status == "PENDING" else None,
        )
    writes = ("UpdateItem", "TransactWriteItems")
    return sum(one.units for one in events if one.operation in writes)


def heartbeat(sessions: int, events: list[RequestEvent]) -> float:
    configure(settings.current(), lease_seconds=3 + sessions / 1000)
    with ExitStack() as tracked:
        for number in range(sessions):
            tracked.enter_context(sync.track_session(f"beat{sessions}-{number}", user_id="u"))
        events.clear()
        while not events:
            time.sleep(0.01)
    return events[0].units


def main() -> None:
    with fresh_tables() as events:
        print("write units of an agent that fails once, by size of its input")
        print(f"{'input':>8} {'plan':>8} {'ours':>8} {'ratio':>6}")
        for kilobytes in (1, 10, 100, 380):
            payload = source_code(kilobytes * 1024)
            ours = our_way(payload, events)
            plan = plan_way(payload)
            print(f"{kilobytes:>5} KB {plan:>8.0f} {ours:>8.0f} {plan / ours:>6.1f}")
        print("\nwrite units of a worker's heartbeat, by number of its sessions")
        for sessions in (1, 100):
            print(f"{sessions:>8} {heartbeat(sessions, events):>8.0f}")


if __name__ == "__main__":
    main()
