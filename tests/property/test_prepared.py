"""A request whose expressions were written before is, byte for byte, the one PynamoDB writes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pynamodb.expressions.condition import And, Condition, size
from pynamodb.expressions.operand import Path
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index

from tdev_models.dynamodb import prepared
from tdev_models.dynamodb.expressions import is_as_read, set_if_absent, set_or_remove, set_to
from tdev_models.dynamodb.requests import Requests
from tdev_models.models import TABLES, AgentExecution, PipelineSession, UserProject, WorkerItem
from tests.simulation.clients import simulated
from tests.simulation.histories import broken

S, E, U, W = PipelineSession, AgentExecution, UserProject, WorkerItem
TABLE = "t-developer-dev-x"

Dice = random.Random
CONDITIONS: list[Callable[[Dice], Condition]] = [
    lambda dice: S.lease_token.does_not_exist(),
    lambda dice: S.session_id.exists(),
    lambda dice: S.expires_at > dice.random(),
    lambda dice: S.expires_at < dice.random(),
    lambda dice: S.fence >= dice.randint(0, 9),
    lambda dice: S.fence <= dice.randint(0, 9),
    lambda dice: S.status != _text(dice),
    lambda dice: S.status.is_in(_text(dice)),
    lambda dice: S.status.is_in(_text(dice), _text(dice), _text(dice)),
    lambda dice: S.created_at.between(dice.random(), dice.random()),
    lambda dice: is_as_read(S.lease_token, _text(dice)),
    lambda dice: is_as_read(S.due_at, dice.random()),
    lambda dice: is_as_read(S.user_id, None),
    lambda dice: E.agent_name.startswith(_text(dice)),
    lambda dice: ~U.download_ids.contains(_text(dice)),
    lambda dice: size(U.download_ids) < dice.randint(0, 9),
    lambda dice: E.attempts["3"]["number"] == dice.randint(0, 9),
    lambda dice: E.attempts["4"]["number"] == dice.randint(0, 9),
    lambda dice: Path("a.b[1]") == _text(dice),
    lambda dice: S.write_token == S.former_token,
    lambda dice: Path(S.fence).is_type("N"),
]
ACTIONS: list[Callable[[Dice], Action]] = [
    lambda dice: set_to(S.status, _text(dice)),
    lambda dice: set_to(S.last_updated, dice.random()),
    lambda dice: set_to(S.metadata, {"a": _text(dice)}),
    lambda dice: set_to(S.adopts, dice.random() < 0.5),
    lambda dice: set_or_remove(S.release, dice.choice((None, _text(dice)))),
    lambda dice: set_if_absent(S.created_at, dice.random()),
    lambda dice: set_to(E.attempts, {"3": {"number": dice.randint(0, 9), "status": "x"}}),
    lambda dice: E.attempts[str(dice.randint(0, 3))].set({"M": {"a": {"S": _text(dice)}}}),
    lambda dice: E.chunk.set(dice.randbytes(5)),
    lambda dice: S.previous_status.set(S.status | _text(dice)),
    lambda dice: S.previous_status.set(S.status),
    lambda dice: U.download_count.set((U.download_count | 0) + dice.randint(0, 9)),
    lambda dice: U.size_mb.set(U.size_mb - dice.randint(0, 9)),
    lambda dice: U.download_ids.set((U.download_ids | []).append([_text(dice)])),
    lambda dice: U.download_ids.set(U.download_ids.prepend([_text(dice)])),
    lambda dice: S.lease_token.remove(),
    lambda dice: E.input_tokens.add(dice.randint(0, 9)),
    lambda dice: W.revoked.add({_text(dice)}),
    lambda dice: W.revoked.delete({_text(dice), _text(dice)}),
    lambda dice: Path(S.user_id).set(None),
]
INDEXES: list[Index[Any] | None] = [None, S.status_index, S.user_index, S.worker_index]


def _text(dice: Dice) -> str:
    return dice.choice(("", "a", "é", "{0}", ":1", "#0")) * dice.randint(0, 3)


@st.composite
def _condition(draw: st.DrawFn, depth: int = 3) -> Callable[[Dice], Condition]:
    kind = draw(st.sampled_from(["one", "one", "and", "or", "not"] if depth else ["one"]))
    if kind == "one":
        return draw(st.sampled_from(CONDITIONS))
    left = draw(_condition(depth - 1))
    if kind == "not":
        return lambda dice: ~left(dice)
    right = draw(_condition(depth - 1))
    if kind == "and":
        return lambda dice: left(dice) & right(dice)
    return lambda dice: left(dice) | right(dice)


def _bytes(request: Any) -> str:
    return json.dumps(request, default=repr)  # keeps the order of names


@settings(deadline=None)
@given(
    st.none() | _condition(),
    st.lists(st.sampled_from(ACTIONS), max_size=8),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_updates_are_those_of_pynamodb(
    condition: Callable[[Dice], Condition] | None,
    actions: list[Callable[[Dice], Action]],
    has_range: bool,
    seed: int,
) -> None:
    model = E if has_range else S
    requests = Requests(model, TABLE)
    for copy in range(3):
        dice = Dice(seed + copy)
        key = _text(dice), _text(dice) if has_range else None
        wanted_condition = condition and condition(dice)
        changes = [make(dice) for make in actions]
        part = requests.update_part(*key, actions=changes, condition=wanted_condition)
        stock = requests.get_operation_kwargs(
            TABLE,
            key[0],
            key[1],
            actions=changes,
            condition=wanted_condition,
            return_values_on_condition_failure=None if condition is None else "ALL_OLD",
        )
        assert _bytes(part) == _bytes({"Update": stock})
        operation, request = requests.update(
            *key, actions=changes, condition=wanted_condition, return_new=True
        )
        stock |= {"ReturnValues": "ALL_NEW", "ReturnConsumedCapacity": "TOTAL"}
        assert (operation, _bytes(request)) == ("UpdateItem", _bytes(stock))


@settings(deadline=None)
@given(
    st.sampled_from(INDEXES),
    st.none() | _condition(0),
    st.none() | _condition(2),
    st.integers(0, 2**32),
)
def test_queries_are_those_of_pynamodb(
    index: Index[Any] | None,
    range_condition: Callable[[Dice], Condition] | None,
    filter_condition: Callable[[Dice], Condition] | None,
    seed: int,
) -> None:
    requests = Requests(S, TABLE)
    for copy in range(4):
        dice = Dice(seed + copy)
        value, limit = _text(dice), dice.choice((None, 1, 25))
        start = dice.choice((None, {"session_id": {"S": _text(dice)}}))
        newest_first, select = dice.random() < 0.5, dice.choice((None, "COUNT"))
        only = dice.choice(([], [S.status, S.session_id], [S.progress]))
        conditions = [make and make(dice) for make in (range_condition, filter_condition)]
        made = requests.page(
            value,
            index=index,
            range_condition=conditions[0],
            filter_condition=conditions[1],
            limit=limit,
            newest_first=newest_first,
            start=start,
            select=select,
            only=only,
        )
        stock = requests.query(
            TABLE,
            value,
            range_key_condition=conditions[0],
            filter_condition=conditions[1],
            attributes_to_get=only,
            consistent_read=index is None,
            exclusive_start_key=start,
            index_name=index.Meta.index_name if index else None,
            limit=limit,
            scan_index_forward=not newest_first,
            select=select,
        )
        assert _bytes(made) == _bytes(stock)


@pytest.mark.parametrize("model", TABLES)
def test_reads_are_those_of_pynamodb(model: Any) -> None:
    requests = Requests(model, TABLE)
    for _ in range(3):
        key = "a", "b" if model._range_key_attribute() else None
        keys = [key, ("c", *key[1:]), key]
        only = [*model.get_attributes().values()][:3]
        for read in ([], only):
            parts = [
                {"Get": requests.get_operation_kwargs(TABLE, *one, attributes_to_get=read or None)}
                for one in keys
            ]
            assert _bytes(requests.get_parts(keys, only=read)) == _bytes(parts)
        stock = requests.get_operation_kwargs(TABLE, key[0], key[1], consistent_read=True)
        stock |= {"ReturnConsumedCapacity": "TOTAL"}
        assert _bytes(requests.get(*key)) == _bytes(("GetItem", stock))


class Backwards(And):
    """A condition that is not serialised in the order of its parts."""

    def serialize(self, *placeholders: Any) -> str:
        right, left = (one.serialize(*placeholders) for one in reversed(self.values))
        return f"({left} AND {right})"


def test_an_order_that_is_not_understood_is_made_anew_each_time() -> None:
    requests, before = Requests(S, TABLE), len(prepared._prepared)
    for one in "ab":
        backwards = Backwards(S.status == one, S.user_id == "u")
        part = requests.update_part("s", actions=[set_to(S.status, "x")], condition=backwards)
        assert part["Update"]["ExpressionAttributeValues"] == {
            ":0": {"S": "u"},
            ":1": {"S": one},
            ":2": {"S": "x"},
        }
    assert len(prepared._prepared) == before


def test_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_MOST_PREPARED", 3)
    monkeypatch.setattr(prepared, "_prepared", {})
    requests = Requests(S, TABLE)
    for values in range(1, 9):
        requests.update_part("s", actions=[], condition=S.status.is_in(*"abcdefgh"[:values]))
        assert 0 < len(prepared._prepared) <= 3


def test_nothing_that_is_kept_holds_values(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests(S, TABLE)
    monkeypatch.setattr(prepared, "_prepared", {})
    requests.update_part("secret key", actions=[set_to(S.status, "secret")])
    requests.page("secret", index=S.user_index, start={"session_id": {"S": "secret"}}, limit=3)
    assert len(prepared._prepared) == 2
    assert "secret" not in repr(prepared._prepared)


@pytest.mark.calm
def test_whatever_services_send_is_what_pynamodb_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0

    def checked(facts: Any, make: Callable[[], dict[str, Any]], *rest: Any, **more: Any) -> Any:
        nonlocal seen
        request = prepared.prepared(facts, make, *rest, **more)
        assert _bytes(request) == _bytes(make())
        seen += 1
        return request

    monkeypatch.setattr("tdev_models.dynamodb.requests.prepared", checked)
    with simulated():
        for seed in range(20):
            assert broken(seed) is None
    assert seen > 2_000
