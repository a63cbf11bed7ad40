"""What stands in JSON for a Python value: text, a number, a bool, None, a list or a dict.

Objects are not shown in errors, they may hold what is secret.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence, Set, ValuesView
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, NoReturn
from uuid import UUID

from tdev_models.errors import shown
from tdev_models.json_decoding import MOST_VALUES
from tdev_models.results import Undecrypted

CONTAINERS = {dict, list, tuple}
SCALARS = {str, int, float, bool, type(None)}
_REMEDIES = (
    ((type, type(lambda: None)), "pass its name, or its result"),
    (complex, "pass its parts, or text"),
    (Decimal, "a float cannot hold it; pass str(...) of it"),
)
_HOOK = "give it a to_dict(), or convert it by configure(json_default=...)"

_CONVERSIONS = 10


class Refused(Exception):
    """Part of a value cannot be stored; its steps lead from that part outwards."""

    def __init__(self, problem: str) -> None:
        self.problem, self.steps = problem, list[str]()

    @property
    def path(self) -> str:
        """The steps from the whole to the part, shortened."""
        path = "".join(reversed(self.steps))
        return path if len(path) <= 200 else f"{path[:100]}...{path[-100:]}"


def form_of(value: Any, hook: Callable[[Any], Any] | None) -> Any:
    """Return the string, number, list, tuple, dict, None or bool that stands for a value."""
    form = value
    for _ in range(_CONVERSIONS):
        if type(form) in SCALARS or type(form) in CONTAINERS:
            return form
        try:
            form = _converted(form, hook)
        except Refused:
            raise
        except Exception as error:
            problem = f"{_kind(form)} cannot be converted ({type(error).__name__}: {error})"
            raise Refused(problem) from error
    raise Refused(f"{_kind(value)} is converted to {_kind(form)} without an end; {_HOOK}")


def _converted(value: Any, hook: Callable[[Any], Any] | None) -> Any:
    kind: Any = type(value)
    if convert := _converter(kind):
        return convert(value)
    if isinstance(value, type):
        _refuse(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    for method in ("to_dict", "tolist"):
        if callable(made := getattr(value, method, None)):
            _check_size(getattr(value, "size", 0))
            return list(value) if method == "tolist" and _has_rows(value) else made()
    if hook is None:
        _refuse(value)
    return hook(value)


@lru_cache(256)
def _converter(kind: Any) -> Callable[[Any], Any] | None:
    return next((convert for types, convert in _CONVERTERS if issubclass(kind, types)), None)


def _check_size(size: Any) -> None:
    # What makes its values as they are asked for is counted before it is made into a list.
    if isinstance(size, int) and size > MOST_VALUES:
        raise Refused(
            f"has {size:,} values, at most {MOST_VALUES:,}; store a reference to it instead"
        )


def _list(value: Collection[Any]) -> list[Any]:
    _check_size(len(value))
    return list(value)


def _has_rows(value: Any) -> bool:
    """Return whether an array can be made into a list row by row: other threads run meanwhile."""
    dimensions = getattr(value, "ndim", 0)
    # The rows of a matrix are matrices.
    return dimensions in range(2, 65) and all(row.ndim < dimensions for row in value[:1])


def _refuse(value: Any) -> NoReturn:
    remedy = next((text for types, text in _REMEDIES if isinstance(value, types)), _HOOK)
    number = f" ({shown(value)})" if isinstance(value, Decimal | complex) else ""
    raise Refused(f"{_kind(value)} has no JSON form{number}; {remedy}")


def _kind(value: Any) -> str:
    return "a class" if isinstance(value, type) else type(value).__name__


def _sorted(value: Set[Any]) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def _number(value: Decimal) -> float:
    number = float(value)
    if value.is_finite() and Decimal(repr(number)) != value:
        _refuse(value)
    return number


def _not_data(value: Undecrypted) -> NoReturn:
    raise Refused(f"is a field that was not decrypted, no data {value}")


# Enums before strings: some are strings or numbers, too. The first that fits decides.
_CONVERTERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Undecrypted, _not_data),
    (Enum, lambda value: value.value),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), lambda value: base64.b64encode(value).decode()),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, timedelta.total_seconds),
    ((UUID, PurePath), str),
    (Decimal, _number),
    (Mapping, dict),
    ((set, frozenset), _sorted),
    ((Sequence, Set, ValuesView), _list),
)
