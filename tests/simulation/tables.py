"""One table of the simulation's engine: its items, and its indexes, which may lag."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

from tdev_models.models.base import BaseModel
from tests.simulation.values import Item, Typed, sortable

Key: TypeAlias = tuple[Any, ...]
KeyOf: TypeAlias = Callable[[Mapping[str, Typed]], Key]


class Index:
    """An index, or a table as its own: which attributes make its key and what it holds."""

    def __init__(self, keys: list[str], projected: frozenset[str] | None) -> None:
        self.keys, self.projected = keys, projected
        self.items: dict[Key, Item] = {}
        self.coming: list[tuple[float, int, Key, Item]] = []
        self._arrives: dict[Key, float] = {}

    def change(self, number: int, at: float, key: Key, item: Item) -> None:
        """Let an item show from a moment on; the changes of one item keep their order."""
        at = self._arrives[key] = max(at, self._arrives.get(key, at))
        heapq.heappush(self.coming, (at, number, key, item))

    def current(self, now: float) -> dict[Key, Item]:
        """Return what shows at a moment."""
        while self.coming and self.coming[0][0] <= now:
            _, _, key, item = heapq.heappop(self.coming)
            self.items[key] = item
        return self.items

    def shown(self, item: Item) -> Item:
        """Return what the index holds of an item."""
        if self.projected is None:
            return item
        return {name: value for name, value in item.items() if name in self.projected}


class Table:
    """The items of one table.

    Attributes:
        key_of: returns the key of an item, or of a request's `Key`.
    """

    def __init__(self, name: str, schema: Mapping[str, Any], key_of: KeyOf) -> None:
        self.name = name
        self.keys = _names(schema["KeySchema"])
        self.items: dict[Key, Item] = {}
        self.partitions: dict[Any, dict[Key, Item]] = {}
        self.whole = Index(self.keys, None)
        self.indexes = {
            index["IndexName"]: Index(_names(index["KeySchema"]), self._projected(index))
            for index in schema["GlobalSecondaryIndexes"]
        }
        self.key_of = key_of
        self._numbers = 0

    def _projected(self, index: Mapping[str, Any]) -> frozenset[str] | None:
        projection = index["Projection"]
        if projection["ProjectionType"] == "ALL":
            return None
        others = projection.get("NonKeyAttributes", ())
        return frozenset([*self.keys, *_names(index["KeySchema"]), *others])

    def store(self, key: Key, item: Item, now: float, lag: float) -> None:
        """Replace an item; the indexes show it after the lag."""
        self.items[key] = item
        self.partitions.setdefault(key[0], {})[key] = item
        self._numbers += 1
        for index in self.indexes.values():
            if lag or index.coming:
                index.change(self._numbers, now + lag, key, item)
            else:
                index.items[key] = item

    def position(self, index: Index, item: Item) -> tuple[Any, ...]:
        """Return where an item stands among those of its partition in an index."""
        names = index.keys[1:] if index is self.whole else [*index.keys[1:], *self.keys]
        return tuple([sortable(*next(iter(item[name].items()))) for name in names])

    def start_key(self, index: Index, item: Item) -> dict[str, Typed]:
        """Return the key after which a query goes on."""
        return {name: item[name] for name in dict.fromkeys([*self.keys, *index.keys])}


def _names(schema: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of a key's attributes, the partition's first."""
    return [key["AttributeName"] for key in sorted(schema, key=lambda key: key["KeyType"])]


def _key_of(names: list[str], schema: Mapping[str, Any]) -> KeyOf:
    types = {one["AttributeName"]: one["AttributeType"] for one in schema["AttributeDefinitions"]}
    parts = "".join(f"item[{name!r}][{types[name]!r}]," for name in names)
    function: KeyOf = eval(f"lambda item: ({parts})")
    return function


def table_of(model: type[BaseModel], name: str) -> Table:
    """Return the empty table of a model."""
    return Table(name, *_schema_of(model, name))


@cache
def _schema_of(model: type[BaseModel], name: str) -> tuple[Mapping[str, Any], KeyOf]:
    schema = model.meta_table(name).data
    return schema, _key_of(_names(schema["KeySchema"]), schema)
