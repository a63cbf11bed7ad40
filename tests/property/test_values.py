"""Rules that hold for all inputs."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tdev_models import InvalidRequest, validation
from tdev_models.dynamodb import cursors
from tdev_models.models.attributes import InstantAttribute, JSONTextAttribute, NumberAttribute
from tdev_models.results import AGENTS
from tdev_models.services.executions import execution_key

numbers = (
    st.integers(-(10**38) + 1, 10**38 - 1)
    | st.integers(10**37, 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=8,
)


@given(numbers)
def test_a_number_comes_back_equal_or_is_refused(number: float) -> None:
    attribute = NumberAttribute(attr_name="n")
    digits = len(str(number).strip("-0")) if isinstance(number, int) else 0
    if digits <= 38 and (number == 0 or 1e-60 <= abs(number) <= 1e60):
        assert validation.number("n", number) == number
        back = attribute.deserialize(attribute.serialize(number))
        assert back == number
        assert type(back) is type(number) or back == int(back)
    else:
        with pytest.raises(InvalidRequest, match=r"^n: "):
            validation.number("n", number)
        with pytest.raises(ValueError, match=r"^n: "):
            attribute.serialize(number)


@given(st.floats(0, 4e9))
def test_an_instant_is_kept_to_the_microsecond(seconds: float) -> None:
    attribute = InstantAttribute(attr_name="t")
    back = attribute.deserialize(attribute.serialize(seconds))
    assert math.isclose(back, seconds, abs_tol=1e-6)
    assert back == round(back, 6)


@given(json_values)
def test_a_json_value_comes_back_as_it_was(value: Any) -> None:
    attribute = JSONTextAttribute(attr_name="j")
    encode = validation.json_text(10**6, "", objects_only=True)
    back = attribute.deserialize(encode("j", value))
    assert back == value
    assert json.dumps(back) == json.dumps(value)  # 1 stays 1 and 1.0 stays 1.0


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.sampled_from(AGENTS),
)
def test_the_agent_is_read_from_the_end_of_an_id(project: str, agent: str) -> None:
    assert execution_key(f"{project}-{agent}") == (f"{project}-{agent}", agent, project)


positions = st.dictionaries(
    st.text(max_size=9),
    st.fixed_dictionaries({"S": st.text(st.characters(exclude_categories=["Cs"]), max_size=9)}),
)


def of_any_shape(position: Any) -> bool:
    return position is not None


@given(positions, st.data())
def test_a_cursor_holds_its_position_and_refuses_any_change(
    position: dict[str, Any], data: st.DataObject
) -> None:
    query = ("list", "table", 1)
    cursor = cursors.encode(query, position)
    assert cursors.decode(query, cursor, of_any_shape) == position
    with pytest.raises(InvalidRequest, match=r"^cursor: "):
        cursors.decode(("list", "table", 2), cursor, of_any_shape)
    place = data.draw(st.integers(0, len(cursor) - 1))
    other = data.draw(st.sampled_from("ABCxyz019._=!é").filter(lambda one: one != cursor[place]))
    changed = cursor[:place] + other + cursor[place + 1 :]
    if _same_bytes(cursor, changed):
        assert cursors.decode(query, changed, of_any_shape) == position
    else:
        with pytest.raises(InvalidRequest, match=r"^cursor: "):
            cursors.decode(query, changed, of_any_shape)


def _same_bytes(one: str, other: str) -> bool:
    """Whether only bits differ that base64 does not use."""
    try:
        first, second = (base64.b64decode(text, b"._", validate=True) for text in (one, other))
    except ValueError:
        return False
    return first == second
