"""Texts that hold others which are stored already: agents' inputs hold the outputs before them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

E = TypeVar("E")

_EDGE_BYTES = 64
# What begins like a stored text and is none is looked at so often.
_TRIES = 8
MOST_PARTS = 64


@dataclass(frozen=True, slots=True)
class StoredText(Generic[E]):
    """A text that is stored, and how to find it in another.

    Attributes:
        place: where it is stored.
        size: its length in bytes; 0 where it cannot be found in others.
        sha256: its hash.
        head: its first bytes.
        tail: its last bytes.
    """

    place: E
    size: int = 0
    sha256: str = ""
    head: bytes = field(default=b"", repr=False)
    tail: bytes = field(default=b"", repr=False)


def edges(data: bytes) -> tuple[bytes, bytes]:
    """Return the head and the tail by which a text is found in others."""
    return data[:_EDGE_BYTES], data[-_EDGE_BYTES:]


def cut(data: bytes, stored: Iterable[StoredText[E]]) -> tuple[list[tuple[int, E]], bytes]:
    """Return where which stored texts begin in a text, in order, and what is left without them."""
    found: list[tuple[int, int, E]] = []
    for text in sorted(stored, key=lambda text: -text.size):
        for start in _starts(data, text):
            end = start + text.size
            if len(found) < MOST_PARTS and all(end <= at or to <= start for at, to, _ in found):
                found.append((start, end, text.place))
    found.sort(key=lambda part: part[0])
    ends = [0, *(end for _, end, _ in found)]
    starts = [*(start for start, _, _ in found), len(data)]
    rest = b"".join(data[end:start] for end, start in zip(ends, starts, strict=True))
    return [(start, place) for start, _, place in found], rest


def _starts(data: bytes, text: StoredText[Any]) -> Iterator[int]:
    """Yield where a text stands in another."""
    start, tries = 0, 0
    while text.size and tries < _TRIES:
        start = data.find(text.head, start, len(data) - text.size + len(text.head))
        if start < 0:
            break
        end = start + text.size
        if (
            data.startswith(text.tail, end - len(text.tail))
            and hashlib.sha256(data[start:end]).hexdigest() == text.sha256
        ):
            yield start
            start = end
        else:
            start, tries = start + 1, tries + 1


def join(rest: bytes, parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the text of which `cut` has left the rest.

    Raises:
        ValueError: a part cannot have been where it is said to be.
    """
    pieces: list[bytes] = []
    length = used = 0
    for start, part in parts:
        gap = start - length
        if not 0 <= gap <= len(rest) - used:
            raise ValueError("a part is out of place")
        pieces += [rest[used : used + gap], part]
        used, length = used + gap, start + len(part)
    return b"".join([*pieces, rest[used:]])
