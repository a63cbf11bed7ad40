"""Loads items as PynamoDB does, by what is looked up once for each model.

`tests/property/test_loading.py` holds it to PynamoDB's own result and errors (docs/adr/0019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pynamodb.attributes import Attribute
from pynamodb.exceptions import AttributeDeserializationError
from pynamodb.models import Model

Loader = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Takes an item as DynamoDB sends it; returns its attributes' values by their Python names."""


@cache
def loader_of(model: type[Model]) -> Loader:
    """Return the function that makes the attribute values of a model's instance."""
    defaults, entries = _defaults(model), {}
    for name, attribute in model.get_attributes().items():
        inherited = type(attribute).deserialize is Attribute.deserialize  # which changes nothing
        deserialize = None if inherited else attribute.deserialize
        entries[attribute.attr_name] = name, attribute.attr_type, deserialize
    entry_of = entries.get

    def load(item: Mapping[str, Any]) -> dict[str, Any]:
        values = defaults()
        for attr_name, typed in item.items():  # most items have few of the model's attributes
            if entry := entry_of(attr_name):
                name, kind, deserialize = entry
                if kind in typed:
                    values[name] = deserialize(typed[kind]) if deserialize else typed[kind]
                elif typed and "NULL" not in typed:
                    raise AttributeDeserializationError(attr_name, kind)
        return values

    return load


def _defaults(model: type[Model]) -> Callable[[], dict[str, Any]]:
    """Return what makes the values that an item has where it lacks them."""
    defaults = {
        name: attribute.default
        for name, attribute in model.get_attributes().items()
        if attribute.default is not None
    }
    if not defaults:
        return dict
    return lambda: {name: one() if callable(one) else one for name, one in defaults.items()}
