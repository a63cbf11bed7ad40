"""The simulation's engine gives the answers of dynoxide, request by request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies

from tdev_models import Settings, aws
from tdev_models.settings import Transport
from tests import raw
from tests.conftest import make_tables
from tests.simulation import recorded
from tests.simulation.engine import Engine, UnknownRequest
from tests.simulation.expressions import UnknownExpression, condition, update
from tests.simulation.recorded import KINDS, Alteration, answer_of, here, in_order

ALTERATIONS = strategies.lists(
    strategies.builds(
        Alteration,
        strategies.sampled_from(KINDS),
        strategies.integers(0, 99),
        strategies.integers(0, 999),
    ),
    max_size=60,
)


@cache
def recordings(endpoint: str) -> dict[str, list[recorded.Sequel]]:
    return asyncio.run(recorded.requests_of_all_calls(endpoint))


@cache
def lives() -> list[list[recorded.Sequel]]:
    return recorded.requests_of_histories(30)


def both(store: Settings) -> tuple[Engine, Transport, Transport]:
    """Return the engine of these tables, and what sends to it and to the real one."""
    engine = Engine(store, time.monotonic, counts_capacity=True)

    async def simulated(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
        return engine.execute(operation, request)

    async def real(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
        return aws.call(store, operation, request)

    return engine, simulated, real


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.generate],  # the request that is answered otherwise says enough
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=strategies.data(), alterations=ALTERATIONS)
def test_answers_and_items_are_those_of_dynoxide(
    dynoxide: str, data: Any, alterations: list[Alteration]
) -> None:
    calls = recordings(dynoxide)
    pool = [one for sent in calls.values() for one in sent]
    if data.draw(strategies.booleans()):
        recording = calls[data.draw(strategies.sampled_from([*calls]))]
    else:
        recording = data.draw(strategies.sampled_from(lives()))
    store = make_tables(dynoxide)
    engine, simulated, real = both(store)
    for number, sent in enumerate(recording):
        sequels = alterations[number].of(sent, pool) if number < len(alterations) else [sent]
        for sequel in sequels:
            request = here(store, sequel)
            assert answer_of(simulated, request) == answer_of(real, request), request
    for table, keys in raw.KEYS.items():
        pages = (
            aws.dynamodb(store)
            .get_paginator("scan")
            .paginate(TableName=store.table_name(table), ConsistentRead=True)
        )
        theirs = [item for page in pages for item in page["Items"]]
        items = {tuple(item[name]["S"] for name in keys): item for item in theirs}
        assert in_order(engine.items(table)) == in_order(items)


def test_the_members_of_a_set_have_no_order(dynoxide: str) -> None:
    store = make_tables(dynoxide)
    _, simulated, real = both(store)
    for member in ("2 s", "1 s"):
        request = {
            "TableName": store.table_name("pipeline-sessions"),
            "Key": {"session_id": {"S": "w"}},
            "UpdateExpression": "ADD #0 :0",
            "ExpressionAttributeNames": {"#0": "revoked"},
            "ExpressionAttributeValues": {":0": {"SS": [member]}},
            "ReturnValues": "ALL_NEW",
            "ReturnConsumedCapacity": "TOTAL",
        }
        sent = "UpdateItem", request
        assert answer_of(simulated, sent) == answer_of(real, sent)


@pytest.mark.parametrize(
    "text", ["a = ", "a == :b", "a = :b AND", "foo(a)", "a[1] = :b", "size(a, b) = :c", "a ! :b"]
)
def test_an_expression_that_it_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(UnknownExpression):
        condition(text, {})


def test_an_update_that_it_does_not_know_is_refused() -> None:
    for text in ("SET a = :b, ", "PUT a = :b", "SET a = b + ", "REMOVE a[0]"):
        with pytest.raises(UnknownExpression):
            update(text, {})


def test_a_request_that_it_does_not_know_is_refused() -> None:
    from tdev_models import Settings

    engine = Engine(Settings())
    with pytest.raises(UnknownRequest):
        engine.execute("DeleteItem", {})
    with pytest.raises(UnknownRequest):
        engine.execute("GetItem", {"TableName": "x", "Key": {}, "AttributesToGet": []})
