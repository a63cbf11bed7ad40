"""Checks of what a caller gives, before any I/O: each rule returns the value or names the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeAlias

from tdev_models import json_form
from tdev_models.errors import InvalidRequest, shown
from tdev_models.results import Undecrypted

Rule: TypeAlias = Callable[[str, Any], Any]
"""Takes a field's name and value; returns the value to store or raises InvalidRequest."""

PARTITION_KEY_BYTES, SORT_KEY_BYTES = 2048, 1024

SMALLEST, LARGEST = 1e-60, 1e60
"""The magnitudes between which numbers are kept exactly; DynamoDB's own range is wider."""

MOST_EXACT = 10**38 - 1
"""Up to which each whole number is kept exactly: it has 38 digits at most."""


def checked(
    data: Mapping[str, Any] | None,
    more: Mapping[str, Any],
    rules: Mapping[str, Rule],
    *required: str,
    kept: Collection[str] = (),
) -> dict[str, Any]:
    """Return the given fields, checked; a field that is None counts as not given.

    Args:
        data: the caller's mapping.
        more: the caller's keywords; they win.
        rules: what is allowed.
        required: fields that must be given.
        kept: fields that the package keeps itself where no rule allows them, to say so.
    """
    if data is not None and not isinstance(data, Mapping):
        raise InvalidRequest("data", f"must be a mapping, not {type(data).__name__}")
    given = {name: value for name, value in {**(data or {}), **more}.items() if value is not None}
    for name in required:
        if name not in given:
            raise InvalidRequest(name, "is required")
    for name in given:
        if name in kept and name not in rules:
            raise InvalidRequest(name, "is kept by the package; leave it out")
        if name not in rules:
            field = name if isinstance(name, str) and len(name) <= 80 else shown(name)
            raise InvalidRequest(field, f"unknown field; use {', '.join(rules)}")
    return {name: rules[name](name, value) for name, value in given.items()}


def text(most_bytes: int) -> Rule:
    """Return the rule of a string of at most so many bytes of UTF-8; it may be empty."""

    def rule(field: str, value: Any) -> str:
        if not isinstance(value, str):
            raise InvalidRequest(field, f"must be a string, not {type(value).__name__}")
        if isinstance(value, Undecrypted):
            raise InvalidRequest(field, f"is a field that was not decrypted, no data {value}")
        try:
            size = len(value) if value.isascii() else len(value.encode())
        except UnicodeEncodeError:
            raise InvalidRequest(field, "holds a lone surrogate, which has no UTF-8 form") from None
        if size > most_bytes:
            raise InvalidRequest(field, f"has {size:,} bytes; at most {most_bytes:,}")
        return str.__str__(value)  # where an Enum is a str, too, str() would be its name

    return rule


def key(most_bytes: int = PARTITION_KEY_BYTES, *, part: bool = False) -> Rule:
    """Return the rule of a key, or of one part of a compound key."""
    string = text(most_bytes)

    def rule(field: str, value: Any) -> str:
        found: str = string(field, value)
        if not found:
            raise InvalidRequest(field, "must not be empty")
        if part and "#" in found:
            raise InvalidRequest(field, "must not hold '#', which separates the parts of keys")
        return found

    return rule


def choice(options: type[StrEnum]) -> Rule:
    """Return the rule of one value of an enum, given as member or text."""

    def rule(field: str, value: Any) -> str:
        if not isinstance(value, str) or value not in list(options):
            raise InvalidRequest(field, f"{shown(value)} is not one of {', '.join(options)}")
        return str.__str__(value)  # as of texts

    return rule


def whole(least: int, most: int) -> Rule:
    """Return the rule of a whole number in a closed range."""

    def rule(field: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidRequest(
                field, f"{shown(value)} is not a whole number from {least} to {most}"
            )
        return int(value)  # of an Enum that is an int, too, str() would be its name

    return rule


def number(field: str, value: Any) -> float:
    """Return a finite number of a size that is kept exactly."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise InvalidRequest(field, f"must be a number, not {type(value).__name__}")
    if isinstance(value, int) and abs(value) <= LARGEST:
        if abs(value) > MOST_EXACT and len(str(value).strip("-0")) > 38:
            raise InvalidRequest(field, "has more than the 38 digits that DynamoDB keeps")
        return int(value)  # as of whole numbers
    try:
        size = abs(float(value))
    except (OverflowError, ValueError):  # a very large int, a signalling NaN
        size = math.inf
    if not math.isfinite(size):
        raise InvalidRequest(field, "is not finite")
    if value and not SMALLEST <= size <= LARGEST:
        raise InvalidRequest(field, "is outside 1e-60..1e60")
    return float(value)


def above_zero(field: str, value: Any) -> float:
    """Return a finite number above 0."""
    if number(field, value) <= 0:
        raise InvalidRequest(field, f"must be above 0, not {shown(value)}")
    return number(field, value)


def flag(field: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise InvalidRequest(field, "must be True or False")
    return value


def instant(field: str, value: Any) -> float:
    """Return epoch seconds of epoch seconds, a datetime (naive: local time) or ISO text."""
    if isinstance(value, str):
        from dateutil import parser

        try:
            value = parser.isoparse(value)
        except (ValueError, OverflowError):
            raise InvalidRequest(field, f"{shown(value)} is not an ISO 8601 time") from None
    try:
        seconds = value.timestamp() if isinstance(value, datetime) else number(field, value)
        datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise InvalidRequest(
            field, f"{shown(value)} is not a moment in seconds ({error})"
        ) from None
    return round(float(seconds), 6)


def json_text(
    most_bytes: int = json_form.JSON_BYTES,
    remedy: str = json_form.TOO_LARGE,
    *,
    objects_only: bool = False,
) -> Rule:
    """Return the rule of a JSON value, which returns the text to store.

    A string is JSON text already, as in the plan's calls; with `objects_only` it is a value like
    any other, so that what is stored comes back as it was.
    """
    encode = json_form.encode if objects_only else json_form.text_of
    return lambda field, value: encode(field, value, most_bytes, remedy)


LIMIT = whole(1, 1000)
"""How many items a page may have."""
