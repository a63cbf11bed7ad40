"""Attributes that store what the plan's tables hold, and refuse what DynamoDB would spoil."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

from pynamodb.attributes import (
    Attribute,
    BinaryAttribute,
    BooleanAttribute,
    ListAttribute,
    UnicodeAttribute,
)
from pynamodb.constants import MAP, NUMBER, STRING
from pynamodb.expressions.operand import Path
from pynamodb.expressions.update import RemoveAction, SetAction

from tdev_models import json_form
from tdev_models.errors import InvalidRequest, PayloadDamaged
from tdev_models.json_decoding import decode
from tdev_models.validation import LARGEST, MOST_EXACT, SMALLEST, Rule, number

ERROR_BYTES = 4 * 1024
"""What an `error_message` may hold."""

# Most numbers are of these types and above 0, and need no closer look, which takes longer.
_USUAL = (int, float)
_SMALLEST_STORED, _LARGEST_STORED = 1e-130, 9.9e125


class Declared:
    """What the package does with an attribute. Its declaration in the model is the only place.

    Two things are still written by hand, and `tests/unit/test_attributes.py` fails without them:
    the field of the frozen result, and for what callers give a line in the model's docstring. All
    attributes but keys may be missing in an item.

    Attributes:
        given: the check of what a caller gives. None: callers may not give it.
        listed: whether lists show it, so that each `ListIndex` of the table holds it. Required
            where it is returned, except for keys of the table.
        returned: whether the frozen result in `tdev_models.results` has it.
        lease: whether it belongs to a lease or guards writes: `save()` never writes it.
    """

    def __init__(
        self,
        given: Rule | None = None,
        *,
        listed: bool | None = None,
        returned: bool = True,
        lease: bool = False,
        **options: Any,
    ) -> None:
        key = options.get("hash_key") or options.get("range_key")
        super().__init__(**{"null": not key, **options})
        self.given, self.listed, self.returned, self.lease = given, listed, returned, lease

    def __set_name__(self, owner: type, name: str) -> None:
        super().__set_name__(owner, name)  # type: ignore[misc]  # every subclass is an Attribute
        self.name = name

    @cached_property
    def path(self) -> Path:
        """Where it is in an item; PynamoDB makes one anew for each use of an attribute."""
        return Path(self)  # type: ignore[arg-type]


def _on_path(name: str) -> Callable[..., Any]:
    def operation(self: Declared, *values: Any) -> Any:
        return getattr(self.path, name)(*values)

    return operation


# What conditions and updates are made of. PynamoDB makes a new path for each, which takes longer
# than all the rest.
for _name in (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__or__", "__add__"),
    *("__getitem__", "exists", "does_not_exist", "is_in", "startswith", "contains"),
    *("set", "remove", "add", "delete"),
):
    setattr(Declared, _name, _on_path(_name))


def _value(self: Declared, instance: Any, owner: type) -> Any:
    return self if instance is None else instance.attribute_values.get(self.name)


Declared.__get__ = _value  # type: ignore[attr-defined]  # as PynamoDB's, without what maps need


def declared(model: type) -> dict[str, Declared]:
    """Return the attributes of a model, in the order of their declaration."""
    return {name: facts for name, facts in vars(model).items() if isinstance(facts, Declared)}


class TextAttribute(Declared, UnicodeAttribute):
    """A string."""


class FlagAttribute(Declared, BooleanAttribute):
    """True or False."""


class BytesAttribute(Declared, BinaryAttribute):
    """Bytes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, legacy_encoding=False, **options)


class TextListAttribute(Declared, ListAttribute[str]):
    """A list of strings."""


class NumberAttribute(Declared, Attribute[float]):
    """A finite number: int, float or Decimal in, int or float out."""

    attr_type = NUMBER

    def serialize(self, value: Any) -> str:
        """Return the number's decimal text, in which a float survives unchanged."""
        if type(value) not in _USUAL or not SMALLEST <= value <= MOST_EXACT:
            given = number(self.attr_name, value)
            value = value if isinstance(value, Decimal) else given  # of an Enum, its value
        return str(value)

    def deserialize(self, value: str) -> float:
        """Return an int where the text is one, else a float.

        Raises:
            PayloadDamaged: no call of this package could write it, or back what comes of it.
        """
        found = _number_of(value)
        if SMALLEST <= found <= LARGEST or found == 0:
            return found
        try:
            number(self.attr_name, found)
        except InvalidRequest as error:
            raise PayloadDamaged(f"{error}; that is not what was written") from None
        return found


def _number_of(text: str) -> float:
    if "." in text:  # no int, and an error that is caught takes long
        return float(text)
    try:
        return int(text)
    except ValueError:
        return float(text)


class TotalAttribute(NumberAttribute):
    """A total of numbers: may pass their bounds, and then keeps to those of DynamoDB."""

    def serialize(self, value: Any) -> str:
        """Return decimal text; what is too small is 0, what is too large the largest number."""
        if abs(value) < _SMALLEST_STORED:
            return "0"
        return str(max(-_LARGEST_STORED, min(_LARGEST_STORED, value))).removesuffix(".0")

    def deserialize(self, value: str) -> float:
        """Return an int where the text is one, else a float."""
        return _number_of(value)


class InstantAttribute(NumberAttribute):
    """A moment as epoch seconds, to the microsecond; a naive datetime is local time."""

    def serialize(self, value: Any) -> str:
        """Return epoch seconds as decimal text."""
        if isinstance(value, datetime):
            value = value.timestamp()
        return super().serialize(round(value, 6) if isinstance(value, float) else value)


class JSONTextAttribute(Declared, Attribute[Any]):
    """A JSON value, stored as String: text is checked and kept, other values are encoded."""

    attr_type = STRING

    def serialize(self, value: Any) -> str:
        """Return JSON text."""
        return json_form.text_of(self.attr_name, value)

    def deserialize(self, value: str) -> Any:
        """Return the Python value of the text.

        Raises:
            PayloadDamaged: it is no JSON text, or of too many or too deep values.
        """
        try:
            return decode(value)
        except (ValueError, RecursionError) as error:
            raise PayloadDamaged(f"{self.attr_name} is not what was written ({error})") from None

    def set(self, value: Any) -> SetAction | RemoveAction:
        """Return the SET action; PynamoDB takes a value `{"S": ...}` for a serialised one."""
        return super().set({STRING: self.serialize(value)})


class AttemptsAttribute(Declared, Attribute[dict[str, dict[str, Any]]]):
    """The tries of one execution: a map from slot (number modulo 20) to a flat map."""

    attr_type = MAP

    def serialize(self, value: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Return the map in DynamoDB's form."""
        return {slot: self.entry(attempt) for slot, attempt in value.items()}

    @staticmethod
    def entry(attempt: Mapping[str, Any]) -> dict[str, Any]:
        """Return one attempt in DynamoDB's form, None left out."""
        return {
            MAP: {
                name: {STRING: value} if isinstance(value, str) else {NUMBER: str(value)}
                for name, value in attempt.items()
                if value is not None
            }
        }

    def deserialize(self, value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the attempts by slot; fields of newer releases come along."""
        return {
            slot: {
                name: _number_of(raw[NUMBER]) if NUMBER in raw else raw.get(STRING)
                for name, raw in entry[MAP].items()
            }
            for slot, entry in value.items()
        }
