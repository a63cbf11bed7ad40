"""Loads items as PynamoDB does, by a function that is made once for each model.

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

_ONE = """
    typed = typed_value_of({attr_name!r})
    if typed and "NULL" not in typed:
        if {attr_type!r} not in typed:
            raise Error({attr_name!r}, {attr_type!r})
        values[{name!r}] = {load}(typed[{attr_type!r}])
"""


@cache
def loader_of(model: type[Model]) -> Loader:
    """Return the function that makes the attribute values of a model's instance.

    It is made of source text, as `dataclasses` does: a loop over the attributes takes thrice as
    long.
    """
    source = "def load(item):\n    values = defaults()\n    typed_value_of = item.get\n"
    scope: dict[str, Any] = {"Error": AttributeDeserializationError, "defaults": _defaults(model)}
    for number, (name, attribute) in enumerate(model.get_attributes().items()):
        inherited = type(attribute).deserialize is Attribute.deserialize  # which changes nothing
        load = "" if inherited else f"load_{number}"
        scope[load] = attribute.deserialize
        facts = {"attr_name": attribute.attr_name, "attr_type": attribute.attr_type}
        source += _ONE.format(name=name, load=load, **facts)
    exec(f"{source}    return values\n", scope)
    loader: Loader = scope["load"]
    return loader


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
