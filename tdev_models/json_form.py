"""The JSON text in which Python values are stored: what becomes what.

Where it cannot be made, the error names the path inside the value. Values are not shown: they may
be secret; keys and numbers are.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from json.encoder import encode_basestring
from sys import getsizeof
from typing import Any

from tdev_models import settings
from tdev_models.errors import InvalidRequest, shown
from tdev_models.json_conversion import CONTAINERS, SCALARS, Refused, form_of
from tdev_models.json_decoding import MOST_NESTED, MOST_VALUES, PIECE, decode
from tdev_models.results import Undecrypted

JSON_BYTES = 32 * 1024 * 1024
TOO_LARGE = "store a reference to it instead"

_LEAST_PIECE = 1024
_JOINED = 4096
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NAME = re.compile(r"[A-Za-z_]\w{0,60}")
_c_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode


def text_of(
    field: str, value: Any, most_bytes: int = JSON_BYTES, too_large: str = TOO_LARGE
) -> str:
    """Return the JSON text of a value; a string is JSON text already, and is kept as it is.

    But for escaped surrogates and what JSON has no number for: those become what `encode` makes.

    Raises:
        InvalidRequest: the string is no JSON text, or as for `encode`.
    """
    if not isinstance(value, str) or isinstance(value, Undecrypted):
        return encode(field, value, most_bytes, too_large)
    size = sum(len(part.encode("utf-8", "surrogatepass")) for part in _slices(value))
    if size > most_bytes:
        raise InvalidRequest(field, f"has {size:,} bytes, at most {most_bytes:,}; {too_large}")
    constants: list[str] = []

    def constant(name: str) -> float:
        constants.append(name)
        return float(name)

    try:
        decoded = decode(value, constant)
        if not value.isascii():
            for part in _slices(value):
                part.encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            field,
            f"a string must be JSON text ({error}); "
            "pass the object itself, or json.dumps(...) of it",
        ) from None
    if constants or _ESCAPED_SURROGATE.search(value):
        return encode(field, decoded, most_bytes, too_large)
    return str.__str__(value)  # of an Enum that is a str, too, str() would be its name


def encode(field: str, value: Any, most_bytes: int = JSON_BYTES, too_large: str = TOO_LARGE) -> str:
    """Return the JSON text of a Python value; a string becomes a JSON string.

    The README says what becomes what. What others change in the value meanwhile may be in the text
    or not.

    Args:
        field: names the value in errors.
        value: the value.
        most_bytes: how large the text may be, in UTF-8.
        too_large: what to do where it is larger.

    Raises:
        InvalidRequest: part of the value has no JSON form or holds itself, two keys of an object
            are the same as text, or it is too large, or too deep; the path to it is in the message.
    """
    encoder = _Encoder(most_bytes, too_large)
    try:
        encoder.add(value, 0)
    except Refused as refused:
        raise InvalidRequest(field, refused.problem, refused.path) from None
    except _TooLarge as error:
        raise InvalidRequest(field, str(error)) from None
    except RecursionError:
        raise InvalidRequest(field, "is nested too deep to be encoded here; flatten it") from None
    return encoder.text()


def is_small(value: Any) -> bool:
    """Return whether a value takes so little time to encode that no thread is needed for it."""
    left, waiting = 1000, deque([value])
    while waiting:
        one = waiting.popleft()
        kind = type(one)
        if kind is str:
            left -= 1 + len(one) // 64
        elif kind in SCALARS:
            left -= 1
        elif kind in CONTAINERS and len(one) < left:
            left -= 1
            waiting.extend(one.values() if kind is dict else one)
        else:
            return False
        if left < 0:
            return False
    return True


class _TooLarge(Exception):
    """The whole cannot be stored."""


class _Encoder:
    """Writes the text in pieces, so that other threads may run between them.

    Runs of small, plain members are encoded at once, by C.
    """

    def __init__(self, most_bytes: int, too_large: str) -> None:
        self._settings = settings.current()
        self._most_bytes, self._too_large = most_bytes, too_large
        self._bytes = self._values = self._passed = 0
        self._parts: list[str] = []
        self._joined: list[str] = []
        self._open: set[int] = set()

    def text(self) -> str:
        return "".join((*self._joined, *self._parts))

    def add(self, value: Any, depth: int, piece: int = PIECE) -> None:
        """Add the text of a value.

        Args:
            value: the value.
            depth: in how many lists and objects it stands.
            piece: how large a run may be that is encoded at once.
        """
        if id(value) in self._open:
            raise Refused("holds itself; break the circle")
        form = form_of(value, self._settings.json_default)
        if type(form) in SCALARS:
            self._add_scalar(form)
            return
        if depth >= MOST_NESTED:
            raise Refused(f"is nested more than {MOST_NESTED} deep; flatten it")
        self._count(len(form))
        self._open.add(id(value))
        if type(form) is dict:
            members = list(form.items())
            if set(map(type, form)) - {str}:
                members = self._named(members)
            self._add_members(members, depth, piece, "{}")
        else:
            self._add_members(list(enumerate(form)), depth, piece, "[]")
        self._open.remove(id(value))

    def _add_members(
        self, members: list[tuple[Any, Any]], depth: int, piece: int, brackets: str
    ) -> None:
        run: list[tuple[Any, Any]] = []
        size = values = 0
        # Smaller with each level: what is measured in vain costs little in all.
        inner, levels = max(piece // 2, _LEAST_PIECE), MOST_NESTED - depth - 1
        separator = brackets[0]
        for name, member in members:
            self._passed = 0
            taken = piece - self._left_after(member, piece, levels) + getsizeof(name)
            if run and size + taken > piece:
                self._add_run(run, values, separator, depth, inner)
                run, size, values, separator = [], 0, 0, ","
            if taken > piece:
                self._add_member(name, member, separator, depth, inner)
                separator = ","
            else:
                run.append((name, member))
                size, values = size + taken, values + self._passed
        if run:
            self._add_run(run, values, separator, depth, inner)
        self._write(brackets[1] if members else brackets)

    def _left_after(self, member: Any, left: int, levels: int) -> int:
        """Return what is left of a run's bytes after a member; below 0 if it does not fit."""
        kind = type(member)
        if kind in SCALARS:
            return left - getsizeof(member)
        # Each member of a member takes 8 bytes at least: no time is spent on what cannot fit.
        if kind not in CONTAINERS or not levels or len(member) * 8 > left:
            return -1
        values = member
        if kind is dict:
            if set(map(type, member)) - {str}:
                return -1
            left -= sum(map(getsizeof, member))
            values = list(member.values())
        self._passed += len(member)
        left -= 64
        if SCALARS.issuperset(map(type, values)):
            return left - sum(map(getsizeof, values))
        for value in values:
            if left < 0:
                break
            left = self._left_after(value, left, levels - 1)
        return left

    def _add_run(
        self, run: list[tuple[Any, Any]], values: int, separator: str, depth: int, piece: int
    ) -> None:
        """Add members, which hold so many values, after a separator."""
        named = isinstance(run[0][0], str)
        try:
            text = _c_encode(dict(run) if named else [member for _, member in run])
            self._write(separator + text[1:-1])
            self._count(values)
        except (ValueError, Refused):  # a NaN, say: each member alone tells its own path
            for name, member in run:
                self._add_member(name, member, separator, depth, piece)
                separator = ","

    def _add_member(
        self, name: str | int, member: Any, separator: str, depth: int, piece: int
    ) -> None:
        self._write(separator)
        try:
            if isinstance(name, str):
                self._add_scalar(name)
                self._write(":")
            self.add(member, depth + 1, piece)
        except Refused as refused:
            refused.steps.append(_step(name))
            raise

    def _named(self, members: list[tuple[Any, Any]]) -> list[tuple[str, Any]]:
        """Return members under the text of their keys: that of strings, else the JSON text."""
        keys: dict[str, Any] = {}
        for key, _ in members:
            inner = _Encoder(PIECE, "use a shorter key")
            try:
                inner.add(key, 0)
            except Refused as refused:
                refused.steps.append(f"[key {shown(key)}]")
                raise
            name = inner.text()
            name = json.loads(name) if name[0] == '"' else name
            if name in keys:
                one, other = shown(keys[name]), shown(key)
                raise Refused(f"the keys {one} and {other} are the same as text; rename one")
            keys[name] = key
        return list(zip(keys, (member for _, member in members), strict=True))

    def _add_scalar(self, value: Any) -> None:
        if type(value) is str:
            self._write('"')
            for part in _slices(value):
                self._write(encode_basestring(part)[1:-1])
            self._write('"')
        elif type(value) is float and not math.isfinite(value):
            if self._settings.json_nan == "refuse":
                raise Refused(f"{value} is no JSON; pass None, or configure(json_nan='null')")
            self._write("null")
        else:
            try:
                self._write(_c_encode(value))
            except ValueError as error:  # an int of more digits than Python reads
                raise Refused(f"{error}; pass it as text") from None

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise _TooLarge(f"has more than {MOST_VALUES:,} values; {self._too_large}")

    def _write(self, text: str) -> None:
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError:
            raise Refused("holds a lone surrogate, which has no UTF-8 form") from None
        self._bytes += size
        if self._bytes > self._most_bytes:
            raise _TooLarge(f"has over {self._most_bytes:,} bytes as JSON; {self._too_large}")
        self._parts.append(text)
        if len(self._parts) > _JOINED:
            self._joined.append("".join(self._parts))
            self._parts.clear()


def _step(name: str | int) -> str:
    """Return the step of a path to a member."""
    if isinstance(name, int):
        return f"[{name}]"
    return f".{name}" if _NAME.fullmatch(name) else f"[{shown(name)}]"


def _slices(text: str) -> list[str]:
    return [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
