"""What one poll of `recover_sessions` costs beside more and more sessions that are not due.

Of each kind there are as many as the first column says: FAILED in backoff, ACTIVE with a live
owner, COMPLETED, and ABANDONED, which is what failed for good. Arguments: how many, in turn.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.tables import fresh_tables
from tdev_models import aws, settings, sync

KINDS = {"backoff": "FAILED", "live": "ACTIVE", "completed": "COMPLETED", "given-up": "ABANDONED"}


def stored(kind: str, number: int, now: float) -> dict[str, Any]:
    """Return a session as the services would have left it."""
    due = {"backoff": now + 1800, "live": now + 1800}.get(kind, now - 5000)
    item: dict[str, Any] = {
        "session_id": {"S": f"{kind}{number:06}"},
        "status": {"S": KINDS[kind]},
        "due_at": {"N": str(round(due, 6))},
        "created_at": {"N": str(round(now - 9000, 6))},
        "last_updated": {"N": str(round(now - 5000, 6))},
        "progress": {"N": "3"},
        "fence": {"N": "1"},
    }
    if kind == "live":
        lease = {"lease_token": {"S": "t"}, "lease_expires": {"N": str(round(now + 1800, 6))}}
        item |= {"lease_owner": {"S": "host:1"}, **lease}
    return item


def seed(first: int, end: int) -> None:
    """Write so many sessions of each kind, 25 at a time."""
    current, now = settings.current(), time.time()
    items = [stored(kind, number, now) for kind in KINDS for number in range(first, end)]
    for start in range(0, len(items), 25):
        puts = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
        request = {"RequestItems": {current.table_name("pipeline-sessions"): puts}}
        aws.call(current, "BatchWriteItem", request)


def main() -> None:
    print("one poll of recover_sessions")
    print(f"{'of each kind':>12} {'requests':>9} {'read units':>11}")
    costs, seeded = set(), 0
    with fresh_tables() as events:
        for count in sorted(map(int, sys.argv[1:] or (10, 1_000, 10_000))):
            seed(seeded, count)
            seeded = count
            events.clear()
            done = sync.recover_sessions(lambda session: None)
            assert done == type(done)(), "nothing was due"
            units = sum(event.units for event in events)
            print(f"{count:>12,} {len(events):>9} {units:>11.1f}", flush=True)
            costs.add((len(events), units))
    assert len(costs) == 1, "it must not grow with sessions that are not due"


if __name__ == "__main__":
    main()
