"""How deep JSON may be nested is the package's own limit, the same on every Python."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tdev_models import InvalidRequest, sync, validation
from tdev_models.json_form import MOST_LEVELS

# Brackets that do not nest, and a string that ends in an escape.
NOISE = '[[{{"]}\\" \\\\'
KINDS = pytest.mark.parametrize(
    "given_as", [lambda value: value, json.dumps], ids=["value", "text"]
)


def nested(levels: int) -> Any:
    value: Any = NOISE
    for level in range(levels):
        value = [NOISE, value] if level % 2 else {NOISE: value, "other": [{}] if level else 1}
    return value


@KINDS
def test_as_many_levels_as_allowed_come_back_equal(given_as: Callable[[Any], Any]) -> None:
    value = nested(MOST_LEVELS)
    stored = validation.json_text(10**6, "")("output_data", given_as(value))
    assert json.loads(stored) == value


@KINDS
@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 900])
def test_more_levels_are_refused_before_anything_is_sent(
    given_as: Callable[[Any], Any], levels: int
) -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        value = given_as(nested(levels))
        with pytest.raises(
            InvalidRequest, match=r"^output_data: .*more than 200 levels"
        ) as refused:
            sync.update_agent_execution(execution_id="p-parser", output_data=value)
    finally:
        sys.setrecursionlimit(limit)
    assert "flatten it" in str(refused.value)


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1"])
def test_text_of_any_depth_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^output_data: "):
        sync.update_agent_execution(execution_id="p-parser", output_data=text)


@pytest.mark.parametrize("piece", ['"', '\\"', "[", "[]", '{"', "\\\\"])
def test_looking_at_the_depth_takes_linear_time(piece: str) -> None:
    rule = validation.json_text(10**9, "")

    def seconds(size: int) -> float:
        value = ["[]" * 101, piece * size, ["{}"] * size]
        begun = time.thread_time()
        rule("output_data", value)
        return time.thread_time() - begun

    least = min(seconds(50_000) for _ in range(5))
    assert min(seconds(800_000) for _ in range(3)) < 60 * least  # 256, were it quadratic


def test_the_depth_is_seen_whatever_strings_hold() -> None:
    dice = random.Random(1)
    rule = validation.json_text(10**6, "")
    for _ in range(200):
        levels = dice.randint(MOST_LEVELS - 3, MOST_LEVELS + 3)
        value: Any = 1
        for _ in range(levels):
            word = "".join(dice.choices('[]{}"\\,:\n é', k=dice.randrange(6)))
            value = dice.choice([[word, value], [value, word], {word: value}, {"": value, "x": 1}])
        text = json.dumps(value, ensure_ascii=dice.choice([True, False]))
        if levels <= MOST_LEVELS:
            assert rule("output_data", text) == text
        else:
            with pytest.raises(InvalidRequest, match="200 levels"):
                rule("output_data", text)
