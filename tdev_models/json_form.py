"""The JSON text in which Python values are stored."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from itertools import accumulate
from typing import Any
from uuid import UUID

MOST_LEVELS = 200
"""How deep JSON may be nested: less than any Python's own limit, which differs between releases."""

_TOO_DEEP = (
    f"nested more than {MOST_LEVELS} levels deep; flatten it, or give the inner part as a string "
    "(json.dumps of it)"
)
_LEVELS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKETS = bytes({*range(256)} - {*_LEVELS})


def text_of(value: Any) -> str:
    """Return the JSON text of a value; a string is JSON text already, and is kept as it is.

    Raises:
        ValueError: the string is no JSON text, or the value has no JSON form.
    """
    if not isinstance(value, str):
        return encode(value)
    try:
        json.loads(value, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(
            f"a string must be JSON text ({error}); "
            "pass the object itself, or json.dumps(...) of it"
        ) from None
    if _is_too_deep(value):
        raise ValueError(_TOO_DEEP)
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
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
            default=_json_form,
        )
    except RecursionError:
        raise ValueError(f"no JSON form: {_TOO_DEEP}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"no JSON form: {error}") from None
    if _is_too_deep(text):
        raise ValueError(f"no JSON form: {_TOO_DEEP}")
    return text


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
