"""The JSON text in which Python values are stored."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID


def text_of(value: Any) -> str:
    """Return the JSON text of a value; a string is JSON text already, and is kept as it is.

    Raises:
        ValueError: the string is no JSON text, or the value has no JSON form.
    """
    if not isinstance(value, str):
        return encode(value)
    try:
        json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"a string must be JSON text ({error}); "
            "pass the object itself, or json.dumps(...) of it"
        ) from None
    return value


def encode(value: Any) -> str:
    """Return the JSON text of a Python value; a string becomes a JSON string.

    Dates and times become ISO text, UUIDs text, enums their value, dataclasses and pydantic
    models objects, a Decimal the number that equals it. Tuples come back as lists, keys as
    strings.

    Raises:
        ValueError: the value has no JSON form.
    """
    try:
        return json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
            default=_json_form,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no JSON form: {error}") from None


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
