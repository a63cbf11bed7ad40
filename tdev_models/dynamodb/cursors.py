"""Cursors: opaque, bound to the query that made them, refused when altered or used elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tdev_models.errors import InvalidRequest

_CHECK_BYTES = 9


def encode(query: tuple[Any, ...], position: Mapping[str, Any]) -> str:
    """Return the cursor of a position in a query, which is named by its parameters."""
    body = json.dumps(position, separators=(",", ":"), sort_keys=True).encode()
    return base64.urlsafe_b64encode(_check(query, body) + body).decode()


def decode(query: tuple[Any, ...], cursor: str | None) -> dict[str, Any] | None:
    """Return the position that a cursor holds; None stands for the beginning.

    Raises:
        InvalidRequest: the cursor was altered, or made by another query.
    """
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raw = b""
    check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
    if check != _check(query, body):
        problem = "is altered, or of another query; pass `page.cursor` with the same arguments"
        raise InvalidRequest("cursor", problem)
    position: dict[str, Any] = json.loads(body)
    return position


def _check(query: tuple[Any, ...], body: bytes) -> bytes:
    return hashlib.blake2b(repr(query).encode() + body, digest_size=_CHECK_BYTES).digest()
