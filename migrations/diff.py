"""The difference between the declared and the live state of a table; nothing here does I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Any

from tdev_models.migrations.declared import (
    BILLING,
    ENCRYPTION,
    KEYS,
    PROTECTION,
    TTL,
    Index,
    Property,
    Scaling,
    Table,
    indexes_in,
    is_ours,
)
from tdev_models.migrations.live import PARTS, Live

_ORDER = (
    "table",
    "keys",
    "protection",
    "pitr",
    "encryption",
    "billing",
    "index",
    "scaling",
    "capacity",
    "maximum",
    "ttl",
    "tag",
    "alarm",
    "stream",
    "replicas",
    "class",
)
_SET_BY_CREATE_TABLE = {
    "protection",
    "encryption",
    "billing",
    "index",
    "capacity",
    "maximum",
    "tag",
}

_WITHOUT_A_GAP = (
    "give the new form another name, with this one as its former name (docs/migrations.md: An"
    " index changes without a gap); or, with calls that fail until it is built anew, "
)

ALLOWABLE = {
    "delete-index",
    "replace-index",
    "recreate-table",
    "disable-protection",
    "disable-pitr",
    "disable-ttl",
    "shorten-pitr",
    "enable-ttl",
    "lower-capacity",
    "end-on-demand",
    "change-key",
    "silence-alarms",
}
"""What `--allow` can name; each is followed by `:TABLE`, and those of an index by `/INDEX`."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan.

    Attributes:
        symbol: `+` add, `~` change, `-` remove, `!` refused, `=` reported and left as it is.
        table: the table's short name.
        target: the property.
        before: its live value.
        after: its declared value.
        note: why it is refused or left as it is, and the remedy.
    """

    symbol: str
    table: str
    target: Property
    before: Any = None
    after: Any = None
    note: str = ""

    @property
    def pending(self) -> bool:
        """Whether apply would change something."""
        return self.symbol in "+~-"


def diff(table: Table, live: Live, allowed: Collection[str] = ()) -> list[Change]:
    """Return what makes the live table the declared one, in the order in which it is applied.

    Args:
        table: the declared table.
        live: its live state.
        allowed: the destructive changes that are allowed, such as
            `delete-index:user-projects/old-index`.
    """
    if problem := live.dead or _vanished(table, live, allowed):
        return [Change("!", table.short, Property("table"), note=problem)]
    changes = []
    for target in {**table.state, **live.state}:
        before, after = _values(table, live, target)
        if before != after and _is_compared(table, live, target):
            changes.append(_change(table, live, target, before, after, allowed))
    changes += [
        Change("=", table.short, Property(*what.split()), note=f"not checked: {error}")
        for what, error in live.unknown.items()
    ]
    changes += [
        Change("=", table.short, item, note=f"{value}; not declared, left alone")
        for noticed in live.noticed.values()
        for item, value in noticed.items()
    ]
    # Indexes are dropped before others are created: a table holds 20, and an attribute of their
    # keys has one type.
    return sorted(
        changes,
        key=lambda change: (
            _ORDER.index(change.target.kind),
            change.target.kind == "index" and change.before is None,
        ),
    )


def _values(table: Table, live: Live, target: Property) -> tuple[Any, Any]:
    """Return the live and the declared value of a property; equal where nothing is to be done."""
    before, after = live.state.get(target), table.state.get(target)
    if target.kind == "pitr":
        return before or 0, after  # None as long as the table does not exist
    if target.kind == "maximum" and after and _becomes_on_demand(live, target.index):
        # None as soon as it is on-demand: a later run, which sees that alone, would refuse it.
        return (0, 0), after
    if target.kind in ("capacity", "maximum"):
        if before is None or after is None:
            return None, None  # set or removed together with the billing, or with the index
        scaling = table.state.get(Property("scaling", target.index))
        return before, _in_range(before, scaling) if scaling else after
    return before, after


def _becomes_on_demand(live: Live, index: str) -> bool:
    """Return whether a live table, or index of it, is provisioned, and so has no maximum yet."""
    exists = not index or Property("index", index) in live.state
    return exists and live.state.get(BILLING) == "provisioned"


def _in_range(units: tuple[int, int], scaling: dict[str, Scaling]) -> tuple[int, ...]:
    """Return the live read and write units, moved into the range that auto scaling may set."""
    ranges = (scaling["Read"], scaling["Write"])
    return tuple(
        min(max(number, each.min), each.max) for number, each in zip(units, ranges, strict=True)
    )


def _is_compared(table: Table, live: Live, target: Property) -> bool:
    part = target.kind if target.kind in PARTS else "table"
    if target.kind in live.unknown or part in live.unknown:
        return False
    if not live.description and target.kind in _SET_BY_CREATE_TABLE:
        return False
    if target.kind == "tag":
        return target in table.state  # other tools set tags too
    undeclared = target.index not in table.indexes and target.index in indexes_in(live.state)
    # An undeclared index is reported; what belongs to it is left without a word.
    return target.kind == "index" or not undeclared


def _change(
    table: Table,
    live: Live,
    target: Property,
    before: Any,
    after: Any,
    allowed: Collection[str],
) -> Change:
    def change(symbol: str, note: str = "") -> Change:
        return Change(symbol, table.short, target, before, after, note)

    if after is None and target.kind == "alarm" and not is_ours(target):
        return change("=", "not declared, left alone")
    if problem := _impossible(table, live, target, before, after, allowed):
        return change("!", problem)
    loss = _loss(table, target, before, after)
    allowance = f"{loss}:{table.short}" + f"/{target.index}" * loss.endswith("-index")
    if loss and allowance not in allowed:
        if after is None:
            effect = "turns it off" if target == TTL else "drops it"
            return change("=", f"not declared; --allow {allowance} {effect}")
        way = _WITHOUT_A_GAP if loss == "replace-index" else ""
        return change("!", f"destructive; {way}--allow {allowance}")
    if after is None:
        return change("-")
    if before in (None, 0):  # 0 days and False mean off
        return change("+", _creation_note(table) if target == KEYS else "")
    return change("~")


def _impossible(
    table: Table,
    live: Live,
    target: Property,
    before: Any,
    after: Any,
    allowed: Collection[str],
) -> str:
    """Return why nothing can make a change, whatever is allowed; empty when it is possible."""
    if target == KEYS and before:
        return (
            "DynamoDB cannot change the keys of a table or their types: declare a table of another"
            " name (TDEV_TABLE_PREFIX), copy the rows and use the new table; or undo the change of"
            " the model. Encrypted fields cannot be read in a copy, since they are bound to the"
            " name of their table: read them with the old prefix and store them with the new one"
        )
    return _type_conflict(table, live, after, allowed) if target.kind == "index" and after else ""


def _loss(table: Table, target: Property, before: Any, after: Any) -> str:
    """Return what a change loses, as `--allow` names it; empty when it loses nothing."""
    match target.kind:
        case "index" if before:
            return "replace-index" if after else "delete-index"
        case "protection" if before:
            return "disable-protection"
        case "ttl" if after is None:
            return "disable-ttl"
        case "pitr" if after < before:
            return "shorten-pitr" if after else "disable-pitr"
        case "encryption" if before != "aws-owned":
            return "change-key"
        case "billing" if after == "provisioned":
            return "end-on-demand"
        case "capacity" | "maximum" if _lowers(before, after):
            return "lower-capacity"
        case "scaling" if before and _scales_less(table, target, before, after):
            return "lower-capacity"
        case "alarm" if before and _silences(table, before, after):
            return "silence-alarms"
    return ""


def _lowers(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Return whether fewer units are left; 0, of a maximum, is no limit."""
    return any((new or inf) < (old or inf) for old, new in zip(before, after, strict=True))


