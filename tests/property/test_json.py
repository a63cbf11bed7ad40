"""JSON values of any shape come back, in one piece or in many."""

from __future__ import annotations

import json
import math
import random
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tdev_models import InvalidRequest, json_decoding, json_form
from tdev_models.json_decoding import decode
from tdev_models.json_form import encode

text = st.text(st.characters(exclude_categories=["Cs"]))
quoted = st.text('"\\\\,[]{}:\\u00e9😀 a\n', max_size=30)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text | quoted
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(text | quoted, inner),
    max_leaves=60,
)
special = st.recursive(
    scalars | st.binary() | st.timedeltas() | st.dates() | st.uuids(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(st.integers()),
    max_leaves=20,
)


@pytest.fixture(params=[(64 * 1024, 1024 * 1024), (16, 64), (1, 16)], autouse=True)
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large values are tried as small ones, cut in small pieces."""
    piece, window = request.param
    monkeypatch.setattr(json_decoding, "PIECE", piece)
    monkeypatch.setattr(json_decoding, "_WINDOW", window)
    monkeypatch.setattr(json_form, "PIECE", max(piece, 32))
    monkeypatch.setattr(json_form, "_LEAST_PIECE", 0)


def expected(value: Any) -> Any:
    """Return what the README says comes back."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case timedelta():
            return value.total_seconds()
        case list() | tuple():
            return [expected(one) for one in value]
        case set():
            return sorted(value)
        case dict():
            return {key: expected(one) for key, one in value.items()}
        case None | bool() | int() | float() | str():
            return value
    return json.loads(encode("f", value))


@given(values)
def test_a_json_value_comes_back(value: Any) -> None:
    encoded = encode("f", value)
    want = json.dumps(expected(value), ensure_ascii=False, separators=(",", ":"))
    assert encoded == want
    for stored in (encoded, json.dumps(expected(value), indent=2), json.dumps(expected(value))):
        assert json.dumps(decode(stored)) == json.dumps(expected(value))


@given(special)
def test_a_value_comes_back_in_its_documented_form(value: Any) -> None:
    assert json.dumps(decode(encode("f", value))) == json.dumps(expected(value))


@settings(max_examples=300)
@given(values, st.data())
def test_what_json_refuses_is_refused(value: Any, data: st.DataObject) -> None:
    whole = json.dumps(expected(value), ensure_ascii=False)
    at = data.draw(st.integers(0, len(whole)))
    other = data.draw(st.sampled_from(['"', ",", "[", "]", "{", "}", ":", "\\\\", " ", "1", ""]))
    broken = whole[:at] + other + whole[at + data.draw(st.integers(0, 2)) :]
    try:
        want = json.loads(broken)
        json.dumps(want, allow_nan=False)  # "1e400" is infinity for Python
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            decode(broken)
    else:
        assert json.dumps(decode(broken)) == json.dumps(want)


def test_a_key_that_comes_twice_has_its_last_value() -> None:
    inner = "[" + ",".join(["[1,[2]]"] * 30_000) + "]"
    twice = f'{{"a":1,"b":{inner},"c\\\\":0,"b":2,"a":{inner},"d":[]}}'
    assert list(decode(twice).items()) == list(json.loads(twice).items())


@pytest.mark.parametrize("seed", range(5))
def test_large_random_values_come_back(seed: int) -> None:
    dice = random.Random(seed)

    def some(levels: int) -> Any:
        match dice.randrange(7 if levels else 3):
            case 0:
                return dice.random()
            case 1:
                return dice.randrange(10**9)
            case 2:
                return dice.choice(['"', "\\\\", "é,[", "x{"]) * dice.randrange(300)
            case 3 | 4:
                return [some(levels - 1) for _ in range(dice.randrange(12))]
        return {f"k{n}\\\\": some(levels - 1) for n in range(dice.randrange(12))}

    value = [some(3) for _ in range(9)]
    assert decode(encode("f", value)) == value
    assert decode(json.dumps(value, indent=1)) == value


@pytest.mark.parametrize("levels", [200, 201, 250, 100_000])
def test_depth_is_bounded_in_both_directions(levels: int) -> None:
    deep = "[" * levels + "]" * levels
    if levels == 200:
        assert encode("f", decode(deep)) == deep
    elif levels > 210:
        with pytest.raises(ValueError, match="nested more than 200 deep"):
            decode(deep)
    value: Any = 0
    for _ in range(levels):
        value = [value]
    if levels > 200:
        with pytest.raises(InvalidRequest, match="nested more than 200 deep"):
            encode("f", value)
