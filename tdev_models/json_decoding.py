"""Read JSON text: bounded in depth and number of values, and piece by piece where it is large.

The C function behind `json.loads` holds the interpreter's lock until it is done: for 10 MB no other
thread, and so no event loop, runs for a fifth of a second. Here it gets pieces of some 64 KB, and
other threads run between them. Each character is scanned once and decoded once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from math import isinf
from typing import Any

from tdev_models.errors import shown

MOST_NESTED = 200
MOST_VALUES = 1_000_000
"""With 32 MB of `[],[],...` a process would take 0.9 GB for 11 million lists."""

PIECE = 64 * 1024
# What one match of a pattern may pass over: some milliseconds.
_WINDOW = 256 * 1024

_SPACE = " \t\n\r"
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rf'(?:[^",\[\]{{}}]++|{_STRING})*+'
# What holds no list or object is passed over whole, if it is short.
_LEAF = rf"(?:\[(?:{_FLAT},){{0,99}}+{_FLAT}\]|\{{(?:{_FLAT},){{0,99}}+{_FLAT}\}})"
_NO_STRUCTURE = rf'(?:[^",\[\]{{}}]++|{_STRING}|{_LEAF})*+'
# Up to the next bracket, or to the last of some commas before it.
_SCAN = rf"(?:{_NO_STRUCTURE},){{0,999}}+(?:{_NO_STRUCTURE}([\[\]{{}}]))?+"
_IN_STRING = r'[^"\\]*+(?:\\.[^"\\]*+)++|[^"\\]++'
# What a string holds; pairs of escapes that are one character stay together.
_CHARACTERS = (
    r'(?:[^"\\]++|\\[^u]|\\u(?![dD][89abAB])[\da-fA-F]{4}'
    r"|\\u[dD][89abAB][\da-fA-F]{2}\\u[\da-fA-F]{4})++"
)

_LONGEST_CHARACTER = 2 * len(r"\u0000")

_CLOSING = {"[": "]", "{": "}"}


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL)  # not at import: it takes milliseconds


def _finite(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise ValueError(f"{shown(text)} is larger than any number can be")
    return number


def _made(constant: Callable[[str], Any]) -> Callable[[str], Any]:
    return json.JSONDecoder(parse_constant=constant, parse_float=_finite).decode


# Making one takes longer than using it.
_usual = _made(float)


def _decoder(constant: Callable[[str], Any]) -> Callable[[str], Any]:
    return _usual if constant is float else _made(constant)


def decode(text: str, constant: Callable[[str], Any] = float) -> Any:
    """Return the value of a JSON text.

    Args:
        text: the text.
        constant: makes a value of NaN, Infinity or -Infinity, which Python's `json` writes.

    Raises:
        ValueError: it is no JSON text, nested more than 200 deep, of over a million values, or has
            a number that no float holds, such as 1e400.
    """
    if len(text) <= PIECE and text.count("[") + text.count("{") <= MOST_NESTED:
        return _decoder(constant)(text)
    return _Pieces(text, constant).value()


class _Open:
    """A list or an object of which the end was not reached.

    Attributes:
        bracket: what it begins with.
        start: where.
        rest: where the text begins that is not decoded.
        value: its members so far; None while nothing of it is decoded.
    """

    __slots__ = ("bracket", "rest", "start", "value")

    def __init__(self, bracket: str, start: int) -> None:
        self.bracket, self.start, self.rest = bracket, start, start + 1
        self.value: Any = None


class _Pieces:
    def __init__(self, text: str, constant: Callable[[str], Any]) -> None:
        self._text = text
        self._decode = _decoder(constant)
        # As most commas may stand in strings, values are only counted where there may be too many.
        at_most = sum(_separators(text, at, at + PIECE) for at in range(0, len(text), PIECE))
        self._counts_values = at_most > MOST_VALUES
        self._values = 0
        # The text is taken for the only member of a list.
        self._open = [_Open("[", -1)]

    def value(self) -> Any:
        text, at, scan = self._text, 0, _pattern(_SCAN)
        while at < len(text):
            match = scan.match(text, at, at + _WINDOW)
            end = match.end() if match else at
            if end == at:
                at = self._pass_without_structure(at)
                continue
            bracket = match and match[1]
            if bracket is None:
                self._flush(end - 1)  # the comma begins the next piece
            elif bracket in _CLOSING:
                self._begin(bracket, end - 1)
            else:
                self._close(bracket, end - 1)
            at = end
        (whole, *unclosed) = self._open
        if unclosed:
            raise ValueError(f"a {unclosed[-1].bracket} at {unclosed[-1].start} is never closed")
        self._add(whole, len(text))
        if len(whole.value) != 1:
            raise ValueError("more than one value, or none")
        return whole.value[0]

    def _begin(self, bracket: str, start: int) -> None:
        if len(self._open) > MOST_NESTED:
            raise ValueError(f"nested more than {MOST_NESTED} deep")
        self._open.append(_Open(bracket, start))

    def _close(self, bracket: str, end: int) -> None:
        closed = self._open.pop()
        if not self._open or _CLOSING[closed.bracket] != bracket:
            raise ValueError(f"a {bracket} at {end} closes nothing")
        if closed.value is None and end - closed.start <= PIECE:
            self._flush(end + 1)  # it is decoded with what stands around it
            return
        self._add(closed, end)
        self._add_member(closed.value, closed.start, end + 1)

    def _flush(self, end: int) -> None:
        """Decode what stands before `end`, the end of a member, if it is enough for a piece."""
        if end - self._open[-1].rest > PIECE:
            self._add(self._open[-1], end)

    def _add(self, to: _Open, end: int) -> None:
        """Decode the members up to `end`, and add them."""
        piece = self._next_piece(to, end)
        if piece is None:
            return
        members = self._members(to, f"{to.bracket}{piece}{_CLOSING[to.bracket]}")
        if not members and to.value:
            raise ValueError(f"nothing between a comma and {end}")
        self._extend(to, members)
        to.rest = end

    def _add_member(self, value: Any, start: int, end: int) -> None:
        """Add a member that stands from `start` to `end`, and those before it."""
        to = self._open[-1]
        piece = self._next_piece(to, start)
        if piece is None:
            raise ValueError(f"no comma before {start}")
        members = self._members(to, f"{to.bracket}{piece} 0{_CLOSING[to.bracket]}")
        if isinstance(members, list):
            members[-1] = value
        else:
            members[self._decode(_last_string(piece))] = value
        self._extend(to, members)
        to.rest = end

    def _next_piece(self, to: _Open, end: int) -> str | None:
        """Return the text up to `end`, without the comma at its start; None if it is blank."""
        piece = self._text[to.rest : end]
        if self._counts_values:
            bare = _pattern(_STRING).sub("", piece)
            self._values += _separators(bare, 0, len(bare)) - bare.count("[]") - bare.count("{}")
            if self._values > MOST_VALUES:
                raise ValueError(f"more than {MOST_VALUES:,} values")
        if not to.value:
            return piece
        before, comma, after = piece.partition(",")
        if before.strip(_SPACE):
            raise ValueError(f"no comma at {to.rest}")
        return after if comma else None

    def _members(self, to: _Open, text: str) -> Any:
        try:
            return self._decode(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} in or after the {to.bracket} at {to.start}") from None

    @staticmethod
    def _extend(to: _Open, members: Any) -> None:
        if to.value is None:
            to.value = members
        elif isinstance(members, list):
            to.value += members
        else:
            to.value |= members

    def _pass_without_structure(self, at: int) -> int:
        """Return where to go on after what holds neither bracket nor comma."""
        text = self._text
        match = _pattern(_NO_STRUCTURE).match(text, at, at + _WINDOW)
        start = match.end() if match else at
        if start == len(text) or text[start] != '"':
            return start
        end = _string_end(text, start)
        if not _pattern(r"[ \t\n\r]*:").match(text, end):
            self._add_member(self._long_string(start + 1, end - 1), start, end)
        return end

    def _long_string(self, start: int, end: int) -> str:
        pieces, text = [], self._text
        while start < end:
            cut = min(start + PIECE, end)
            if cut < end:
                near = max(start, cut - _LONGEST_CHARACTER)
                near += _backslashes_before(text[start:near], near - start) % 2
                match = _pattern(_CHARACTERS).match(text, near, cut)
                cut = match.end() if match else end
            pieces.append(self._decode(f'"{text[start:cut]}"'))
            start = cut
        return "".join(pieces)


def _separators(text: str, start: int, end: int) -> int:
    return sum(text.count(character, start, end) for character in ",[{")


def _string_end(text: str, start: int) -> int:
    """Return where the string ends that begins at `start`."""
    at = start + 1
    while match := _pattern(_IN_STRING).match(text, at, at + _WINDOW):
        at = match.end()
    if text[at : at + 1] != '"':
        raise ValueError(f"a string at {start} is never closed")
    return at + 1


def _last_string(text: str) -> str:
    """Return the string that stands last in a text, quotes included."""
    end = start = text.rindex('"')
    while (start := text.rindex('"', 0, start)) and _backslashes_before(text, start) % 2:
        pass
    return text[start : end + 1]


def _backslashes_before(text: str, at: int) -> int:
    first = at
    while first and text[first - 1] == "\\":
        first -= 1
    return at - first
