"""The requests that the package sends, recorded from its public calls, and sent again altered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from tdev_models.dynamodb.blocking_client import drive
from tdev_models.errors import ConditionFailed, TdevError
from tdev_models.settings import Settings, Transport
from tests.chaos.test_sweep import CALLS, READS, World, seeded
from tests.conftest import make_tables
from tests.simulation.clients import simulated
from tests.simulation.values import SETS
from tests.simulation.world import History

Request = dict[str, Any]
Sequel = tuple[str, Request]


async def requests_of_all_calls(endpoint: str) -> dict[str, list[Sequel]]:
    """Return the requests of every public call, and of what prepares it, by the call's name."""
    found: dict[str, list[Sequel]] = {}
    for name, (prepare, call) in CALLS.items():
        world, found[name] = _recording(endpoint)
        with world.inside():
            await prepare(world)
            await call(world)
    world, found["reads"] = _recording(endpoint)
    with world.inside():
        await seeded(world)
        for read in READS.values():
            await read()
    return found


def requests_of_histories(number: int) -> list[list[Sequel]]:
    """Return what the workers of simulated histories send, in the order of its arrival.

    So heartbeats, deaths, takeovers and what is refused after them are compared, too. In a process
    of their own: there is no other time in one where histories happen.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_of_histories, number).result()


def _of_histories(number: int) -> list[list[Sequel]]:
    with simulated():
        return [_of_a_history(History(seed)) for seed in range(number)]


def _of_a_history(history: History) -> list[Sequel]:
    sent: list[Sequel] = []
    execute = history.engine.execute

    def record(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        sent.append((operation, _moved(request, "sim", "HERE")))
        return execute(operation, request)

    history.engine.execute = record  # type: ignore[method-assign]
    history.run()
    return sent


def _recording(endpoint: str) -> tuple[World, list[Sequel]]:
    store, sent = make_tables(endpoint), list[Sequel]()
    check = store.transport

    def recorder(send: Transport) -> Transport:
        assert callable(check)
        checked = check(send)

        async def record(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            sent.append((operation, _moved(request, store.environment, "HERE")))
            return await checked(operation, request)

        return record

    return World(replace(store, transport=recorder)), sent


def _moved(value: Any, old: str, new: str) -> Any:
    """Return a request for the tables of another environment."""
    if isinstance(value, Mapping):
        return {
            name: part.replace(f"-{old}-", f"-{new}-")
            if name == "TableName"
            else _moved(part, old, new)
            for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_moved(part, old, new) for part in value]
    return value


@dataclass(frozen=True)
class Alteration:
    """How a recorded request is altered before it is sent again.

    Attributes:
        kind: what is altered.
        number: chooses one of what can be.
        other: chooses what comes in its place.
    """

    kind: str
    number: int
    other: int

    def of(self, sent: Sequel, pool: Sequence[Sequel]) -> list[Sequel]:
        """Return what is sent in place of a recorded request."""
        operation, request = sent
        if self.kind == "twice":
            return [sent, sent]
        if self.kind == "left out":
            return []
        if self.kind == "other token" and "ClientRequestToken" in request:
            return [sent, (operation, {**request, "ClientRequestToken": f"{self.other:036}"})]
        if self.kind == "short" and operation == "Query":
            return [(operation, {**request, "Limit": 1 + self.other % 3})]
        altered = self._in_a_part(operation, request, pool)
        return [(operation, altered)]

    def _in_a_part(self, operation: str, request: Request, pool: Sequence[Sequel]) -> Request:
        if "TransactItems" not in request:
            return self._part(operation, request, pool)
        parts = list(request["TransactItems"])
        number = self.number % len(parts)
        ((kind, part),) = parts[number].items()
        parts[number] = {kind: self._part(operation, part, pool)}
        keys = [(one["TableName"], str(one["Key"])) for part in parts for one in part.values()]
        if len(set(keys)) < len(keys):
            return request
        return {**request, "TransactItems": parts}

    def _part(self, operation: str, part: Request, pool: Sequence[Sequel]) -> Request:
        others = [
            one
            for _, request in pool
            for one in (request, *(p for t in request.get("TransactItems", ()) for p in t.values()))
            if one.get("TableName") == part["TableName"]
        ]
        if self.kind == "other key" and "Key" in part:
            keys = [one["Key"] for one in others if "Key" in one]
            return {**part, "Key": keys[self.other % len(keys)]}
        given = part.get("ExpressionAttributeValues", {})
        if self.kind == "other value" and given:
            return {**part, "ExpressionAttributeValues": self._other_values(given, others)}
        if self.kind == "new returned" and operation == "UpdateItem":
            return {**part, "ReturnValues": "ALL_NEW"}
        return part

    def _other_values(
        self, given: Mapping[str, Any], others: Sequence[Request]
    ) -> Mapping[str, Any]:
        name = list(given)[self.number % len(given)]
        values = [
            value
            for one in others
            for value in one.get("ExpressionAttributeValues", {}).values()
            if value.keys() == given[name].keys()
        ]
        return {**given, name: values[self.other % len(values)]}


KINDS = (
    "none",
    "twice",
    "left out",
    "other token",
    "short",
    "other key",
    "other value",
    "new returned",
)


def here(settings: Settings, sent: Sequel) -> Sequel:
    """Return a recorded request for the tables of some settings."""
    operation, request = sent[0], _moved(sent[1], "HERE", settings.environment)
    if "ClientRequestToken" in request:  # which DynamoDB knows whatever the table
        token = request["ClientRequestToken"]
        request["ClientRequestToken"] = f"{settings.environment[1:]}{token[-26:]}"
    return operation, request


def answer_of(send: Transport, sent: Sequel) -> Any:
    """Return what a transport answers to a request, in a form that can be compared."""
    operation, request = sent
    try:
        response = drive(send(operation, request))
    except ConditionFailed as refused:
        return "ConditionFailed", refused.position, in_order(refused.item) or None
    except TdevError as error:
        return type(error).__name__, error.code
    kept = {name: value for name, value in response.items() if name != "ResponseMetadata"}
    if operation.startswith("Transact"):
        kept.pop("ConsumedCapacity", None)
    elif "ConsumedCapacity" in kept:
        kept["ConsumedCapacity"] = kept["ConsumedCapacity"]["CapacityUnits"]
    return in_order(kept)


def in_order(value: Any) -> Any:
    """Return an answer, or items, with their sets in one order: DynamoDB's have none."""
    if isinstance(value, Mapping):
        return {
            name: sorted(one) if name in SETS and isinstance(one, list) else in_order(one)
            for name, one in value.items()
        }
    return [in_order(one) for one in value] if isinstance(value, list) else value
