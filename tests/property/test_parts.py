"""A text that others are cut out of is the same when they are put in again."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from tdev_models.dynamodb.parts import StoredText, cut, edges, join

# Few letters, so that much begins alike and stands in others.
TEXTS = st.binary(min_size=0, max_size=400).map(lambda data: bytes(byte % 3 for byte in data))


def stored(place: int, data: bytes) -> StoredText[int]:
    sha256 = hashlib.sha256(data).hexdigest()
    return StoredText(place, len(data), sha256, *edges(data))


@given(st.lists(TEXTS, max_size=6), st.lists(st.integers(0, 5) | TEXTS, max_size=12))
def test_what_is_cut_is_joined_again(known: list[bytes], pieces: list[int | bytes]) -> None:
    filled = [
        piece if isinstance(piece, bytes) else known[piece] if piece < len(known) else b""
        for piece in pieces
    ]
    data = b"".join(filled)
    parts, rest = cut(data, [stored(place, text) for place, text in enumerate(known)])
    assert len(rest) + sum(len(known[place]) for _, place in parts) == len(data)
    assert join(rest, [(start, known[place]) for start, place in parts]) == data


def test_each_output_is_found_in_an_input_that_holds_them_all() -> None:
    outputs = [
        f'{{"name":"{number}","code":"{number * 7919}"}}'.encode() * 9 for number in range(9)
    ]
    data = b'{"request":"a todo app",' + b",".join(b'"x":' + output for output in outputs) + b"}"
    parts, rest = cut(data, [stored(*pair) for pair in enumerate(outputs)])
    assert [place for _, place in parts] == list(range(9))
    assert rest == b'{"request":"a todo app",' + b",".join([b'"x":'] * 9) + b"}"


@pytest.mark.parametrize("parts", [[(-1, b"x")], [(9, b"x")], [(2, b"x"), (1, b"x")]])
def test_parts_out_of_place_are_refused(parts: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ValueError, match="out of place"):
        join(b"rest", parts)
