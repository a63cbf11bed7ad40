"""What a person, or a program, reads: plan lines, the summary, JSON, progress."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from tdev_models.errors import TdevError
from tdev_models.migrations.apply import Planned
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import Index, Key, Scaling, Table
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import Live

CLEAN, ERROR, PENDING, REFUSED, IN_PROGRESS, USAGE = 0, 1, 2, 3, 5, 64
"""The exit codes."""

_QUIET_SECONDS = 15.0


def exit_code(planned: Iterable[Planned]) -> int:
    """Return what a plan exits with."""
    of = list(planned)
    changes = [change for one in of for change in one.changes]
    if any(one.live.denied for one in of):
        return ERROR
    if any(change.symbol == "!" for change in changes):
        return REFUSED
    if any(change.pending for change in changes):
        return PENDING
    return IN_PROGRESS if any(one.live.busy or one.live.later for one in of) else CLEAN


def lines(changes: Sequence[Change]) -> list[str]:
    """Return one line a change; a table's new alarms, and what tables have in common, share one."""
    groups: dict[Any, list[Change]] = {}
    for change in changes:
        key: Any = change.target, change.table
        if change.symbol == "=":
            key = change.target, change.note
        elif change.symbol == "+" and change.target[0] == "alarm":
            key = "alarms", change.table
        groups.setdefault(key, []).append(change)
    shared = [_shared(group) for group in groups.values()]
    return [f"  {line(c)}" for c in sorted(shared, key=lambda change: change.symbol == "=")]


def line(change: Change) -> str:
    """Return the line of one change."""
    what = "table" if change.target == ("keys",) else " ".join(change.target)
    shown = f"{change.symbol} {change.table}  {what}"
    if change.symbol == "+" and change.after is not None:
        shown += f": {_text(change.target[0], change.after)}"
    elif change.symbol in "~!" and change.before != change.after:
        kind = change.target[0]
        shown += f": {_text(kind, change.before)} -> {_text(kind, change.after)}"
    return shown + (f"  ({change.note})" if change.note else "")


def summary(changes: Iterable[Change]) -> str:
    """Return the one line that says how many changes there are."""
    symbols = [change.symbol for change in changes]
    if not any(symbol in "+~-!" for symbol in symbols):
        return "No changes. The tables are as declared."
    counted = [("+", "to add"), ("~", "to change"), ("-", "to remove"), ("!", "refused")]
    return f"Plan: {', '.join(f'{symbols.count(symbol)} {what}' for symbol, what in counted)}."


def status(of: Planned) -> str:
    """Return one line on a table."""
    found = of.live.description
    if not found:
        return f"  {of.table.name}  {'unknown' if 'table' in of.live.unknown else 'absent'}"
    indexes = found.get("GlobalSecondaryIndexes", ())
    pending = sum(change.symbol in "+~-!" for change in of.changes)
    shown = [
        of.table.name,
        ", ".join(of.live.busy) or found["TableStatus"],
        of.live.state["billing",],
        f"about {found.get('ItemCount', 0)} items",
        f"{len(indexes)} indexes",
        f"{pending} changes pending" if pending else "as declared",
    ]
    return "  " + "  ".join(shown)


def as_json(
    environment: str, planned: Sequence[Planned], others: Sequence[Change], code: int
) -> str:
    """Return a plan, and what the command exits with, as JSON for programs."""
    changes = [*(change for one in planned for change in one.changes), *others]
    document = {
        "environment": environment,
        "exit_code": code,
        "summary": summary(changes),
        "changes": [
            {
                "symbol": change.symbol,
                "table": change.table,
                "target": " ".join(change.target),
                "before": _plain(change.before),
                "after": _plain(change.after),
                "note": change.note,
            }
            for change in changes
        ],
        "tables": [
            {
                "table": one.table.short,
                "name": one.table.name,
                "exists": bool(one.live.description),
                "in_progress": one.live.busy,
                "items": one.live.description.get("ItemCount"),
                "bytes": one.live.description.get("TableSizeBytes"),
            }
            for one in planned
        ],
    }
    return json.dumps(document, indent=2)


