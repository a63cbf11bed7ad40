"""The transports of the package keep the contract of `Settings.transport`."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tdev_models import Settings
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.client import Client
from tdev_models.settings import Transport
from tests.transport.conformance import CHECKS, GET, LOADED, STORED, Send, Server, serving


def standard(client: type[Client], settings: Settings) -> Transport:
    """Return the transport that a client hands to `Settings.transport`."""
    given: list[Transport] = []

    def take(transport: Transport) -> Transport:
        given.append(transport)
        return transport

    client(Settings(**{name: getattr(settings, name) for name in KEPT}, transport=take))
    return given[0]


KEPT = ("region", "endpoint", "read_timeout_seconds")


def send_blocking(settings: Settings, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    return drive(standard(BlockingClient, settings)(operation, request))


def send_in_a_loop(
    settings: Settings, operation: str, request: Mapping[str, Any]
) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        return await standard(AsyncClient, settings)(operation, request)

    return asyncio.run(main())


@pytest.mark.parametrize("send", [send_blocking, send_in_a_loop])
@pytest.mark.parametrize("check", CHECKS)
def test_a_transport_conforms(check: Callable[[Send, Server], None], send: Send) -> None:
    with serving() as server:
        check(send, server)


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
