"""Attributes that store what the plan's tables hold, and refuse what DynamoDB would spoil."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from itertools import accumulate
from typing import Any
from uuid import UUID

from pynamodb.attributes import Attribute
from pynamodb.constants import MAP, NUMBER, STRING
from pynamodb.expressions.update import RemoveAction, SetAction

SMALLEST, LARGEST = 1e-60, 1e60
"""The magnitudes between which numbers are kept exactly; DynamoDB's own range is wider."""

MOST_LEVELS = 200
"""How deep JSON may be nested: less than any Python's own limit, which differs between releases."""

_SMALLEST_STORED, _LARGEST_STORED = 1e-130, 9.9e125


class NumberAttribute(Attribute[float]):
    """A finite number: int, float or Decimal in, int or float out."""

    attr_type = NUMBER

    def serialize(self, value: Any) -> str:
        """Return the number's decimal text, in which a float survives unchanged."""
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            raise ValueError(f"{self.attr_name}: {value!r} is not a number")
        if not math.isfinite(value):
            raise ValueError(f"{self.attr_name}: {value!r} cannot be stored; use a finite number")
        if value != 0 and not SMALLEST <= abs(float(value)) <= LARGEST:
            raise ValueError(f"{self.attr_name}: {value!r} is outside 1e-60..1e60")
        return str(value)

    def deserialize(self, value: str) -> float:
        """Return an int where the text is one, else a float."""
        try:
            return int(value)
        except ValueError:
            return float(value)


class TotalAttribute(NumberAttribute):
    """A total of numbers: may pass their bounds, and then keeps to those of DynamoDB."""

    def serialize(self, value: Any) -> str:
        """Return decimal text; what is too small is 0, what is too large the largest number."""
        if abs(value) < _SMALLEST_STORED:
            return "0"
        return str(max(-_LARGEST_STORED, min(_LARGEST_STORED, value))).removesuffix(".0")


class InstantAttribute(NumberAttribute):
    """A moment as epoch seconds, to the microsecond; a naive datetime is local time."""

    def serialize(self, value: Any) -> str:
        """Return epoch seconds as decimal text."""
        if isinstance(value, datetime):
            value = value.timestamp()
        return super().serialize(round(value, 6) if isinstance(value, float) else value)


class JSONTextAttribute(Attribute[Any]):
    """A JSON value, stored as String: text is checked and kept, other values are encoded."""

    attr_type = STRING

    def serialize(self, value: Any) -> str:
        """Return JSON text."""
        if isinstance(value, str):
            try:
                json.loads(value, parse_constant=_no_constant)
            except RecursionError:
                raise ValueError(f"{self.attr_name}: {_TOO_DEEP}") from None
            except ValueError as error:
                raise ValueError(
                    f"{self.attr_name}: a string must be JSON text ({error}); "
                    "pass the object itself, or json.dumps(...) of it"
                ) from None
            if _is_too_deep(value):
                raise ValueError(f"{self.attr_name}: {_TOO_DEEP}")
            return value
        return self.encode(value)

    def encode(self, value: Any) -> str:
        """Return the JSON text of a Python value; a string becomes a JSON string.

        Dates and times become ISO text, UUIDs text, enums their value, dataclasses and pydantic
        models objects, a Decimal the number that equals it. Tuples come back as lists, keys as
        strings.
        """
        try:
            text = json.dumps(
                value,
                ensure_ascii=False,
                allow_nan=False,
                separators=(",", ":"),
                default=_json_form,
            )
        except RecursionError:
            raise ValueError(f"{self.attr_name}: no JSON form: {_TOO_DEEP}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.attr_name}: no JSON form: {error}") from None
        if _is_too_deep(text):
            raise ValueError(f"{self.attr_name}: no JSON form: {_TOO_DEEP}")
        return text

    def deserialize(self, value: str) -> Any:
        """Return the Python value of the text."""
        return json.loads(value)

    def set(self, value: Any) -> SetAction | RemoveAction:
        """Return the SET action; PynamoDB takes a value `{"S": ...}` for a serialised one."""
        return super().set({STRING: self.serialize(value)})


_TOO_DEEP = (
    f"nested more than {MOST_LEVELS} levels deep; flatten it, or give the inner part as a string "
    "(json.dumps of it)"
)
_LEVELS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes({*range(256)} - {*_LEVELS})


def _is_too_deep(text: str) -> bool:
    """Return whether JSON text is nested too deep, in linear time."""
    if text.count("[") + text.count("{") <= MOST_LEVELS:
        return False
    data = text.encode(errors="replace").replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(data.split(b'"')[::2])
    levels = map(_LEVELS.__getitem__, outside_strings.translate(None, _NO_BRACKETS))
    return max(accumulate(levels), default=0) > MOST_LEVELS


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_form(value: Any) -> Any:
    """Return what stands in JSON for a value that `json` does not know."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal) and Decimal(repr(float(value))) == value:
        return float(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    remedy = {"bytes": "; encode it as text", "Decimal": " that a float can hold; pass str(...)"}
    kind = type(value).__name__
    raise TypeError(f"{kind} has none{remedy.get(kind, '')}")


class AttemptsAttribute(Attribute[dict[str, dict[str, Any]]]):
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
        number = NumberAttribute()
        return {
            slot: {
                name: number.deserialize(raw[NUMBER]) if NUMBER in raw else raw.get(STRING)
                for name, raw in entry[MAP].items()
            }
            for slot, entry in value.items()
        }
