"""What a person or a program reads: the lines of a plan, its summary, JSON, progress."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from tdev_models.errors import TdevError
from tdev_models.migrations.apply import Planned
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import BILLING, KEYS, Index, Key, Property, Scaling, Table
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import Live

CLEAN, ERROR, PENDING, REFUSED, IN_PROGRESS, USAGE = 0, 1, 2, 3, 5, 64
"""The exit codes."""

_SECONDS_BETWEEN_LINES = 15.0


def exit_code(planned: Iterable[Planned]) -> int:
    """Return the exit code of a plan."""
    tables = list(planned)
    changes = [change for table in tables for change in table.changes]
    if any(table.live.denied for table in tables):
        return ERROR
    if any(change.symbol == "!" for change in changes):
        return REFUSED
    if any(change.pending for change in changes):
        return PENDING
    unfinished = any(table.live.busy or table.live.not_yet_readable for table in tables)
    return IN_PROGRESS if unfinished else CLEAN


def lines(changes: Sequence[Change]) -> list[str]:
    """Return a line for each change; one for a table's new alarms, one for equal `=` lines."""
    groups: dict[Any, list[Change]] = {}
    for change in changes:
        key: Any = change.target, change.table
        if change.symbol == "=":
            key = change.target, change.note
        elif change.symbol == "+" and change.target.kind == "alarm":
            key = "alarms", change.table
        groups.setdefault(key, []).append(change)
    merged = [_merged(group) for group in groups.values()]
    return [f"  {line(c)}" for c in sorted(merged, key=lambda change: change.symbol == "=")]


def line(change: Change) -> str:
    """Return the line of one change."""
    kind = change.target.kind
    shown = f"{change.symbol} {change.table}  {'table' if change.target == KEYS else change.target}"
    if change.symbol == "+" and change.after is not None:
        shown += f": {_text(kind, change.after)}"
    elif change.symbol in "~!" and change.before != change.after:
        shown += f": {_text(kind, change.before)} -> {_text(kind, change.after)}"
    return shown + (f"  ({change.note})" if change.note else "")


def summary(changes: Iterable[Change]) -> str:
    """Return the line that counts the changes."""
    symbols = [change.symbol for change in changes]
    if not any(symbol in "+~-!" for symbol in symbols):
        return "No changes. The tables are as declared."
    names = {"+": "to add", "~": "to change", "-": "to remove", "!": "refused"}
    counts = [f"{symbols.count(symbol)} {name}" for symbol, name in names.items()]
    return f"Plan: {', '.join(counts)}."


def status(planned: Planned) -> str:
    """Return the line that `status` shows of a table."""
    name, live = planned.table.name, planned.live
    if not live.description:
        return f"  {name}  {'unknown' if 'table' in live.unknown else 'absent'}"
    indexes = live.description.get("GlobalSecondaryIndexes", ())
    pending = sum(change.symbol in "+~-!" for change in planned.changes)
    shown = [
        name,
        ", ".join(live.busy) or live.description["TableStatus"],
        live.state[BILLING],
        f"about {live.description.get('ItemCount', 0)} items",
        f"{len(indexes)} indexes",
        f"{pending} changes pending" if pending else "as declared",
    ]
    return "  " + "  ".join(shown)


def as_text(planned: Sequence[Planned], undeclared: Sequence[Change], with_status: bool) -> str:
    """Return the lines of a plan and its summary; before them, if asked, each table's status."""
    changes = [*(change for table in planned for change in table.changes), *undeclared]
    statuses = [status(table) for table in planned if with_status]
    return "\n".join([*statuses, *lines(changes), summary(changes)])


def as_json(
    environment: str, planned: Sequence[Planned], undeclared: Sequence[Change], code: int
) -> str:
    """Return a plan and the exit code of the command, as JSON."""
    changes = [*(change for table in planned for change in table.changes), *undeclared]
    document = {
        "environment": environment,
        "exit_code": code,
        "summary": summary(changes),
        "changes": [
            {
                "symbol": change.symbol,
                "table": change.table,
                "target": str(change.target),
                "before": _plain(change.before),
                "after": _plain(change.after),
                "note": change.note,
            }
            for change in changes
        ],
        "tables": [
            {
                "table": table.table.short,
                "name": table.table.name,
                "exists": bool(table.live.description),
                "in_progress": table.live.busy,
                "items": table.live.description.get("ItemCount"),
                "bytes": table.live.description.get("TableSizeBytes"),
            }
            for table in planned
        ],
    }
    return json.dumps(document, indent=2)


