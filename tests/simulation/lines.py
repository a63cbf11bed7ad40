"""A history in lines that a person can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def line(now: float, name: str, *what: Any) -> str:
    """Return one line: when, who, and what: a text, or a request, its answer and its fault."""
    if len(what) == 4:
        operation, request, answer, fault = what
        text = f"{_requested(operation, request)} -> {_answered(answer)}"
        what = (text, f"({fault})") if fault else (text,)
    return f"{now:9.3f} {name:4} {' '.join(what)}"


def _requested(operation: str, request: Mapping[str, Any]) -> str:
    parts = [one for part in request.get("TransactItems", ()) for one in part.values()]
    return f"{operation} {'; '.join(_part(part) for part in parts or [request])}"


def _part(part: Mapping[str, Any]) -> str:
    table = part["TableName"].rpartition("-")[2]
    key = " ".join(_value(value) for value in part.get("Key", {}).values())
    texts = [
        _filled(part[name], part)
        for name in ("KeyConditionExpression", "ConditionExpression", "UpdateExpression")
        if name in part
    ]
    return " | ".join([f"{table} {key}", *texts])


def _filled(text: str, part: Mapping[str, Any]) -> str:
    words = part.get("ExpressionAttributeNames", {}) | {
        name: _value(value) for name, value in part.get("ExpressionAttributeValues", {}).items()
    }
    for name in sorted(words, key=len, reverse=True):
        text = text.replace(name, words[name])
    return text.replace("attribute_not_exists", "no")


def _value(value: Mapping[str, Any]) -> str:
    ((kind, raw),) = value.items()
    if kind == "M":
        return f"{{{', '.join(_entries(raw))}}}"
    return str(raw)[:40]


def _entries(raw: Mapping[str, Any]) -> Iterator[str]:
    for name, value in raw.items():
        yield f"{name}: {_value(value)}"


def _answered(answer: Any) -> str:
    if isinstance(answer, BaseException):
        item = getattr(answer, "item", None)
        return f"{type(answer).__name__} {_item(item) if item else ''}"
    if "Items" in answer:
        return f"{answer['Count']} items " + "; ".join(_item(item) for item in answer["Items"])
    if "Responses" in answer:
        return "; ".join(_item(one.get("Item", {})) for one in answer["Responses"])
    return _item(answer["Item"]) if "Item" in answer else "done"


_SHOWN = (
    "session_id",
    "agent_name",
    "status",
    "fence",
    "lease_token",
    "worker_id",
    "due_at",
    "died_at",
)


def _item(item: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_value(item[name])}" for name in _SHOWN if name in item) or "nothing"