@dataclass(slots=True)
class Progress:
    """Shows a run: a bar on a terminal, else a line a change and one every 15 s of waiting.

    Attributes:
        out: where it is written.
        calls: asks how far the making of an index is.
        total: how many changes are to be made.
    """

    out: TextIO
    calls: Calls
    total: int
    _done: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    _spoke: float = field(default_factory=time.monotonic)
    _percent: str = ""

    def step(self, change: Change) -> None:
        """Say what is done now; a change of several calls is said once."""
        name = change.table, change.target
        if name not in self._done:
            self._done.append(name)
            self._say(f"[{len(self._done)}/{max(self.total, len(self._done))}] {line(change)}")

    def wait(self, table: Table, live: Live, what: str) -> None:
        """Say what is waited for: always on a terminal, every 15 s elsewhere."""
        if time.monotonic() - self._spoke >= _QUIET_SECONDS:
            self._spoke = time.monotonic()
            self._percent = self._backfill(table, live)
            if not self.out.isatty():
                self._say(f"  waiting for {table.name}: {what}{self._percent}")
        if self.out.isatty():
            done = max(len(self._done) - 1, 0) * 20 // max(self.total, 1)
            bar = f"[{'#' * done}{'.' * (20 - done)}] {table.short}: {what}{self._percent}"
            self.out.write(f"\r\033[K{bar[:100]}")
            self.out.flush()

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        self.out.write(f"{chr(13) + chr(27) + '[K' if self.out.isatty() else ''}{text}\n")
        self.out.flush()

    def _backfill(self, table: Table, live: Live) -> str:
        making = [
            index["IndexName"]
            for index in live.description.get("GlobalSecondaryIndexes", ())
            if index.get("IndexStatus") == "CREATING"
        ]
        if not making:
            return ""
        now = time.time()
        try:
            points = self.calls(
                "GetMetricStatistics",
                Namespace="AWS/DynamoDB",
                MetricName="OnlineIndexPercentageProgress",
                Dimensions=[
                    {"Name": "TableName", "Value": table.name},
                    {"Name": "GlobalSecondaryIndexName", "Value": making[0]},
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


def _shared(group: Sequence[Change]) -> Change:
    first = group[0]
    if first.symbol == "=":
        return replace(first, table=", ".join(change.table for change in group))
    if len(group) > 1:
        return replace(first, target=(f"{len(group)} alarms",), after=None)
    return first


def _text(kind: str, value: Any) -> str:
    match kind, value:
        case (_, None) | ("pitr", 0):
            return "off" if kind in ("pitr", "ttl") else "none"
        case "pitr", _:
            return f"{value} days"
        case "protection", _:
            return "on" if value else "off"
        case "keys", _:
            return "(" + ", ".join(f"{key.name} {key.type}" for key in value) + ")"
        case "index", Index():
            some = f" of {len(value.attributes)}" if value.attributes else ""
            return f"{_text('keys', value.keys)} {value.projection}{some}"
        case "capacity", _:
            return f"{value[0]} read, {value[1]} write"
        case "scaling", _:
            each = {d: f"{s.min}-{s.max} at {s.target} %" for d, s in value.items()}
            same = len(each) == 2 and len({*each.values()}) == 1
            return each["Read"] if same else ", ".join(f"{d} {text}" for d, text in each.items())
        case "alarm", _:
            return f"over {value['Threshold']:g}, {len(value['AlarmActions'])} actions"
    return str(value)


def _plain(value: Any) -> Any:
    match value:
        case Index() | Key() | Scaling():
            return {name: _plain(of) for name, of in value._asdict().items()}
        case frozenset():
            return sorted(value)
        case tuple():
            return [_plain(of) for of in value]
        case dict():
            return {name: _plain(of) for name, of in value.items()}
    return value