def _scales_less(
    table: Table, target: Property, before: dict[str, Scaling], after: dict[str, Scaling] | None
) -> bool:
    if after is None:  # else it goes with its index, or with the provisioned billing
        return table.state[BILLING] == "provisioned" and target.index in ("", *table.indexes)
    return any(
        new.min < old.min or new.max < old.max
        for direction, old in before.items()
        if (new := after.get(direction))
    )


def _silences(table: Table, before: dict[str, Any], after: dict[str, Any] | None) -> bool:
    if after is None:  # else it goes with its index, or with the provisioned billing
        return not any(item.kind == "alarm" for item in table.state)
    return bool({*before.get("AlarmActions", ())} - {*after["AlarmActions"]})


def _vanished(table: Table, live: Live, allowed: Collection[str]) -> str:
    if not live.vanished or f"recreate-table:{table.short}" in allowed:
        return ""
    return (
        "somebody deleted it: its alarms or scalable targets are still there. Restore it from its"
        f" backup first, under this name; or --allow recreate-table:{table.short} makes it anew,"
        " empty"
    )


def _creation_note(table: Table) -> str:
    state = table.state
    parts = [state[BILLING], *(f"index {name}" for name in table.indexes)]
    reads, writes = state.get(Property("maximum"), (0, 0))
    if reads or writes:
        parts.insert(1, f"maximum {reads or 'any'} read, {writes or 'any'} write")
    parts += ["deletion protection"] * state[PROTECTION] + [f"key {state[ENCRYPTION]}"]
    return ", ".join(parts)


def _type_conflict(table: Table, live: Live, wanted: Index, allowed: Collection[str]) -> str:
    """Return which undeclared index gives an attribute another type than a declared index does."""
    for target, index in live.parts["table"].items():
        allowance = f"delete-index:{table.short}/{target.index}"
        if target.kind == "index" and target not in table.state and allowance not in allowed:
            types = {key.name: key.type for key in index.keys}
            for key in wanted.keys:
                if types.get(key.name, key.type) != key.type:
                    return (
                        f"the undeclared index {target.index} gives {key.name} another type;"
                        f" --allow {allowance} drops it"
                    )
    return ""
