"""The indexes that lists read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TypeVar

from pynamodb.indexes import GlobalSecondaryIndex, IncludeProjection, KeysOnlyProjection
from pynamodb.models import Model

from tdev_models.models.attributes import declared

M = TypeVar("M", bound=Model)


class KeyIndex(GlobalSecondaryIndex[M]):
    """An index that holds keys alone, or what a `Meta` of its own says.

    Attributes:
        former: the name of an index with the same keys, which calls read as long as there is none
            of this name, or DynamoDB builds it.
    """

    former = ""

    def __init_subclass__(cls, name: str = "", former: str = "") -> None:
        cls.former = former
        if name:
            cls.Meta = SimpleNamespace(index_name=name, projection=KeysOnlyProjection())
        super().__init_subclass__()  # type: ignore[no-untyped-call]


class ListIndex(KeyIndex[M]):
    """An index that holds what lists show: its keys, and the model's `listed` attributes.

    DynamoDB cannot change what an index projects. When an attribute becomes `listed`, or no longer
    is, give each such index of the table another name, and the one that it had as `former`: it is
    built from the whole table (a write unit for each KB), while calls read the one of the former
    name. Under the same name migrations would drop it first, and calls fail until it is built.
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
