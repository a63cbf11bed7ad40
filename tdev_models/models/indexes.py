"""The indexes that lists read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TypeVar

from pynamodb.indexes import GlobalSecondaryIndex, IncludeProjection, KeysOnlyProjection
from pynamodb.models import Model

from tdev_models.models.attributes import declared

M = TypeVar("M", bound=Model)


class KeyIndex(GlobalSecondaryIndex[M]):
    """An index that holds keys alone."""

    def __init_subclass__(cls, name: str = "") -> None:
        if name:
            cls.Meta = SimpleNamespace(index_name=name, projection=KeysOnlyProjection())
        super().__init_subclass__()  # type: ignore[no-untyped-call]


class ListIndex(KeyIndex[M]):
    """An index that holds what lists show: its keys, and the model's `listed` attributes.

    DynamoDB cannot change what an index projects. When an attribute becomes `listed`, or no longer
    is, migrations replace each such index of the table, live: it is deleted and built again from
    the whole table (a write unit for each KB), and calls that query it fail until it is complete.
    """

    def __set_name__(self, owner: type[M], name: str) -> None:
        # Only here the model is known.
        super().__set_name__(owner, name)
        self.Meta.projection = IncludeProjection(
            [
                attribute
                for attribute, facts in declared(owner).items()
                if facts.listed and attribute not in self.Meta.attributes
            ]
        )
