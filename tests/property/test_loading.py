"""Items are loaded as PynamoDB loads them, and fill results as a call of the result would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st
from pynamodb.attributes import Attribute, UnicodeAttribute
from pynamodb.constants import BINARY, BOOLEAN, LIST, MAP, NUMBER, STRING, STRING_SET

from tdev_models.dynamodb.encryption import listed_result
from tdev_models.models import (
    TABLES,
    AgentExecution,
    BaseModel,
    PipelineSession,
    UserProject,
    WorkerItem,
)
from tdev_models.results import Execution, Project, Record, Session
from tdev_models.security.fields import SUFFIX

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
_numbers = st.one_of(
    st.integers(-(10**40), 10**40).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["0", "-0", "0.0", "1E+70", "1e-61", "9.9E125", "1E-130", "-3.5E-7", "12345.6"]
    ),
)
_damaged_numbers = st.sampled_from(["", ".", "x", "NaN", "Infinity", "1.2.3", "--1"]) | _texts
_attempts = st.dictionaries(
    st.sampled_from(["0", "1", "19"]),
    st.fixed_dictionaries(
        {
            MAP: st.dictionaries(
                st.sampled_from(["number", "status", "start_time", "of_a_newer_release"]),
                st.fixed_dictionaries({NUMBER: _numbers}) | st.fixed_dictionaries({STRING: _texts}),
            )
        }
    ),
    max_size=3,
)
_by_type: dict[str, st.SearchStrategy[Any]] = {
    STRING: _texts | st.sampled_from(['{"a": [1, 2.5, null]}', "[]", "NaN", "{", "1e999"]),
    NUMBER: _numbers | _damaged_numbers,
    BINARY: st.binary(max_size=9),
    BOOLEAN: st.booleans(),
    LIST: st.lists(st.fixed_dictionaries({STRING: _texts}), max_size=3),
    MAP: _attempts,
    STRING_SET: st.lists(_texts, min_size=1, max_size=3),
}
_of_another_type = st.one_of(
    st.just({"NULL": True}),
    *(st.fixed_dictionaries({kind: values}) for kind, values in _by_type.items()),
)


def _typed(attribute: Attribute[Any]) -> st.SearchStrategy[Any]:
    usual = st.fixed_dictionaries({attribute.attr_type: _by_type[attribute.attr_type]})
    return st.integers(0, 9).flatmap(lambda dice: usual if dice else _of_another_type)


def _items(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    known = {one.attr_name: _typed(one) for one in model.get_attributes().values()}
    unknown = st.dictionaries(st.sampled_from(["zz", "of_a_newer_release"]), _of_another_type)
    return st.tuples(st.fixed_dictionaries({}, optional=known), unknown).map(
        lambda parts: {**parts[1], **parts[0]}
    )


def _outcome(load: Callable[[Any], BaseModel], item: dict[str, Any]) -> tuple[str, ...]:
    try:
        loaded = load(item)
    except Exception as error:  # whatever it is, it must be the same
        return type(error).__name__, str(error)
    values = sorted(loaded.attribute_values.items())
    return type(loaded).__name__, repr(values)  # 1 is not 1.0


@pytest.mark.parametrize("model", [*TABLES, WorkerItem])
@given(data=st.data())
def test_an_item_is_loaded_as_pynamodb_does(model: type[BaseModel], data: st.DataObject) -> None:
    item = data.draw(_items(model))
    # Of several errors PynamoDB raises that of the attribute which its model names first.
    order = {one.attr_name: at for at, one in enumerate(model.get_attributes().values())}
    in_order = dict(sorted(item.items(), key=lambda pair: order.get(pair[0], -1)))
    expected = _outcome(model.from_raw_data, item)
    assert _outcome(model.loaded, in_order) == expected
    if expected[0] == model.__name__:
        assert _outcome(model.loaded, item) == expected


def test_defaults_are_loaded_as_pynamodb_does() -> None:
    class Defaults(BaseModel):
        class Meta:
            table_name = "defaults"

        key = UnicodeAttribute(hash_key=True)
        made = UnicodeAttribute(default=lambda: "made")
        zero = UnicodeAttribute(default="0", null=True)

    for item in ({}, {"key": {STRING: "k"}, "zero": {STRING: "1"}}, {"made": {"NULL": True}}):
        loaded = Defaults.loaded(item)
        by_pynamodb = super(BaseModel, Defaults).from_raw_data(item)
        assert loaded.attribute_values == by_pynamodb.attribute_values


@pytest.mark.parametrize(
    ("kind", "model"),
    [(Session, PipelineSession), (Project, UserProject), (Execution, AgentExecution)],
)
@given(data=st.data())
def test_a_result_has_what_its_model_has(
    kind: type[Record], model: type[BaseModel], data: st.DataObject
) -> None:
    attributes = model.get_attributes()
    in_clear = [name for name in attributes if not name.endswith(SUFFIX)]
    given_ones = data.draw(st.sets(st.sampled_from(in_clear)))
    item = model(**{name: f"a {name}" for name in given_ones})
    names = [name for name in kind.__dataclass_fields__ if name in attributes]  # type: ignore[attr-defined]
    result = listed_result(kind, item)
    assert {name: result[name] for name in names} == {name: getattr(item, name) for name in names}
    assert result == kind(**{name: result[name] for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]
    assert list(result) == list(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        result.status = "x"
