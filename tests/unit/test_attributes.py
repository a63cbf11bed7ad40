"""No attribute is half there: what its declaration says stands wherever else it must stand."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from pynamodb.indexes import Index

from tdev_models.errors import InvalidRequest
from tdev_models.models import TABLES, AgentExecution, BaseModel, PipelineSession, UserProject
from tdev_models.models.attributes import Declared, declared
from tdev_models.models.indexes import ListIndex
from tdev_models.results import Execution, Project, Record, Session
from tdev_models.services.sessions import checked_session
from tdev_models.validation import PARTITION_KEY_BYTES, SORT_KEY_BYTES, Rule, key, text

RESULTS: dict[type[BaseModel], type[Record]] = {
    PipelineSession: Session,
    AgentExecution: Execution,
    UserProject: Project,
}
RETURNED = [
    (model, name, facts)
    for model in RESULTS
    for name, facts in declared(model).items()
    if facts.returned
]
INDEXES = [(model, index) for model in TABLES for index in model._indexes.values()]
INDEX_KEYS = [
    (model, index, attribute) for model, index in INDEXES for attribute in index.Meta.attributes
]


@pytest.mark.parametrize("model", TABLES)
def test_every_attribute_is_declared_with_its_facts(model: type[BaseModel]) -> None:
    bare = model.get_attributes().keys() - declared(model).keys()
    assert not bare, (
        f"{model.__name__}: {bare} are of PynamoDB's own classes; use those of models/attributes.py"
    )


@pytest.mark.parametrize(("model", "result"), RESULTS.items())
def test_what_is_stored_is_returned(model: type[BaseModel], result: type[Record]) -> None:
    returned = {name for owner, name, _ in RETURNED if owner is model}
    fields: set[str] = set(result.__dataclass_fields__)  # type: ignore[attr-defined]
    assert not returned - fields, (
        f"{model.__name__} stores {returned - fields}, and nobody can read it back: add the field "
        f"to {result.__name__} in results.py, or declare the attribute with returned=False"
    )
    assert not fields - returned, (
        f"{result.__name__} has {fields - returned}, and {model.__name__} does not: declare the "
        f"attribute in {model.__module__}, without returned=False"
    )


@pytest.mark.parametrize(("model", "name", "facts"), RETURNED)
def test_of_what_is_returned_is_said_whether_lists_show_it(
    model: type[BaseModel], name: str, facts: Declared
) -> None:
    is_key = name in {attribute.attr_name for attribute in model.key_attributes() if attribute}
    assert is_key or facts.listed is not None, (
        f"{model.__name__}.{name}: say listed=True (lists show it; migrations replace the table's "
        "indexes for it, see ListIndex), or listed=False (lists show None)"
    )


@pytest.mark.parametrize("model", RESULTS)
def test_what_callers_give_is_documented(model: type[BaseModel]) -> None:
    given = set(model.rules())
    documented = set(re.findall(r"\n {4}(\w+): ", inspect.getdoc(model) or ""))
    assert not given - documented, (
        f"callers may give {given - documented}: tell them in the docstring of {model.__name__}"
    )
    assert not documented - given, (
        f"the docstring of {model.__name__} offers {documented - given}, and callers are refused: "
        "declare the attribute with the check of what they give, or take the line out"
    )


@pytest.mark.parametrize(("model", "index"), INDEXES)
def test_an_index_holds_attributes_that_exist(model: type[BaseModel], index: Index[Any]) -> None:
    stored = {attribute.attr_name for attribute in model.get_attributes().values()}
    held = {*(index.Meta.projection.non_key_attributes or ()), *index.Meta.attributes}
    assert held <= stored, f"{index.Meta.index_name} holds what {model.__name__} never stores"
    if isinstance(index, ListIndex):
        listed = {name for name, facts in declared(model).items() if facts.listed}
        keys = {attribute.attr_name for attribute in model.key_attributes() if attribute}
        assert held - keys == listed | set(index.Meta.attributes) - keys


@pytest.mark.parametrize(("model", "index", "name"), INDEX_KEYS)
def test_a_key_of_an_index_is_checked_as_a_key(
    model: type[BaseModel], index: Index[Any], name: str
) -> None:
    of_index, stored = index.Meta.attributes[name], declared(model).get(name)
    place = f"{model.__name__}.{name} is a key of {index.Meta.index_name}"
    assert stored, f"{place}: declare it in the model, too"
    assert stored.attr_type == of_index.attr_type, f"{place}, of another type there"  # type: ignore[attr-defined]
    most = PARTITION_KEY_BYTES if of_index.is_hash_key else SORT_KEY_BYTES
    if stored.given and of_index.attr_type == "S":
        assert refuses_what_no_key_can_be(stored.given, most), (
            f"{place}: DynamoDB refuses an item with an empty or too long one, so check what "
            f"callers give by key({most}), or by choice(...)"
        )


def refuses_what_no_key_can_be(rule: Rule, most_bytes: int) -> bool:
    for value in ("", "x" * (most_bytes + 1)):
        try:
            rule("field", value)
        except InvalidRequest:
            continue
        return False
    return True


def test_a_text_is_no_key_and_a_key_of_the_table_may_be_too_long_for_an_index() -> None:
    assert refuses_what_no_key_can_be(key(), PARTITION_KEY_BYTES)
    assert not refuses_what_no_key_can_be(text(255), PARTITION_KEY_BYTES)
    assert not refuses_what_no_key_can_be(key(), SORT_KEY_BYTES)


def test_no_index_of_sessions_holds_a_lease() -> None:
    both = [
        name for name, facts in declared(PipelineSession).items() if facts.lease and facts.listed
    ]
    assert not both, f"a heartbeat would be billed for each index, too: {both} with listed=False"


def test_no_index_of_sessions_holds_what_every_agent_changes() -> None:
    for index in (PipelineSession.status_index, PipelineSession.user_index):
        held = {*(index.Meta.projection.non_key_attributes or ()), *index.Meta.attributes}
        assert not held & {"progress", "current_agent", "last_updated", "lease_expires"}


def test_an_attribute_without_a_check_is_refused_from_callers() -> None:
    for name in ("lease_token", "previous_status", "created_at"):
        with pytest.raises(InvalidRequest, match=f"^{name}: is kept by the package"):
            checked_session({"session_id": "s", name: 1}, {})
    with pytest.raises(InvalidRequest, match=r"^projct_name: unknown field; use session_id, user_"):
        checked_session({"session_id": "s", "projct_name": "p"}, {})
