"""What a person, or a program, reads: plan lines, the summary, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tdev_models.migrations.apply import Planned
from tdev_models.migrations.plan import Change
from tdev_models.migrations.spec import Index, Key, Scaling

CLEAN, ERROR, PENDING, REFUSED, IN_PROGRESS, USAGE = 0, 1, 2, 3, 5, 64
"""The exit codes."""


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
    return IN_PROGRESS if any(one.live.busy for one in of) else CLEAN


def lines(changes: Sequence[Change]) -> list[str]:
    """Return one line a change; what is unknown of several tables for one reason shares a line."""
    of: dict[tuple[Any, ...], list[str]] = {}
    for change in changes:
        if change.symbol == "=":
            of.setdefault((change.target, change.note), []).append(change.table)
    shared = [
        replace(c, table=", ".join(of.pop((c.target, c.note))))
        for c in changes
        if c.symbol == "=" and (c.target, c.note) in of
    ]
    return [_line(c) for c in [*(c for c in changes if c.symbol != "="), *shared]]


def summary(changes: Iterable[Change]) -> str:
    """Return the one line that says how many changes there are."""
    symbols = [change.symbol for change in changes]
    if not any(symbol in "+~-!" for symbol in symbols):
        return "No changes. The tables are as declared."
    counted = [("+", "to add"), ("~", "to change"), ("-", "to remove"), ("!", "refused")]
    return f"Plan: {', '.join(f'{symbols.count(symbol)} {what}' for symbol, what in counted)}."


def as_json(environment: str, planned: Sequence[Planned], code: int) -> str:
    """Return a plan as JSON, for programs."""
    changes = [change for one in planned for change in one.changes]
    document = {
        "environment": environment,
        "exit_code": code,
        "summary": summary(changes),
        "changes": [
            {
                "symbol": change.symbol,
                "table": change.table,
                "target": list(change.target),
                "before": _plain(change.before),
                "after": _plain(change.after),
                "note": change.note,
            }
            for change in changes
        ],
        "in_progress": [
            {"table": of.table.short, "what": w} for of in planned for w in of.live.busy
        ],
    }
    return json.dumps(document, indent=2)


def _line(change: Change) -> str:
    what = "table" if change.target == ("keys",) else " ".join(change.target)
    shown = f"  {change.symbol} {change.table}  {what}"
    if change.symbol == "+" and change.target[0] != "alarm":
        shown += f": {_text(change.after)}"
    elif change.symbol in "~!" and change.before != change.after:
        shown += f": {_text(change.before)} -> {_text(change.after)}"
    return shown + (f"  ({change.note})" if change.note else "")


def _text(value: Any) -> str:
    match value:
        case None:
            return "none"
        case Index():
            keys = ", ".join(f"{key.name} {key.type}" for key in value.keys)
            some = f" {len(value.attributes)} attributes" if value.attributes else ""
            return f"({keys}) {value.projection}{some}"
        case (Key(), *_):
            return "(" + ", ".join(f"{key.name} {key.type}" for key in value) + ")"
        case Scaling():
            return f"{value.min}-{value.max} at {value.target}%"
        case {"Threshold": _}:
            return f"over {value['Threshold']}, {len(value['AlarmActions'])} actions"
        case dict():
            return ", ".join(f"{name} {_text(of)}" for name, of in value.items())
        case (int(), int()):
            return f"{value[0]} read, {value[1]} write"
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
