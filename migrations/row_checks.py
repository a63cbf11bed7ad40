"""Finds stored rows that forbid a change: an index would leave them out, or TTL delete them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import CAPACITY, KEYS, Index, Table
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import Live

Row: TypeAlias = Mapping[str, Mapping[str, Any]]

_SEGMENTS = 4
_MAX_KEY_BYTES = {"HASH": 2048, "RANGE": 1024}
# TTL does not delete what expired longer ago.
_TTL_REACH_SECONDS = 5 * 365 * 86400


def problem(calls: Calls, table: Table, live: Live, change: Change, whole: bool) -> str:
    """Return which rows forbid a change, with counts and samples; empty when none does.

    Scans the live table, eventually consistent, at no more than half of its provisioned read units.

    Args:
        calls: sends the calls.
        table: the declared table.
        live: its live state.
        change: an index to create or a TTL to turn on; for any other nothing is read.
        whole: read every row, in parallel segments; else one page, at most a megabyte.
    """
    kind, wanted = change.target.kind, change.after
    if not live.description or wanted is None or kind not in ("index", "ttl"):
        return ""
    if kind == "index":
        faults = _unfit(wanted)
        attributes = [key.name for key in wanted.keys]
        verdict = "the index would leave rows out, and DynamoDB refuse later writes to them"
    else:
        faults = _expired(wanted, calls.settings.clock())
        attributes = [wanted]
        verdict = "rows have expired and would be deleted"
    keys = [key.name for key in live.state[KEYS]]
    names = {f"#{number}": name for number, name in enumerate(dict.fromkeys([*keys, *attributes]))}
    segments = _SEGMENTS if whole else 1
    reads, _ = live.state.get(CAPACITY, (0, 0))

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
    examples: dict[str, list[str]] = {}
    with ThreadPoolExecutor(segments) as pool:
        for counts, samples in pool.map(scan, range(segments)):
            total += counts
            for fault, sample in samples.items():
                examples.setdefault(fault, []).append(sample)
    counted = [
        f"{count} with {fault}, such as {'; '.join(examples[fault])}"
        for fault, count in total.items()
    ]
    return f"{verdict}: {'. '.join(counted)}" if counted else ""


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
            elif size > _MAX_KEY_BYTES[key.role]:
                yield f"{key.name} over {_MAX_KEY_BYTES[key.role]} bytes"

    return faults


def _expired(attribute: str, now: float) -> Callable[[Row], Iterator[str]]:
    def faults(row: Row) -> Iterator[str]:
        instant = row.get(attribute, {}).get("N")
        if instant and now - _TTL_REACH_SECONDS < float(instant) <= now:
            yield f"{attribute} in the past"

    return faults


def _text(value: Mapping[str, Any]) -> str:
    return str(next(iter(value.values())))
