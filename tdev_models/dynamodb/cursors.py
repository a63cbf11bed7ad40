"""Cursors: opaque, bound to the query that made them, refused when altered or used elsewhere.

The checksum finds mistakes. It has no secret, since the processes of a deployment share none, so
what a cursor holds is checked wholly, too: a forged one can name a place in its own query at most.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from tdev_models import json_decoding
from tdev_models.errors import InvalidRequest

_CHECK_BYTES = 9
# Of URLs, but no dash: a command would take a cursor that begins with it for an option.
_ALTERNATIVES = b"._"
# A position has four keys of 2 KB at most; of each, six characters a byte as JSON. Two are held.
_MOST_CHARACTERS = 200_000


def encode(query: tuple[Any, ...], position: Mapping[str, Any]) -> str:
    """Return the cursor of a position in a query, which is named by its parameters."""
    body = json.dumps(position, separators=(",", ":"), sort_keys=True).encode()
    return base64.b64encode(_check(query, body) + body, _ALTERNATIVES).decode()


def decode(
    query: tuple[Any, ...], cursor: str | None, is_position: Callable[[Any], bool]
) -> dict[str, Any] | None:
    """Return the position that a cursor holds; None stands for the beginning.

    Args:
        query: names the query, as for `encode`.
        cursor: the cursor.
        is_position: tells whether a value is one that the query could have made.

    Raises:
        InvalidRequest: the cursor was altered or forged, or made by another query.
    """
    if cursor is None:
        return None
    position = _position(query, cursor)
    if not is_position(position):
        problem = (
            "is altered, or of another query; pass that of the last page, with the same arguments"
        )
        raise InvalidRequest("cursor", problem)
    found: dict[str, Any] = position
    return found


def is_number(value: Any) -> bool:
    """Return whether a value of a cursor is a number that DynamoDB could hold."""
    return type(value) in (int, float) and -1e125 < value < 1e125


def has_shape(value: Any, shape: Mapping[str, Callable[[Any], bool]]) -> bool:
    """Return whether a value of a cursor is an object of these members."""
    return (
        isinstance(value, dict)
        and value.keys() == shape.keys()
        and all(is_right(value[name]) for name, is_right in shape.items())
    )


def _position(query: tuple[Any, ...], cursor: str) -> Any:
    """Return what a cursor holds; None if it is none of this query."""
    if not isinstance(cursor, str) or len(cursor) > _MOST_CHARACTERS:
        return None
    try:
        raw = base64.b64decode(cursor, _ALTERNATIVES, validate=True)
        check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        return json_decoding.decode(body.decode()) if check == _check(query, body) else None
    except (ValueError, binascii.Error):
        return None


def _check(query: tuple[Any, ...], body: bytes) -> bytes:
    return hashlib.blake2b(repr(query).encode() + body, digest_size=_CHECK_BYTES).digest()
