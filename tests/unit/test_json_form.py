"""What becomes what in JSON, and what is refused, with its path."""

from __future__ import annotations

import asyncio
import json
import uuid
from array import array
from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from pydantic import BaseModel

from tdev_models import InvalidRequest, Settings, settings, sync
from tdev_models.json_form import encode, is_small, text_of
from tdev_models.results import Execution, MetricRow, Page, Session


class Color(Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(IntEnum):
    HIGH = 3


class Kind(StrEnum):
    A = "a"


@dataclass
class Point:
    x: Any
    when: date


class Shape(BaseModel):
    name: str
    at: datetime


class Result:
    def to_dict(self) -> dict[str, Any]:
        return {"output": Point(1, date(2026, 1, 2))}


class Matrix(np.ndarray[Any, Any]):
    """As one of numpy: its rows are matrices."""

    def __getitem__(self, key: Any) -> Any:
        return np.atleast_2d(super().__getitem__(key))

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))


class Frame:
    """As a DataFrame of pandas: what it iterates over are its columns' names."""

    ndim, size = 2, 4

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def to_dict(self) -> dict[str, Any]:
        return {"a": {0: 1, 1: 2}, "b": {0: 3, 1: 4}}


class Broken:
    def to_dict(self) -> object:
        raise KeyError("inside")


