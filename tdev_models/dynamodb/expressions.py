"""The update actions and conditions that services use often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pynamodb.attributes import Attribute
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.models.attributes import InstantAttribute, JSONTextAttribute
from tdev_models.models.base import BaseModel, operand, typed
from tdev_models.security.fields import SUFFIX


def set_to(attribute: Attribute[Any], value: Any) -> Action:
    """Return the action that sets one attribute."""
    return typed(attribute, {attribute.attr_type: attribute.serialize(value)})


def set_or_remove(attribute: Attribute[Any], value: Any) -> Action:
    """Return the action that sets one attribute, or removes it where there is no value."""
    return attribute.remove() if value is None else set_to(attribute, value)


def set_fields(model: type[BaseModel], values: Mapping[str, Any]) -> list[Action]:
    """Return the actions that set checked fields; JSON fields are text already."""
    attributes = model.get_attributes()
    return [
        typed(attributes[name], {"S": value})
        if isinstance(attributes[name], JSONTextAttribute)
        else set_to(attributes[name], value)
        for name, value in values.items()
    ]


def replace_fields(model: type[BaseModel], values: Mapping[str, Any]) -> list[Action]:
    """Return the actions that set checked fields, and remove those in clear that are encrypted now.

    And the other way round.
    """
    attributes, names = model.get_attributes(), [*values]
    others = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)]
    others += [f"{name}{SUFFIX}" for name in names if f"{name}{SUFFIX}" in attributes]
    return [*set_fields(model, values), *(attributes[name].remove() for name in others)]


def set_if_absent(attribute: Attribute[Any], value: Any) -> Action:
    """Return the action that sets one attribute where the item has none."""
    return attribute.set(attribute | operand({attribute.attr_type: attribute.serialize(value)}))


def is_as_read(attribute: Attribute[Any], value: Any) -> Condition:
    """Return the condition that an attribute is as it was read; None means absent."""
    if value is None:
        absent: Condition = attribute.does_not_exist()
        return absent
    # Other programs store more digits of a moment than this one.
    is_moment = isinstance(attribute, InstantAttribute)
    raw = str(value) if is_moment else attribute.serialize(value)
    same: Condition = attribute == operand({attribute.attr_type: raw})
    return same
