"""What `get_failed_sessions` costs beside more and more sessions that are not due.

100 sessions are FAILED, 50 stalled; half of the rest is FAILED and in backoff, half ACTIVE and
alive, however old. Arguments: how many sessions there are in all, in turn.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.tables import fresh_tables
from tdev_models import aws, settings, sync

FAILED, STALLED = 100, 50


def seed(first: int, count: int, status: str, due_seconds_ago: float) -> None:
    """Write sessions as their services would have left them, 25 at a time."""
    current = settings.current()
    now = time.time()
    moment, due = ({"N": str(round(now - ago, 6))} for ago in (5000, due_seconds_ago))
    for start in range(first, first + count, 25):
        items: list[dict[str, Any]] = [
            {
                "session_id": {"S": f"s{number:07}"},
                "status": {"S": status},
                "last_updated": moment,
                "due_at": due,
                "created_at": moment,
                "progress": {"N": "3"},
            }
            for number in range(start, min(start + 25, first + count))
        ]
        aws.call(
            current,
            "BatchWriteItem",
            {
                "RequestItems": {
                    current.table_name("pipeline-sessions"): [
                        {"PutRequest": {"Item": item}} for item in items
                    ]
                }
            },
        )


def main() -> None:
    print(
        f"{'sessions':>9} {'found':>6} {'pages':>6} {'Query':>6} {'TransactGet':>12} {'units':>7}"
    )
    for total in map(int, sys.argv[1:] or (1_000, 10_000, 100_000)):
        with fresh_tables() as events:
            seed(0, FAILED, "FAILED", 60)
            seed(FAILED, STALLED, "ACTIVE", 1400)
            others = total - FAILED - STALLED
            seed(FAILED + STALLED, others // 2, "FAILED", -60)
            seed(FAILED + STALLED + others // 2, others - others // 2, "ACTIVE", -3600)
            events.clear()
            found, pages, cursor = 0, 0, None
            while True:
                page = sync.get_failed_sessions(cursor=cursor)
                found, pages, cursor = found + len(page), pages + 1, page.cursor
                if cursor is None:
                    break
            by_operation = [event.operation for event in events]
            print(
                f"{total:>9,} {found:>6} {pages:>6} {by_operation.count('Query'):>6} "
                f"{by_operation.count('TransactGetItems'):>12} "
                f"{sum(event.units for event in events):>7.1f}",
                flush=True,
            )
            assert found == FAILED + STALLED


if __name__ == "__main__":
    main()
