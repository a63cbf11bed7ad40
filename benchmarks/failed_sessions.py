"""What `get_failed_sessions` costs beside more and more live sessions.

100 sessions are FAILED, 50 stalled; the rest are ACTIVE and were updated a moment ago. Arguments:
how many sessions there are in all, in turn.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.tables import fresh_tables
from tdev_models import aws, settings, sync

FAILED, STALLED = 100, 50


def seed(first: int, count: int, status: str, age_seconds: float) -> None:
    """Write sessions as their services would have left them, 25 at a time."""
    current = settings.current()
    moment = {"N": str(round(time.time() - age_seconds, 6))}
    for start in range(first, first + count, 25):
        items: list[dict[str, Any]] = [
            {
                "session_id": {"S": f"s{number:07}"},
                "status": {"S": status},
                "last_updated": moment,
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
            seed(FAILED, STALLED, "ACTIVE", 5000)
            seed(FAILED + STALLED, total - FAILED - STALLED, "ACTIVE", 1)
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
