"""What stored rows say against a change: an index that would skip some, a TTL that would delete."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import Index, Table
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import Live

Row: TypeAlias = Mapping[str, Mapping[str, Any]]

_SEGMENTS = 4
_MOST_BYTES = {"HASH": 2048, "RANGE": 1024}
# What expired longer ago than this, DynamoDB does not delete.
_TTL_REACH_SECONDS = 5 * 365 * 86400


def problem(calls: Calls, table: Table, live: Live, change: Change, whole: bool) -> str:
    """Return what the rows say against a change, with counts and samples; empty when nothing.

    Scans the live table, eventually consistent, at no more than half of its provisioned read units.

    Args:
        calls: sends the calls.
        table: the declared table.
        live: its snapshot.
        change: an index to make or a TTL to turn on; for any other nothing is read.
        whole: read every row, in parallel segments; else one page, at most a megabyte.
    """
    if not live.description or change.after is None or change.target[0] not in ("index", "ttl"):
        return ""
    if change.target[0] == "index":
        faults = _unfit(change.after)
        attributes = [key.name for key in change.after.keys]
        verdict = "the index would skip rows, and refuse their later writes"
    else:
        faults = _expired(change.after, calls.settings.clock())
        attributes = [change.after]
        verdict = "rows have expired and would be deleted"
    keys = [key.name for key in live.state["keys",]]
    names = {f"#{number}": name for number, name in enumerate(dict.fromkeys([*keys, *attributes]))}
    segments = _SEGMENTS if whole else 1
    reads, _ = live.state.get(("capacity",), (0, 0))

    def scan(segment: int) -> tuple[Counter[str], dict[str, str]]:
        counts: Counter[str] = Counter()
        samples: dict[str, str] = {}
        more: dict[str, Any] = {}
        while True:
            page = calls(
                "Scan",
                TableName=table.name,
                ProjectionExpression=", ".join(names),
                ExpressionAttributeNames=names,
                ReturnConsumedCapacity="TOTAL",
                Segment=segment,
                TotalSegments=segments,
                **more,
            )
            for row in page["Items"]:
                for fault in faults(row):
                    counts[fault] += 1
                    samples.setdefault(fault, ", ".join(f"{key}={_text(row[key])}" for key in keys))
            if not whole or "LastEvaluatedKey" not in page:
                return counts, samples
            more = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
            if reads:
                used = page.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
                time.sleep(used / (0.5 * reads / segments))

    total: Counter[str] = Counter()
    seen: dict[str, list[str]] = {}
    with ThreadPoolExecutor(segments) as pool:
        for counts, samples in pool.map(scan, range(segments)):
            total += counts
            for fault, sample in samples.items():
                seen.setdefault(fault, []).append(sample)
    found = [f"{n} with {fault}, such as {'; '.join(seen[fault])}" for fault, n in total.items()]
    return f"{verdict}: {'. '.join(found)}" if found else ""


def _unfit(index: Index) -> Callable[[Row], Iterator[str]]:
    def faults(row: Row) -> Iterator[str]:
        for key in index.keys:
            if key.name not in row:
                continue
            ((kind, value),) = row[key.name].items()
            size = len(value.encode() if isinstance(value, str) else value) if kind in "SB" else 1
            if kind != key.type:
                yield f"{key.name} of type {kind} instead of {key.type}"
            elif not size:
                yield f"an empty {key.name}"
            elif size > _MOST_BYTES[key.role]:
                yield f"{key.name} over {_MOST_BYTES[key.role]} bytes"

    return faults


def _expired(attribute: str, now: float) -> Callable[[Row], Iterator[str]]:
    def faults(row: Row) -> Iterator[str]:
        instant = row.get(attribute, {}).get("N")
        if instant and now - _TTL_REACH_SECONDS < float(instant) <= now:
            yield f"{attribute} in the past"

    return faults


def _text(value: Mapping[str, Any]) -> str:
    return str(next(iter(value.values())))
