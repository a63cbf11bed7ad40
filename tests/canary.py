"""Finds in logs, at DEBUG on the root logger, what tests store: payloads, messages, tokens."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SECRET = {
    *("input_data", "output_data", "metadata", "error_message", "traceback", "description"),
    *("tech_stack", "lease_token", "write_token", "file_path"),
}
# What is shorter stands in logs by chance.
LEAST_CHARACTERS = 8
_SET = re.compile(r"(#?\w+) = (?:if_not_exists\([^,]+, )?(:\w+)")

_stored: set[str] = set()


def take(request: Mapping[str, Any]) -> None:
    """Remember the secret values that a request writes."""
    for part in request.get("TransactItems", [request]):
        one = part if part is request else next(iter(part.values()))
        names = one.get("ExpressionAttributeNames", {})
        values = one.get("ExpressionAttributeValues", {})
        for name, value in _SET.findall(one.get("UpdateExpression", "")):
            text = values.get(value, {}).get("S", "")
            if names.get(name, name) in SECRET and len(text) >= LEAST_CHARACTERS:
                _stored.add(text[:200])


@contextmanager
def watching() -> Iterator[Callable[[], list[str]]]:
    """Log everything inside the block; yield what returns the messages that leaked."""
    messages: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(self.format(record))

    root, handler = logging.getLogger(), Kept()
    level = root.level
    _stored.clear()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lambda: [one for one in messages if any(text in one for text in _stored)]
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        _stored.clear()
