"""The difference between the declared and the live state of a table; nothing here does I/O."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from tdev_models.migrations.declared import Index, Scaling, Table, Target
from tdev_models.migrations.live import PARTS, Live

_ORDER = (
    "keys",
    "protection",
    "pitr",
    "encryption",
    "billing",
    "index",
    "scaling",
    "capacity",
    "ttl",
    "tag",
    "alarm",
)
_MADE_WITH_TABLE = {"protection", "encryption", "billing", "index", "capacity", "tag"}

ALLOWABLE = {
    "delete-index",
    "replace-index",
    "disable-protection",
    "disable-pitr",
    "disable-ttl",
    "shorten-pitr",
    "enable-ttl",
}
"""What `--allow` can name; each is followed by `:TABLE`, and an index by `/INDEX`."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan.

    Attributes:
        symbol: `+` add, `~` change, `-` remove, `!` refused, `=` reported and left as it is.
        table: the table's short name.
        target: the property.
        before: its live value.
        after: its declared value.
        note: why it is refused or left, and the way out.
    """

    symbol: str
    table: str
    target: Target
    before: Any = None
    after: Any = None
    note: str = ""

    @property
    def pending(self) -> bool:
        """Whether apply would change something."""
        return self.symbol in "+~-"


def diff(table: Table, live: Live, allowed: Collection[str] = ()) -> list[Change]:
    """Return what to change so that the live table becomes the declared one, in order of steps.

    Args:
        table: what is declared.
        live: what is.
        allowed: destructive changes that are allowed, as `delete-index:user-projects/old-index`.
    """
    state = live.state
    changes = []
    for target in {**table.state, **state}:
        if not {target[0], _part(target)} & live.unknown.keys():
            have, want = state.get(target), table.state.get(target)
            change = _change(table, live, target, have, want, allowed)
            if change:
                changes.append(_judged(change, allowed))
    changes += [
        Change("=", table.short, (what,), note=f"not checked: {why}")
        for what, why in live.unknown.items()
    ]
    return sorted(
        changes,
        # An index that goes makes room for those that come.
        key=lambda change: (
            _ORDER.index(change.target[0]) if change.target[0] in _ORDER else -1,
            change.target[0] == "index" and change.before is None,
        ),
    )


def _part(target: Target) -> str:
    return target[0] if target[0] in PARTS else "table"


def _change(
    table: Table, live: Live, target: Target, have: Any, want: Any, allowed: Collection[str]
) -> Change | None:
    kind, of = target[0], target[1] if len(target) > 1 else ""
    if kind == "capacity":
        want = _in_range(table, target, have, want)
    if kind == "pitr":
        have = have or 0  # of a table that does not exist
    if have == want:
        return None
    if not live.description and kind in _MADE_WITH_TABLE:
        return None
    if kind == "keys":
        return _keys(table, have, want)
    if kind == "tag" and target not in table.state:
        return None  # others may tag too
    index = _index_of(target)
    live_indexes = {name[1] for name in live.state if name[0] == "index"}
    if kind != "index" and index and index not in table.indexes and index in live_indexes:
        return None  # not ours, like its index
    if kind == "capacity" and (have is None or want is None):
        return None  # comes or goes with billing, or with its index
    if kind == "ttl" and want is None:
        note = f"not declared; --allow disable-ttl:{table.short} turns it off"
        return Change("=", table.short, target, have, want, note)
    if kind == "index" and want is None:
        note = f"not declared; --allow delete-index:{table.short}/{of} drops it"
        return Change("=", table.short, target, have, want, note)
    if kind == "index" and (conflict := _conflict(table, live, want, allowed)):
        return Change("!", table.short, target, have, want, conflict)
    if want is None and kind in ("scaling", "alarm"):
        return Change("-", table.short, target, have, want)
    added = have is None or (kind in ("pitr", "protection") and not have)
    return Change("+" if added else "~", table.short, target, have, want)


def _keys(table: Table, have: Any, want: Any) -> Change:
    if have is None:
        state = table.state
        parts = [state["billing",], *(f"index {name}" for name in table.indexes)]
        parts += ["deletion protection"] * state["protection",] + [f"key {state['encryption',]}"]
        return Change("+", table.short, ("keys",), have, want, f"with {', '.join(parts)}")
    note = (
        "keys and their types never change: declare a table of another name (TDEV_TABLE_PREFIX),"
        " copy the rows, and turn to it; or undo the change of the model"
    )
    return Change("!", table.short, ("keys",), have, want, note)


def _conflict(table: Table, live: Live, wanted: Index, allowed: Collection[str]) -> str:
    """Return what is wrong when an undeclared index gives a key of this one another type."""
    for target, found in live.parts["table"].items():
        goes = f"delete-index:{table.short}/{target[-1]}" in allowed
        if target[0] == "index" and target not in table.state and not goes:
            for key in wanted.keys:
                if any(key.name == k.name and key.type != k.type for k in found.keys):
                    return f"the undeclared index {target[1]} gives {key.name} another type"
    return ""


def _judged(change: Change, allowed: Collection[str]) -> Change:
    """Return the change, refused if it is destructive and not allowed by its exact name."""
    name = _destroys(change)
    if name is None or change.symbol == "!" or (change.symbol == "=" and name not in allowed):
        return change
    if name in allowed:
        return replace(change, symbol="-" if change.after is None else "~", note="")
    return replace(change, symbol="!", note=f"destructive; --allow {name}")


def _destroys(change: Change) -> str | None:
    kind, have, want = change.target[0], change.before, change.after
    match kind:
        case "index" if have is not None:
            return (
                f"{'delete' if want is None else 'replace'}-index:{change.table}/{change.target[1]}"
            )
        case "protection" if have:
            return f"disable-protection:{change.table}"
        case "ttl" if want is None:
            return f"disable-ttl:{change.table}"
        case "pitr" if want < have:
            return f"{'shorten' if want else 'disable'}-pitr:{change.table}"
    return None


def _in_range(table: Table, target: Target, have: Any, want: Any) -> Any:
    """Return the declared capacity, or the live one moved into the range of auto scaling."""
    scaling: dict[str, Scaling] | None = table.state.get(("scaling", *target[1:]))
    if have is None or want is None or scaling is None:
        return want
    return tuple(
        min(max(units, scaling[direction].min), scaling[direction].max)
        for units, direction in zip(have, ("Read", "Write"), strict=True)
    )


def _index_of(target: Target) -> str:
    if target[0] == "alarm":
        return target[1].split("/")[1] if target[1].startswith("index/") else ""
    return target[1] if len(target) > 1 and target[0] != "tag" else ""