Pair = namedtuple("Pair", "a b")
MOMENT, UNIQUE = datetime(2026, 1, 2, tzinfo=UTC), uuid.UUID(int=7)
FORMS: list[tuple[Any, Any]] = [
    ("text", "text"),
    ((1, 2.0), [1, 2.0]),
    (Pair(1, 2), [1, 2]),
    (deque([1]), [1]),
    (range(2), [0, 1]),
    (array("d", [1.5]), [1.5]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset("ba"), ["a", "b"]),
    ({"a": 1}.keys(), ["a"]),
    ({"a": 1}.values(), [1]),
    (OrderedDict(a=1), {"a": 1}),
    (UserDict(a=1), {"a": 1}),
    (Session(session_id="s", status="ACTIVE"), Session(session_id="s", status="ACTIVE").to_dict()),
    (b"\x00\xff", "AP8="),
    (bytearray(b"a"), "YQ=="),
    (memoryview(b"a"), "YQ=="),
    (MOMENT, "2026-01-02T00:00:00+00:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (time(1, 2), "01:02:00"),
    (timedelta(minutes=1, milliseconds=500), 60.5),
    (UNIQUE, str(UNIQUE)),
    (PurePosixPath("a/b"), "a/b"),
    (Decimal("1.25"), 1.25),
    (Color.RED, "red"),
    (Color.PAIR, [1, 2]),
    (Level.HIGH, 3),
    (Kind.A, "a"),
    (
        Point(Point(1, date.min), date.max),
        {"x": {"x": 1, "when": "0001-01-01"}, "when": "9999-12-31"},
    ),
    (Shape(name="s", at=MOMENT), {"name": "s", "at": "2026-01-02T00:00:00Z"}),
    (Result(), {"output": {"x": 1, "when": "2026-01-02"}}),
    (float("nan"), None),
    (Decimal("Infinity"), None),
    (np.float64(1.5), 1.5),
    (np.float32(0.5), 0.5),
    (np.int64(2), 2),
    (np.bool_(True), True),
    (np.str_("x"), "x"),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (np.array([1.0, np.nan]), [1.0, None]),
    (np.zeros((2, 2)).view(Matrix), [[0, 0], [0, 0]]),
    (np.zeros((0, 3)), []),
    (Frame(), {"a": {"0": 1, "1": 2}, "b": {"0": 3, "1": 4}}),
    (np.datetime64("2026-01-02"), "2026-01-02"),
]
KEYS: list[tuple[Any, str]] = [
    (1, "1"),
    (1.5, "1.5"),
    (True, "true"),
    (None, "null"),
    (Color.RED, "red"),
    (Level.HIGH, "3"),
    (("a", 1), '["a",1]'),
    (date(2026, 1, 2), "2026-01-02"),
    (UNIQUE, str(UNIQUE)),
    (b"a", "YQ=="),
    (frozenset([1]), "[1]"),
    (np.int64(2), "2"),
]


@pytest.mark.parametrize(("value", "form"), FORMS)
def test_a_value_becomes_what_the_readme_says(value: Any, form: Any) -> None:
    assert json.loads(encode("f", value)) == form
    assert json.loads(encode("f", {"x": [0, value, {"y": value}]})) == {"x": [0, form, {"y": form}]}


@pytest.mark.parametrize(("key", "text"), KEYS)
def test_a_key_becomes_text(key: Any, text: str) -> None:
    assert json.loads(encode("f", {"first": 0, key: [key]})).keys() == {"first", text}


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def circle() -> Any:
    value: dict[str, Any] = {"many": [0] * 5000}
    value["self"] = [value]
    return value


def bomb() -> Any:
    value: Any = [0]
    for _ in range(100):
        value = [value, value]
    return value


REFUSED: list[tuple[Any, str]] = [
    (
        {"files": [0, {"size": object()}]},
        r"f.files\[1\].size: object has no JSON form; give it a to_d",
    ),
    ({"a b": Point}, r"f\['a b'\]: a class has no JSON form; pass its name, or its result"),
    ([lambda: 0], r"f\[0\]: function has no JSON form; pass its name, or its result"),
    ([iter([1])], r"f\[0\]: list_iterator has no JSON form"),
    ([1 + 2j], r"f\[0\]: complex has no JSON form \(\(1\+2j\)\); pass its parts"),
    (
        {"price": Decimal("0.1000000000000000000001")},
        r"f.price: Decimal has no JSON form \(Decimal\('0.1.*'\)\); a float cannot",
    ),
    ({1: 0, "1": 0}, r"f: the keys 1 and '1' are the same as text; rename one"),
    ({"x": {(1,): 0, "[1]": 0}}, r"f.x: the keys \(1,\) and '\[1\]' are the same as text"),
    ({object: 0}, r"f\[key <class 'object'>\]: a class has no"),
    (["a\ud800"], r"f\[0\]: holds a lone surrogate, which has no UTF-8 form"),
    ({"a\ud800": 1}, r"f\['a\\ud800'\]: holds a lone surrogate"),
    ([0, 10**5000], r"f\[1\]: Exceeds the limit \(4300 digits\).*; pass it as text"),
    (nested(201), r"f(\[0\])+.*\[0\]: is nested more than 200 deep; flatten it"),
    (nested(5000), r"f(\[0\])+.*\[0\]: is nested more than 200 deep; flatten it"),
    (circle(), r"f.self\[0\]: holds itself; break the circle"),
    (bomb(), r"f: has more than 1,000,000 values; store a reference to it instead"),
    ([[]] * 1_000_001, r"f: has more than 1,000,000 values"),
    (range(10**9), r"f: has 1,000,000,000 values, at most 1,000,000"),
    (np.zeros((2000, 2000)), r"f: has 4,000,000 values, at most 1,000,000"),
    (["x" * 2**25], r"f: has over 33,554,432 bytes as JSON; store a reference to it instead"),
    ([b"x" * 2**25], r"f: has over 33,554,432 bytes"),
    ({"r": Broken()}, r"f.r: Broken cannot be converted \(KeyError: 'inside'\)"),
    ([MagicMock()], r"f\[0\]: MagicMock .*"),
]


@pytest.mark.parametrize(("value", "problem"), REFUSED)
def test_what_cannot_be_stored_is_refused_with_its_path(value: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{problem}") as caught:
        encode("f", value)
    assert caught.value.field == "f"
    assert len(str(caught.value)) < 400


def test_a_public_call_refuses_before_it_sends_anything() -> None:
    with pytest.raises(InvalidRequest, match=r"^output_data\[0\]: object has no JSON form"):
        sync.update_agent_execution(execution_id="p-parser", output_data=[object()])
    with pytest.raises(InvalidRequest, match=r"^metadata.a: object has no JSON form"):
        sync.save_pipeline_session(session_id="s", metadata={"a": object()})


def test_settings_convert_what_has_no_form_and_refuse_nan() -> None:
    with settings.use(json_default=lambda value: {"parts": [value.real, value.imag]}):
        assert encode("f", [1 + 2j]) == '[{"parts":[1.0,2.0]}]'
        with pytest.raises(InvalidRequest, match=r"^f: object cannot be converted \(AttributeErr"):
            encode("f", object())
    with settings.use(json_default=lambda value: value):
        with pytest.raises(InvalidRequest, match=r"^f: object is converted to object without an"):
            encode("f", object())
    with settings.use(json_nan="refuse"):
        for value in ([0.5, float("nan")], "[0.5, NaN]"):
            with pytest.raises(InvalidRequest, match=r"^f\[1\]: nan is no JSON; pass None, or"):
                text_of("f", value)
    with pytest.raises(InvalidRequest, match=r"^json_nan: 'drop' is not one of null, refuse"):
        Settings(json_nan="drop")  # type: ignore[arg-type]


def test_json_text_is_kept_but_for_nan_and_escaped_surrogates() -> None:
    text = '{"b" : 1, "a": "\\u00e9"}'
    assert text_of("f", text) == text
    assert text_of("f", '{"b" : NaN, "a": [-Infinity]}') == '{"b":null,"a":[null]}'
    assert text_of("f", '["\\uD83D\\ude00"]') == '["😀"]'
    with pytest.raises(InvalidRequest, match=r"f\.x: holds a lone surrogate"):
        text_of("f", '{"x": "\\ud83d"}')


def test_only_little_is_encoded_in_the_event_loop() -> None:
    assert all(map(is_small, ["x" * 50_000, {"a": [1, (2.5, None)] * 100}, 10**100]))
    large = ["x" * 70_000, [0] * 2000, {"a": ["x" * 70_000]}, Point(1, date.min), circle()]
    assert not any(map(is_small, large))


def test_results_are_plain_data_by_one_call() -> None:
    row = MetricRow(
        metric_name="m", count=1, sum=1, mean=1, min=1, max=1, error_rate=0, percentiles={50: 1}
    )
    assert json.loads(json.dumps(row.to_dict()))["percentiles"] == {"50": 1}
    execution: Mapping[str, Any] = Execution(execution_id="p", agent_name="parser")
    page = Page([execution], "next")
    plain = page.to_dict()
    assert plain["cursor"] == "next"
    assert json.loads(json.dumps(plain))["items"][0]["attempts"] == []
    assert plain["items"][0]["agent_name"] == "parser"


async def test_a_large_value_is_encoded_beside_the_event_loop(strict_store: Settings) -> None:
    """The loop turns hundreds of times while 5 MB are written and read; benchmarks time it."""
    value = [{"id": number, "tags": ["a", "b"]} for number in range(100_000)]
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    task = asyncio.create_task(turn())
    from tdev_models import update_agent_execution

    execution = await update_agent_execution(execution_id="p-parser", output_data=value)
    task.cancel()
    assert execution.output_data == value
    assert turns > 20
