"""Reads stored rows for what a change does to them: an index leaves some out, TTL deletes some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from tdev_models.errors import plain
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import CAPACITY, KEYS, TTL, Property, Table
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import Live
from tdev_models.migrations.steps import new_index_units

Row: TypeAlias = Mapping[str, Mapping[str, Any]]

_MAX_KEY_BYTES = {"HASH": 2048, "RANGE": 1024}
# TTL does not delete what expired longer ago.
_TTL_REACH_SECONDS = 5 * 365 * 86400
_PART_BYTES = 1 << 20
_MOST_PARTS = 1_000_000
# An eventually consistent read unit of one second.
_UNIT_BYTES = 8192
# What a scan may read in a second of a table that is on-demand: an assumption, for estimates only.
_UNPACED_BYTES = 10 << 20


def parts(live: Live) -> int:
    """Return in how many parts the rows of a table are read: of about a megabyte each."""
    size = live.description.get("TableSizeBytes", 0)
    return int(min(max(size // _PART_BYTES, 1), _MOST_PARTS))


def pace(calls: Calls, live: Live) -> tuple[float, float]:
    """Return the read and the write units a second that checks and backfills may take; 0: all.

    Half of the table's, unless `--backfill-units` says how many.
    """
    if calls.backfill_units:
        return calls.backfill_units, calls.backfill_units
    reads, writes = live.state.get(CAPACITY, (0, 0))
    return reads / 2, writes / 2


def scan(
    calls: Calls, table: Table, live: Live, part: tuple[int, int] = (0, 1), **request: Any
) -> Iterator[tuple[list[Row], float]]:
    """Yield each page of one part of the rows, and the pause after it that `pace` asks for.

    Args:
        calls: sends the calls.
        table: the declared table.
        live: its live state.
        part: the number of the part, from 0, and how many parts there are.
        request: more parameters of Scan, which is eventually consistent without them.
    """
    reads, _ = pace(calls, live)
    more: dict[str, Any] = {}
    while True:
        page = calls(
            "Scan",
            TableName=table.name,
            ReturnConsumedCapacity="TOTAL",
            Segment=part[0],
            TotalSegments=part[1],
            **request,
            **more,
        )
        used = page.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
        yield page["Items"], used / reads if reads else 0.0
        if "LastEvaluatedKey" not in page:
            return
        more = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


class RowCheck:
    """The rows of one table against its new indexes and its new TTL.

    Attributes:
        count: how many rows were read.
    """

    def __init__(self, calls: Calls, table: Table, live: Live, changes: Iterable[Change]) -> None:
        self._calls, self._table, self._live = calls, table, live
        self._changes = [*changes]
        self._keys = [key.name for key in live.state.get(KEYS, ())]
        self._faults: dict[Property, Counter[str]] = {c.target: Counter() for c in self._changes}
        self._samples: dict[tuple[Property, str], str] = {}
        self._absent: Counter[Property] = Counter()
        self.count = 0

    @property
    def forbids(self) -> bool:
        """Whether rows that were read forbid a change."""
        return any(self._faults.values())

    def read(self, part: tuple[int, int] = (0, 1)) -> Iterator[float]:
        """Read one part; yield after each page how long to pause."""
        wanted = [name for change in self._changes for name in _attributes(change)]
        names = {f"#{n}": name for n, name in enumerate(dict.fromkeys([*self._keys, *wanted]))}
        projection = ", ".join(names)
        pages = scan(
            self._calls,
            self._table,
            self._live,
            part,
            ProjectionExpression=projection,
            ExpressionAttributeNames=names,
        )
        for rows, pause in pages:
            self.count += len(rows)
            for row in rows:
                self._look_at(row)
            yield pause

    def judge(self, changes: Iterable[Change]) -> list[Change]:
        """Return the changes: refused where rows forbid them, else with what was noticed."""
        return [self._judged(change) if change in self._changes else change for change in changes]

    def _judged(self, change: Change) -> Change:
        remedy = "correct or remove these attributes first"
        if change.target == TTL:
            remedy = f"--allow enable-ttl:{change.table}"
        if problem := self._problem(change):
            return replace(change, symbol="!", note=f"{problem}; {remedy}")
        notes = (self._note(change), self._estimate(change))
        return replace(change, note="; ".join(filter(None, notes)))

    def _problem(self, change: Change) -> str:
        """Return which rows forbid a change, with counts and samples; empty when none does."""
        verdict = "the index would leave rows out, and DynamoDB refuse later writes to them"
        if change.target == TTL:
            verdict = "rows have expired and would be deleted"
        counted = [
            f"{count} with {fault}, such as {self._samples[change.target, fault]}"
            for fault, count in self._faults[change.target].items()
        ]
        return f"{verdict}: {'. '.join(counted)}" if counted else ""

    def _note(self, change: Change) -> str:
        """Return how many rows an index does not hold since they lack its key; empty for none."""
        absent = self._absent[change.target]
        if not absent:
            return ""
        names = " or ".join(_attributes(change))
        return f"{absent} of {self.count} rows that were read lack {names}: it will not hold them"

    def _estimate(self, change: Change) -> str:
        """Return how long the check for a new index and its creation take, about."""
        described = self._live.description
        size, items = (described.get(name, 0) for name in ("TableSizeBytes", "ItemCount"))
        if not size or not items or change.target == TTL:
            return ""
        reads, _ = pace(self._calls, self._live)
        check = _time(size / (reads * _UNIT_BYTES or _UNPACED_BYTES))
        texts = [f"{items:,} rows, {size / 1e6:,.1f} MB: to check them takes about {check}"]
        building = new_index_units(
            self._table, self._live, change.target.index, self._calls.backfill_units
        )
        if building:
            units = items * -(-size // items // 1024)
            at = f"at {building[1]} write units"
            texts.append(f"to build it at most {_time(units / building[1])} {at}")
        return ", ".join(texts)

    def _look_at(self, row: Row) -> None:
        for change in self._changes:
            if change.target == TTL:
                faults = _expired(row, change.after, self._calls.settings.clock())
            else:
                faults = _unfit(row, change)
                self._absent[change.target] += any(n not in row for n in _attributes(change))
            for fault in faults:
                self._faults[change.target][fault] += 1
                self._samples.setdefault((change.target, fault), shown(row, self._keys))


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _attributes(change: Change) -> list[str]:
    return [change.after] if change.target == TTL else [key.name for key in change.after.keys]


def _unfit(row: Row, change: Change) -> Iterator[str]:
    for key in change.after.keys:
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


def _expired(row: Row, attribute: str, now: float) -> Iterator[str]:
    instant = row.get(attribute, {}).get("N")
    if instant and now - _TTL_REACH_SECONDS < float(instant) <= now:
        yield f"{attribute} in the past"


def shown(row: Row, keys: Iterable[str]) -> str:
    """Return how a message names a row: by its key, which is somebody's own text."""
    return plain(", ".join(f"{key}={next(iter(row[key].values()))}" for key in keys))
