"""What a person or a program reads: the lines of a plan, its summary, JSON, progress."""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from tdev_models.errors import TdevError
from tdev_models.migrations.calls import Calls, Place
from tdev_models.migrations.declared import BILLING, KEYS, Index, Key, Property, Scaling, Table
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import Live
from tdev_models.migrations.plan import Planned

CLEAN, ERROR, PENDING, REFUSED, IN_PROGRESS, USAGE, INTERRUPTED = 0, 1, 2, 3, 5, 64, 130
NO_READER = 141
"""The exit codes."""

_SECONDS_BETWEEN_LINES = 15.0
_COLOURS = {
    "+ ": "32",
    "~ ": "33",
    "- ": "31",
    "! ": "1;31",
    "= ": "2",
    "error: ": "1;31",
    "warning: ": "33",
}
# A number and its unit, and an option and its value, are not parted.
_JOINED = re.compile(r"(?<=\d) (?=[%\w])|(?<=--allow) ")


def exit_code(planned: Iterable[Planned]) -> int:
    """Return the exit code of a plan."""
    tables = list(planned)
    changes = [change for table in tables for change in table.changes]
    if any(table.live.denied or table.live.dead for table in tables):
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
    return [line(c) for c in sorted(merged, key=lambda change: change.symbol == "=")]


def line(change: Change) -> str:
    """Return the line of one change."""
    kind = change.target.kind
    shown = f"{change.symbol} {change.table}  {'table' if change.target == KEYS else change.target}"
    if change.symbol == "+" and change.after is not None:
        shown += f": {_text(kind, change.after)}"
    elif change.symbol in "~!" and change.before != change.after:
        shown += f": {_difference(kind, change.before, change.after)}"
    return shown + (f"  ({change.note})" if change.note else "")


def summary(planned: Sequence[Planned]) -> str:
    """Return the line that counts the changes."""
    symbols = [change.symbol for table in planned for change in table.changes]
    if not any(symbol in "+~-!" for symbol in symbols):
        return {
            ERROR: "No changes in what could be read; the rest is unknown.",
            IN_PROGRESS: "No changes so far; DynamoDB is still at work on the tables.",
        }.get(exit_code(planned), "No changes. The tables are as declared.")
    names = {"+": "to add", "~": "to change", "-": "to remove", "!": "refused"}
    counts = [f"{symbols.count(symbol)} {name}" for symbol, name in names.items()]
    return f"Plan: {', '.join(counts)}."


def statuses(planned: Sequence[Planned]) -> list[str]:
    """Return the lines that `status` shows, one for each table."""
    rows = [_status(each) for each in planned]
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _status(planned: Planned) -> list[str]:
    name, live = planned.table.short, planned.live
    if not live.description:
        return [name, "unknown" if "table" in live.unknown else "absent"]
    indexes = len(live.description.get("GlobalSecondaryIndexes", ()))
    pending = sum(change.pending for change in planned.changes)
    refused = sum(change.symbol == "!" for change in planned.changes)
    found = [f"{pending} pending"] * bool(pending) + [f"{refused} refused"] * bool(refused)
    found += ["partly unknown"] * bool(live.denied)
    return [
        name,
        ", ".join(live.busy) or live.description["TableStatus"],
        live.state[BILLING],
        f"~{live.description.get('ItemCount', 0):,} rows",
        f"{indexes} index{'es' * (indexes != 1)}",
        ", ".join(found) or "as declared",
    ]


def where(environment: str, place: Place, file: Path | None) -> str:
    """Return the line that says where the command acts, and by which file."""
    account = f"account {place.account}" if place.account else "a local engine"
    declared_in = f", as {file} declares" if file else ""
    return f"{environment}: {account}, region {place.region}, {place.endpoint}{declared_in}"


def as_text(planned: Sequence[Planned], undeclared: Sequence[Change], with_status: bool) -> str:
    """Return the lines of a plan and its summary; before them, if asked, each table's status."""
    changes = [*(change for table in planned for change in table.changes), *undeclared]
    first = statuses(planned) if with_status else []
    return "\n".join([*first, *lines(changes), summary(planned)])


def for_screen(text: str, out: TextIO) -> str:
    """Return lines as a terminal shows them best: coloured, and broken between words."""
    if not out.isatty():
        return text
    width = shutil.get_terminal_size().columns
    shown = []
    for each in text.splitlines():
        broken = textwrap.fill(
            _JOINED.sub("\N{NO-BREAK SPACE}", each),
            width,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        ).replace("\N{NO-BREAK SPACE}", " ")
        colour = next((c for begin, c in _COLOURS.items() if each.startswith(begin)), None)
        plain = colour is None or "NO_COLOR" in os.environ
        shown.append(broken if plain else f"\033[{colour}m{broken}\033[0m")
    return "\n".join(shown)


