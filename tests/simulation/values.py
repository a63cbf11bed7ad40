"""DynamoDB's typed values: equality, order, numbers, sets, and their sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any, TypeAlias

Typed: TypeAlias = Mapping[str, Any]
Item: TypeAlias = Mapping[str, Typed]

SETS = ("SS", "NS", "BS")
_DIGITS = Context(prec=38)


@lru_cache(maxsize=65536)
def number(text: str) -> Decimal:
    """Return the number of a text."""
    return Decimal(text)


def equal(left: Typed | None, right: Typed | None) -> bool:
    """Return whether two values are of one type and equal; what is absent equals nothing."""
    if left is None or right is None:
        return False
    if left == right:
        return True
    return "N" in left and "N" in right and number(left["N"]) == number(right["N"])


def compared(left: Typed | None, right: Typed | None) -> int | None:
    """Return -1, 0 or 1; None for values of different types, or without an order."""
    if left is None or right is None:
        return None
    (kind, first), (other, second) = *left.items(), *right.items()
    if kind != other or kind not in ("N", "S", "B"):
        return None
    first, second = sortable(kind, first), sortable(kind, second)
    return -1 if first < second else int(first > second)


def sortable(kind: str, raw: Any) -> Any:
    """Return what sorts a value as DynamoDB does: numbers by value, text by its bytes."""
    if kind == "N":
        return number(raw)
    return raw.encode() if kind == "S" else raw


def stored(value: Typed) -> Typed:
    """Return a value as it is stored: numbers in their shortest form, an enum's text as text."""
    if "S" in value:
        return value if type(value["S"]) is str else {"S": str(value["S"])}
    if "N" in value:
        text = value["N"]
        return value if _is_shortest(text) else {"N": _shortest(text)}
    if "M" in value:
        return {"M": {name: stored(part) for name, part in value["M"].items()}}
    if "L" in value:
        return {"L": [stored(part) for part in value["L"]]}
    return value


def _is_shortest(text: str) -> bool:
    if text.isdigit():
        return text[0] != "0" or len(text) == 1
    whole, point, part = text.partition(".")
    return bool(point) and whole.isdigit() and part.isdigit() and part[-1] != "0" != whole[0]


def _shortest(text: str) -> str:
    value = number(text)
    return "0" if not value else format(value.normalize(_DIGITS), "f")


def total(left: Typed, right: Typed, sign: int = 1) -> Typed:
    """Return the sum, or the difference, of two numbers."""
    first, second = number(left["N"]), number(right["N"])
    return {"N": _shortest(str(_DIGITS.add(first, sign * second)))}


def added(before: Typed | None, value: Typed) -> Typed:
    """Return what ADD makes of a value: a sum, or a union."""
    if "N" in value:
        return stored(value) if before is None else total(before, value)
    ((kind, members),) = value.items()
    if kind not in SETS:
        raise ValueError(f"ADD of {kind}")
    known = [] if before is None else before[kind]
    return {kind: sorted({*known, *members})}


def without(before: Typed | None, value: Typed) -> Typed | None:
    """Return what DELETE leaves of a set; None for nothing."""
    ((kind, members),) = value.items()
    if kind not in SETS:
        raise ValueError(f"DELETE of {kind}")
    left = [] if before is None else sorted({*before[kind]} - {*members})
    return {kind: left} if left else None


def has(whole: Typed | None, part: Typed | None) -> bool:
    """Return whether a text contains another, or a list or set an element."""
    if whole is None or part is None:
        return False
    ((kind, raw),) = whole.items()
    if kind == "L":
        return any(equal(one, part) for one in raw)
    ((part_kind, wanted),) = part.items()
    if kind in SETS:
        return part_kind == kind[0] and wanted in raw
    return kind == part_kind and kind in ("S", "B") and wanted in raw


def begins(whole: Typed | None, part: Typed) -> bool:
    """Return whether a text or binary begins with another."""
    if whole is None:
        return False
    ((kind, raw),) = whole.items()
    return kind in part and kind in ("S", "B") and raw.startswith(part[kind])


def size(value: Typed | None) -> Typed | None:
    """Return the function `size` of a value: bytes, or elements."""
    if value is None:
        return None
    ((kind, raw),) = value.items()
    if kind == "S":
        raw = raw.encode()
    if kind in ("N", "BOOL", "NULL"):
        return None
    return {"N": str(len(raw))}


def bytes_of(item: Item) -> int:
    """Return the size of an item, which is what capacity is counted by."""
    return sum(len(name.encode()) + _bytes(value) for name, value in item.items())


def _bytes(value: Typed) -> int:
    ((kind, raw),) = value.items()
    if kind == "S":
        return len(raw.encode())
    if kind == "N":
        digits = str(raw).lstrip("-").replace(".", "").strip("0")
        return (len(digits) + 1) // 2 + 1 + str(raw).startswith("-")
    if kind == "M":
        return 3 + bytes_of(raw) + len(raw)
    if kind == "L":
        return 3 + sum(1 + _bytes(part) for part in raw)
    if kind in ("BOOL", "NULL"):
        return 1
    if kind in SETS:
        return sum(_bytes({kind[0]: part}) for part in raw)
    return len(raw)
