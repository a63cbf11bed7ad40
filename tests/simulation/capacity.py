"""What requests cost, in capacity units."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.simulation.tables import Table
from tests.simulation.values import Item, bytes_of


def read_units(items: Sequence[Item], *, consistent: bool) -> float:
    """Return what it costs to read items at once."""
    units = max(1, math.ceil(sum(bytes_of(item) for item in items) / 4096))
    return float(units) if consistent else units / 2


def write_units(table: Table, old: Item, new: Item) -> float:
    """Return what a write costs, its indexes included."""
    units = _kilobytes(old, new)
    for index in table.indexes.values():
        before, after = (
            index.shown(item) if all(name in item for name in index.keys) else {}
            for item in (old, new)
        )
        if before == after:
            continue
        moved = before and after and any(before[name] != after[name] for name in index.keys)
        units += _kilobytes(before) + _kilobytes(after) if moved else _kilobytes(before, after)
    return float(units)


def _kilobytes(*items: Item) -> int:
    return max(1, math.ceil(max(bytes_of(item) for item in items) / 1024))