def as_json(
    environment: str,
    place: Place,
    planned: Sequence[Planned],
    undeclared: Sequence[Change],
    code: int,
) -> str:
    """Return a plan and the exit code of the command, as JSON."""
    changes = [*(change for table in planned for change in table.changes), *undeclared]
    document = {
        "environment": environment,
        **place._asdict(),
        "exit_code": code,
        "summary": summary(planned),
        "changes": [
            {
                "symbol": change.symbol,
                "table": change.table,
                "target": str(change.target),
                "before": _plain(change.before),
                "after": _plain(change.after),
                "note": change.note,
                "line": line(change),
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
    _percent: dict[str, str] = field(default_factory=dict)

    def step(self, change: Change) -> None:
        """Show a change when its first call is sent."""
        name = change.table, change.target
        if name not in self._begun:
            self._begun.append(name)
            number = len(self._begun)
            self.write_line(f"[{number}/{max(self.total, number)}] {line(change)}")

    def wait(self, table: Table, live: Live, reason: str) -> None:
        """Show what is waited for: at once on a terminal, every 15 s elsewhere."""
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._percent[table.name] = self._backfill(table, live)
            if not self.out.isatty():
                percent = self._percent[table.name]
                self.write_line(f"  waiting for {table.name}: {reason}{percent}")
        if self.out.isatty():
            done = max(len(self._begun) - 1, 0) * 10 // max(self.total, 1)
            percent = self._percent.get(table.name, "")
            bar = f"[{'#' * done}{'.' * (10 - done)}] {table.short}: {reason}{percent}"
            room = shutil.get_terminal_size().columns - 1
            self.out.write(f"\r\033[K{textwrap.shorten(bar, room, placeholder=' ...')}")
            self.out.flush()

    def write_line(self, text: str) -> None:
        """Write a line in the place of the bar."""
        self._last_line = time.monotonic()
        erased = "\r\033[K" if self.out.isatty() else ""
        self.out.write(f"{erased}{for_screen(text, self.out)}\n")
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


def _difference(kind: str, before: Any, after: Any) -> str:
    """Return both values; of what has many parts, those that differ."""
    if before and after and kind in _DIFFERENCES:
        return _DIFFERENCES[kind](before, after)
    return f"{_text(kind, before)} -> {_text(kind, after)}"


def _alarms_differ(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(
        "another expression"
        if name == "Metrics"
        else f"{name} {_plain_text(before.get(name))} -> {_plain_text(after[name])}"
        for name in after
        if before.get(name) != after[name]
    )


def _indexes_differ(before: Index, after: Index) -> str:
    if before.keys != after.keys:
        return f"{_index(before)} -> {_index(after)}"
    shown = f"{_projection(before)} -> {_projection(after)}"
    if before.projection == after.projection:
        more = [f"+{name}" for name in sorted(after.attributes - before.attributes)]
        less = [f"-{name}" for name in sorted(before.attributes - after.attributes)]
        shown = f"{after.projection}: {' '.join([*more, *less])}"
    return f"{_keys(after.keys)} {shown}"


def _scalings_differ(before: Mapping[str, Scaling], after: Mapping[str, Scaling]) -> str:
    differing = {direction for direction in after if before.get(direction) != after[direction]}
    parts = ({d: each[d] for d in each if d in differing} for each in (before, after))
    return " -> ".join(_scaling(part) or "none" for part in parts)


def _plain_text(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if value in (None, ""):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _keys(keys: Iterable[Key]) -> str:
    return "(" + ", ".join(f"{key.name} {key.type}" for key in keys) + ")"


def _index(index: Index) -> str:
    return f"{_keys(index.keys)} {_projection(index)}"


def _projection(index: Index) -> str:
    count = f" of {len(index.attributes)}" if index.attributes else ""
    return f"{index.projection}{count}"


def _scaling(directions: Mapping[str, Scaling]) -> str:
    each = {d: _range(s) for d, s in directions.items()}
    same = len(each) == 2 and len({*each.values()}) == 1
    return each["Read"] if same else ", ".join(f"{d} {text}" for d, text in each.items())


def _range(scaling: Scaling) -> str:
    if not scaling.max:
        return "suspended"
    target = "without a policy" if scaling.target is None else f"at {scaling.target:g} %"
    return f"{scaling.min}-{scaling.max} {target}"


_DIFFERENCES: Mapping[str, Callable[[Any, Any], str]] = {
    "alarm": _alarms_differ,
    "index": _indexes_differ,
    "scaling": _scalings_differ,
}
_TEXTS: Mapping[str, Callable[[Any], str]] = {
    "pitr": lambda days: f"{days} days",
    "protection": lambda on: "on" if on else "off",
    "keys": _keys,
    "index": _index,
    "capacity": lambda units: f"{units[0]} read, {units[1]} write",
    "maximum": lambda units: f"{units[0] or 'any'} read, {units[1] or 'any'} write",
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