@dataclass(slots=True)
class Progress:
    """Shows a run: a bar on a terminal, elsewhere a line for each change and each 15 s of waiting.

    Attributes:
        out: the stream that it writes to.
        calls: asks CloudWatch how far the creation of an index is.
        total: how many changes are to be made.
    """

    out: TextIO
    calls: Calls
    total: int
    _begun: list[tuple[str, Property]] = field(default_factory=list)
    _last_line: float = field(default_factory=time.monotonic)
    _percent: str = ""

    def step(self, change: Change) -> None:
        """Show a change when its first call is sent."""
        name = change.table, change.target
        if name not in self._begun:
            self._begun.append(name)
            number = len(self._begun)
            self._write_line(f"[{number}/{max(self.total, number)}] {line(change)}")

    def wait(self, table: Table, live: Live, reason: str) -> None:
        """Show what is waited for: at once on a terminal, every 15 s elsewhere."""
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._percent = self._backfill(table, live)
            if not self.out.isatty():
                self._write_line(f"  waiting for {table.name}: {reason}{self._percent}")
        if self.out.isatty():
            done = max(len(self._begun) - 1, 0) * 20 // max(self.total, 1)
            bar = f"[{'#' * done}{'.' * (20 - done)}] {table.short}: {reason}{self._percent}"
            self.out.write(f"\r\033[K{bar[:100]}")
            self.out.flush()

    def _write_line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.out.write(f"{chr(13) + chr(27) + '[K' if self.out.isatty() else ''}{text}\n")
        self.out.flush()

    def _backfill(self, table: Table, live: Live) -> str:
        creating = [
            index["IndexName"]
            for index in live.description.get("GlobalSecondaryIndexes", ())
            if index.get("IndexStatus") == "CREATING"
        ]
        if not creating:
            return ""
        now = time.time()
        try:
            points = self.calls(
                "GetMetricStatistics",
                Namespace="AWS/DynamoDB",
                MetricName="OnlineIndexPercentageProgress",
                Dimensions=[
                    {"Name": "TableName", "Value": table.name},
                    {"Name": "GlobalSecondaryIndexName", "Value": creating[0]},
                ],
                StartTime=now - 600,
                EndTime=now,
                Period=60,
                Statistics=["Maximum"],
            )["Datapoints"]
        except TdevError as error:
            return f" (progress unknown: {error})"
        latest = max(points, key=lambda point: point["Timestamp"], default=None)
        return f", {latest['Maximum']:.0f} %" if latest else ""


def _merged(group: Sequence[Change]) -> Change:
    first = group[0]
    if first.symbol == "=":
        return replace(first, table=", ".join(change.table for change in group))
    if len(group) > 1:
        return replace(first, target=Property(f"{len(group)} alarms"), after=None)
    return first


def _text(kind: str, value: Any) -> str:
    if value is None or (kind, value) == ("pitr", 0):
        return "off" if kind in ("pitr", "ttl") else "none"
    return _TEXTS.get(kind, str)(value)


def _keys(keys: Iterable[Key]) -> str:
    return "(" + ", ".join(f"{key.name} {key.type}" for key in keys) + ")"


def _index(index: Index) -> str:
    count = f" of {len(index.attributes)}" if index.attributes else ""
    return f"{_keys(index.keys)} {index.projection}{count}"


def _scaling(directions: Mapping[str, Scaling]) -> str:
    each = {d: f"{s.min}-{s.max} at {s.target} %" for d, s in directions.items()}
    same = len(each) == 2 and len({*each.values()}) == 1
    return each["Read"] if same else ", ".join(f"{d} {text}" for d, text in each.items())


_TEXTS: Mapping[str, Callable[[Any], str]] = {
    "pitr": lambda days: f"{days} days",
    "protection": lambda on: "on" if on else "off",
    "keys": _keys,
    "index": _index,
    "capacity": lambda units: f"{units[0]} read, {units[1]} write",
    "scaling": _scaling,
    "alarm": lambda alarm: f"over {alarm['Threshold']:g}, {len(alarm['AlarmActions'])} actions",
}


def _plain(value: Any) -> Any:
    match value:
        case Index() | Key() | Scaling():
            return {name: _plain(field) for name, field in value._asdict().items()}
        case frozenset():
            return sorted(value)
        case tuple():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
    return value
