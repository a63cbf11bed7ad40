"""The transports of the package keep the contract of `Settings.transport`."""

from __future__ import annotations

import asyncio
import datetime
import gc
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import pytest

from tdev_models import Settings, aws
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.transports.blocking import BlockingTransport
from tdev_models.dynamodb.transports.loop import LoopTransport
from tdev_models.errors import TdevError
from tdev_models.settings import Transport
from tests.transport.conformance import (
    ANSWERS,
    CHECKS,
    GET,
    LOADED,
    STORED,
    UPDATE,
    Send,
    Server,
    serving,
)

KEPT = ("region", "endpoint", "read_timeout_seconds")


def standard(client: type[Client], settings: Settings) -> Transport:
    """Return the transport that a client hands to `Settings.transport`."""
    given: list[Transport] = []

    def take(transport: Transport) -> Transport:
        given.append(transport)
        return transport

    client(Settings(**{name: getattr(settings, name) for name in KEPT}, transport=take))
    return given[0]


def send_blocking(settings: Settings, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    return drive(standard(BlockingClient, settings)(operation, request))


def send_in_a_loop(
    settings: Settings, operation: str, request: Mapping[str, Any]
) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        return await standard(AsyncClient, settings)(operation, request)

    return asyncio.run(main())


def send_by_botocore(
    settings: Settings, operation: str, request: Mapping[str, Any]
) -> dict[str, Any]:
    transport = BlockingTransport(replace(settings, transport="botocore"))
    return drive(transport(operation, request))


def send_by_botocore_in_a_loop(
    settings: Settings, operation: str, request: Mapping[str, Any]
) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        return await LoopTransport(replace(settings, transport="botocore"))(operation, request)

    return asyncio.run(main())


SENDS = (send_blocking, send_in_a_loop, send_by_botocore, send_by_botocore_in_a_loop)


@pytest.mark.parametrize("send", SENDS)
@pytest.mark.parametrize("check", CHECKS)
def test_a_transport_conforms(check: Callable[[Send, Server], None], send: Send) -> None:
    with serving() as server:
        check(send, server)


# The answers, and what they mean, that all transports must give alike.
MEANT: tuple[tuple[int, Mapping[str, Any] | bytes], ...] = (
    (200, {"Attributes": STORED, "ConsumedCapacity": {"TableName": "x", "CapacityUnits": 0.5}}),
    (200, {}),
    *((status, {"__type": f"x#{code}", "message": "m"}) for code, status, _ in ANSWERS),
    (400, {"__type": "x#ConditionalCheckFailedException", "message": "m", "Item": STORED}),
    (400, {"__type": "x#ConditionalCheckFailedException", "Message": "m"}),
    (400, {"__type": "x#ValidationException", "message": "Item size has exceeded the maximum"}),
    (413, b""),
    (500, b"<html>no</html>"),
    (503, b"busy"),
    (400, b"{}"),
)


@pytest.mark.parametrize("send", SENDS)
def test_all_transports_send_and_return_alike(send: Send) -> None:
    def outcome(send: Send, server: Server) -> tuple[object, ...]:
        server.received.clear()
        try:
            response = send(server.settings(), "UpdateItem", UPDATE)
        except TdevError as error:
            return type(error), str(error), vars(error), server.received[:]
        response.pop("ResponseMetadata", None)
        return response, server.received[:]

    with serving() as server:
        for server.status, server.body in MEANT:
            expected = outcome(send_by_botocore, server)
            assert outcome(send, server) == expected, (server.status, server.body)


def test_an_operation_that_the_services_do_not_send_is_sent_by_botocore() -> None:
    with serving() as server:
        server.body = {"Table": {"CreationDateTime": 1764000000.0}}
        for send in (send_blocking, send_in_a_loop):
            response = send(server.settings(), "DescribeTable", {"TableName": "t"})
            assert isinstance(response["Table"]["CreationDateTime"], datetime.datetime)


def test_botocore_has_few_clients_however_many_timeouts_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Made:
        """One of botocore takes long to be made."""

    made = WeakSet[Any]()
    monkeypatch.setattr(aws, "_clients", {})
    monkeypatch.setattr(aws, "create", lambda *of: Made())
    for number in range(100):
        made.add(aws.dynamodb(Settings(region="us-east-1", read_timeout_seconds=5 + number)))
    gc.collect()
    assert 0 < len(made) <= 16


def test_a_cancelled_task_ends_though_the_answer_is_late() -> None:
    async def main(server: Server) -> None:
        server.trouble = "hang"
        transport = standard(AsyncClient, server.settings())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await transport("GetItem", GET)

    with serving() as server:
        asyncio.run(main(server))


# Beside a loop's threads a fork may leave a lock taken for ever in the child: CPython's, which
# warns of it since 3.12.
FORKS = pytest.mark.skipif(sys.version_info >= (3, 12), reason="a fork beside threads may hang")


@pytest.mark.parametrize("send", [send_blocking, pytest.param(send_in_a_loop, marks=FORKS)])
def test_a_child_of_a_fork_sends_on_connections_of_its_own(send: Send) -> None:
    def child(queue: Any) -> None:
        queue.put(send(server.settings(), "GetItem", GET)["Item"])

    with serving() as server:
        server.body = {"Item": STORED}
        send(server.settings(), "GetItem", GET)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=60) == LOADED
        process.join(60)
        assert send(server.settings(), "GetItem", GET)["Item"] == LOADED
