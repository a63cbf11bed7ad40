"""Connections: kept, bounded, and never used again after an answer that was not read."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import Settings
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.transports import blocking_pool, loop_pool
from tdev_models.dynamodb.transports.blocking import BlockingTransport
from tdev_models.dynamodb.transports.loop import LoopTransport
from tdev_models.errors import Unavailable
from tests.transport.wire import Wire, ok, wired

pytestmark = pytest.mark.skipif("os.environ.get('TDEV_TRANSPORT')", reason="of the own transport")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wired() as running:
        yield running


def request(number: int) -> dict[str, Any]:
    return {"TableName": "t", "Key": {"id": {"N": str(number)}}}


async def get(transport: LoopTransport, number: int) -> None:
    response = await transport("GetItem", request(number))
    assert response["Item"] == {"id": {"N": str(number)}}


def get_blocking(transport: BlockingTransport, number: int) -> None:
    response = drive(transport("GetItem", request(number)))
    assert response["Item"] == {"id": {"N": str(number)}}


async def test_one_after_the_other_takes_one_connection(wire: Wire) -> None:
    transport = LoopTransport(wire.settings())
    for number in range(20):
        await get(transport, number)
    assert wire.made == 1


def test_one_thread_takes_one_connection(wire: Wire) -> None:
    transport = BlockingTransport(wire.settings())
    for number in range(20):
        get_blocking(transport, number)
    assert wire.made == 1


async def test_calls_of_other_timeouts_take_the_same_connection(wire: Wire) -> None:
    for number in range(20):
        await get(LoopTransport(wire.settings(read_timeout_seconds=5 + number)), number)
    assert wire.made == 1


def test_a_thread_takes_one_connection_whatever_its_calls_may_take(wire: Wire) -> None:
    for number in range(20):
        each = wire.settings(
            read_timeout_seconds=5 + number,
            connect_timeout_seconds=5 + number,
            max_connections=5 + number,
        )
        get_blocking(BlockingTransport(each), number)
    assert wire.made == 1


async def test_many_at_once_share_what_the_settings_allow(wire: Wire) -> None:
    transport = LoopTransport(wire.settings(max_connections=5))
    await asyncio.gather(*(get(transport, number) for number in range(300)))
    assert wire.most == wire.made == 5


def test_threads_never_wait_for_each_other_and_keep_what_the_settings_allow(wire: Wire) -> None:
    together = threading.Barrier(9)

    def answer(parameters: dict[str, Any]) -> bytes:
        together.wait(20)
        return ok({"Item": parameters["Key"]})

    wire.answer = answer
    transport = BlockingTransport(wire.settings(max_connections=3))
    with ThreadPoolExecutor(9) as threads:
        list(threads.map(lambda number: get_blocking(transport, number), range(9)))
    wire.until(now=3)


async def test_requests_get_connections_in_the_order_of_their_coming(wire: Wire) -> None:
    transport, order = LoopTransport(wire.settings(max_connections=1)), list[int]()

    async def one(number: int) -> None:
        await get(transport, number)
        order.append(number)

    await asyncio.gather(*(one(number) for number in range(30)))
    assert order == [*range(30)]


async def test_a_cancelled_requests_answer_reaches_nobody(wire: Wire) -> None:
    free = threading.Event()

    def answer(parameters: dict[str, Any]) -> bytes:
        if parameters["Key"]["id"]["N"] == "0":
            free.wait(20)
        return ok({"Item": parameters["Key"]})

    wire.answer = answer
    transport = LoopTransport(wire.settings(max_connections=1))
    await get(transport, 5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await get(transport, 0)
    free.set()
    await get(transport, 1)
    assert wire.made == 2


async def test_who_is_cancelled_while_it_waits_takes_no_connection_along(wire: Wire) -> None:
    free = threading.Event()

    def answer(parameters: dict[str, Any]) -> bytes:
        free.wait(20)
        return ok({"Item": parameters["Key"]})

    wire.answer = answer
    transport = LoopTransport(wire.settings(max_connections=2))
    tasks = [asyncio.create_task(get(transport, number)) for number in range(10)]
    await asyncio.sleep(0.3)
    for task in tasks[2:6]:
        task.cancel()
    free.set()
    await asyncio.gather(*tasks[:2], *tasks[6:])
    assert all(task.cancelled() for task in tasks[2:6])
    await asyncio.gather(*(get(transport, number) for number in range(10)))
    assert wire.made == 2


async def test_a_task_cancelled_as_its_turn_comes_hands_the_connection_on(wire: Wire) -> None:
    transport = LoopTransport(wire.settings(max_connections=1))
    await get(transport, 0)
    for _ in range(20):
        first = asyncio.create_task(get(transport, 1))
        second = asyncio.create_task(get(transport, 2))
        third = asyncio.create_task(get(transport, 3))
        await first  # whose connection is the second's by now
        second.cancel()
        await third
    await get(transport, 4)


async def test_connections_that_the_server_closed_are_not_used(wire: Wire) -> None:
    transport = LoopTransport(wire.settings())
    await asyncio.gather(*(get(transport, number) for number in range(3)))

    async def close_all() -> None:
        while wire.now:  # one that nobody waits for any more may just be made
            wire.close_all()
            await asyncio.sleep(0.05)

    await asyncio.wait_for(close_all(), 20)
    await get(transport, 9)


def test_threads_do_not_use_what_the_server_closed(wire: Wire) -> None:
    transport = BlockingTransport(wire.settings())
    get_blocking(transport, 0)
    wire.close_all()
    wire.until(now=0)
    get_blocking(transport, 1)
    assert wire.made == 2


async def test_connections_idle_for_long_are_not_used(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_pool, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(blocking_pool, "IDLE_SECONDS", 0.05)
    transport, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    for number in range(2):
        await get(transport, number)
        await asyncio.to_thread(get_blocking, blocking, number)
        await asyncio.sleep(0.2)
    assert wire.made == 4


async def test_connections_that_only_many_at_once_needed_are_closed_in_time(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(8)

    def answer(parameters: dict[str, Any]) -> bytes:
        if int(parameters["Key"]["id"]["N"]) < 8:
            together.wait(20)  # so each has a connection of its own
        return ok({"Item": parameters["Key"]})

    wire.answer = answer
    awaited, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    await asyncio.gather(*(get(awaited, number) for number in range(8)))
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(get_blocking, blocking, number) for number in range(8)]:
            done.result()
    assert wire.now == 16
    for module in (loop_pool, blocking_pool):
        monkeypatch.setattr(module, "IDLE_SECONDS", 1.0)
    for _ in range(8):  # one that is used again and again is kept
        await asyncio.sleep(0.2)
        await get(awaited, 8)
        await asyncio.to_thread(get_blocking, blocking, 8)
    await asyncio.to_thread(wire.until, 2)


async def test_an_answer_later_than_a_connection_is_kept_is_an_answer(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_pool, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(blocking_pool, "IDLE_SECONDS", 0.05)

    def answer(parameters: dict[str, Any]) -> bytes:
        time.sleep(0.2)
        return ok({"Item": parameters["Key"]})

    wire.answer = answer
    await get(LoopTransport(wire.settings()), 1)
    await asyncio.to_thread(get_blocking, BlockingTransport(wire.settings()), 1)


async def test_bytes_that_nobody_asked_for_end_the_connection(wire: Wire) -> None:
    wire.answer = lambda parameters: ok({"Item": parameters["Key"]}) + ok({"Item": {}})
    transport, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    for number in range(3):
        await get(transport, number)
        await asyncio.to_thread(get_blocking, blocking, number)
        await asyncio.sleep(0.05)
    assert wire.made == 6


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n{"Item":{}}',
        b'HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\n{"Item":{}}',
    ],
)
async def test_a_connection_that_the_server_will_close_is_used_once(
    wire: Wire, answer: bytes
) -> None:
    wire.answer = lambda parameters: answer
    transport, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    for _ in range(2):
        assert await transport("GetItem", request(1)) == {"Item": {}}
        response = await asyncio.to_thread(drive, blocking("GetItem", request(1)))
        assert response == {"Item": {}}
    assert wire.made == 4


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"Item":{}}',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'4\r\n{"It\r\n7\r\nem":{}}\r\n0\r\n\r\n',
    ],
)
async def test_http_that_dynamodb_does_not_speak_is_understood(wire: Wire, answer: bytes) -> None:
    wire.answer = lambda parameters: answer
    transport, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    for _ in range(2):
        assert await transport("GetItem", request(1)) == {"Item": {}}
        response = await asyncio.to_thread(drive, blocking("GetItem", request(1)))
        assert response == {"Item": {}}
    assert wire.made == 2


async def test_an_answer_may_end_with_its_connection(wire: Wire) -> None:
    parts = [b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n", b'{"Item"', b":{}}"]
    transport, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    wire.answer, wire.closes = lambda parameters: b"".join(parts), True
    for _ in range(2):
        assert await transport("GetItem", request(1)) == {"Item": {}}
        response = await asyncio.to_thread(drive, blocking("GetItem", request(1)))
        assert response == {"Item": {}}
    for cut in (
        parts[0],
        parts[0][:-1],
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b'{"Item":{}}',
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b'{"Item":{}}',
    ):
        wire.answer = lambda parameters, cut=cut: cut  # type: ignore[misc]
        with pytest.raises(Unavailable):
            await transport("GetItem", request(1))
        with pytest.raises(Unavailable):
            await asyncio.to_thread(drive, blocking("GetItem", request(1)))


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"",
    ],
)
async def test_no_http_is_unavailable(wire: Wire, answer: bytes) -> None:
    wire.answer = lambda parameters: answer
    transport, blocking = LoopTransport(wire.settings()), BlockingTransport(wire.settings())
    with pytest.raises(Unavailable):
        await transport("GetItem", request(1))
    with pytest.raises(Unavailable):
        await asyncio.to_thread(drive, blocking("GetItem", request(1)))
    wire.answer = lambda parameters: ok({"Item": parameters["Key"]})
    await get(transport, 2)
    await asyncio.to_thread(get_blocking, blocking, 2)


async def test_where_nobody_listens_all_that_wait_learn_it_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with wired() as gone:
        transport = LoopTransport(gone.settings())
    loop, tries = asyncio.get_running_loop(), 0
    connect = loop.create_connection

    async def counted(*args: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        return await connect(*args, **more)

    monkeypatch.setattr(loop, "create_connection", counted)
    results = await asyncio.gather(
        *(transport("GetItem", request(number)) for number in range(500)), return_exceptions=True
    )
    assert all(isinstance(result, Unavailable) for result in results), results[:3]
    assert tries < 50


async def test_where_nobody_is_answered_all_that_wait_learn_it_at_once(wire: Wire) -> None:
    wire.answer = lambda parameters: None
    transport = LoopTransport(wire.settings(max_connections=2, read_timeout_seconds=0.5))
    results = await asyncio.gather(
        *(transport("GetItem", request(number)) for number in range(40)), return_exceptions=True
    )
    assert all(isinstance(result, Unavailable) for result in results), results[:3]
    assert wire.made <= 4  # not two each half second, for ten seconds


async def test_who_may_wait_longer_is_not_failed_by_who_may_not(wire: Wire) -> None:
    free = threading.Event()

    def answer(parameters: dict[str, Any]) -> bytes:
        free.wait(20)
        return ok({"Item": parameters["Key"]})

    wire.answer = answer
    hasty, patient = (
        LoopTransport(wire.settings(max_connections=1, read_timeout_seconds=seconds))
        for seconds in (0.2, 20.0)
    )
    first, second, third = (
        asyncio.create_task(get(transport, number))
        for number, transport in enumerate((hasty, patient, hasty))
    )
    _, waiting = await asyncio.wait([first, second, third], timeout=1)
    assert waiting == {second}
    free.set()
    await second
    for one in (first, third):
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            await one


async def test_where_others_are_answered_those_that_wait_have_their_turn(wire: Wire) -> None:
    def answer(parameters: dict[str, Any]) -> bytes | None:
        time.sleep(0.05)
        return None if parameters["Key"]["id"]["N"] == "0" else ok({"Item": parameters["Key"]})

    wire.answer = answer
    transport = LoopTransport(wire.settings(max_connections=2, read_timeout_seconds=0.5))
    first, *others = await asyncio.gather(
        *(get(transport, number) for number in range(40)), return_exceptions=True
    )
    assert isinstance(first, Unavailable)
    assert others == [None] * 39


@pytest.mark.parametrize("blocking", [False, True], ids=["loop", "threads"])
async def test_connections_that_lead_nowhere_any_more_cost_one_timeout_in_all(
    blocking: bool, wire: Wire
) -> None:
    """As after a gateway on the way was replaced, or a machine has slept."""
    together, silent = threading.Barrier(8), set[threading.Thread]()

    def answer(parameters: dict[str, Any]) -> bytes | None:
        if not silent and int(parameters["Key"]["id"]["N"]) < 8:
            together.wait(20)  # so each has a connection of its own
        return None if threading.current_thread() in silent else ok({"Item": parameters["Key"]})

    wire.answer = answer
    chosen = wire.settings(read_timeout_seconds=0.5)
    awaited, plain = LoopTransport(chosen), BlockingTransport(chosen)

    async def send(number: int) -> None:
        await (asyncio.to_thread(get_blocking, plain, number) if blocking else get(awaited, number))

    with ThreadPoolExecutor(8) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        await asyncio.gather(*map(send, range(8)))
        silent |= {*threading.enumerate()}
        with pytest.raises(Unavailable, match="no answer"):
            await send(8)
        await send(9)


@pytest.fixture
def two_addresses(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """An endpoint with two addresses, of which the first answers nobody who connects."""
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.2", wire.port))
        silent.listen(0)
        for _ in range(4):  # what it lets wait is full then
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.2", wire.port))
        found = socket.getaddrinfo

        def both(host: Any, port: Any, *more: Any, **named: Any) -> Any:
            hosts = ("127.0.0.2", "127.0.0.1") if host == "localhost" else (host,)
            return [one for host in hosts for one in found(host, port, *more, **named)]

        monkeypatch.setattr(socket, "getaddrinfo", both)
        endpoint = f"http://localhost:{wire.port}"
        yield Settings(region="us-east-1", endpoint=endpoint, connect_timeout_seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="its loopback has many addresses")
async def test_an_address_that_nobody_answers_at_is_passed_over(two_addresses: Settings) -> None:
    await get(LoopTransport(two_addresses), 1)
    await asyncio.to_thread(get_blocking, BlockingTransport(two_addresses), 2)


async def test_names_are_looked_up_where_the_loop_has_no_threads_any_more(wire: Wire) -> None:
    """As in a thread's loop that goes on when the main thread has ended."""
    chosen = Settings(region="us-east-1", endpoint=f"http://localhost:{wire.port}")
    await asyncio.get_running_loop().shutdown_default_executor()
    async with asyncio.timeout(20):
        await get(LoopTransport(chosen), 1)


async def test_a_name_server_that_hangs_takes_one_thread(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, asked = threading.Event(), list[str]()

    def hanging(host: str, *more: Any) -> Any:
        if socket.AI_NUMERICHOST not in more:
            asked.append(host)
            free.wait(20)
        raise socket.gaierror("nobody answers")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    endpoint = f"http://localhost:{wire.port}"
    chosen = Settings(region="us-east-1", endpoint=endpoint, connect_timeout_seconds=0.05)
    transport = LoopTransport(chosen)
    try:
        for _ in range(3):
            results = await asyncio.gather(
                *(transport("GetItem", request(number)) for number in range(20)),
                return_exceptions=True,
            )
            assert {type(result) for result in results} == {Unavailable}
    finally:
        free.set()
    assert len(asked) == 1


async def test_a_name_server_that_is_slow_is_not_asked_in_vain(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the first of two does not answer."""
    found = socket.getaddrinfo

    def slow(host: Any, *more: Any, **named: Any) -> Any:
        if host == "localhost" and socket.AI_NUMERICHOST not in more:
            time.sleep(0.6)
        return found(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    settings = wire.settings(connect_timeout_seconds=0.3)
    transport = LoopTransport(replace(settings, endpoint=f"http://localhost:{wire.port}"))
    with pytest.raises(Unavailable, match="in time"):
        await get(transport, 1)
    await asyncio.sleep(0.6)
    await get(transport, 1)


def test_threads_wait_for_a_name_server_as_long_as_for_a_connection(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, free, asked = socket.getaddrinfo, threading.Event(), list[str]()

    def hanging(host: Any, *more: Any, **named: Any) -> Any:
        if host == "localhost" and socket.AI_NUMERICHOST not in more:
            asked.append(host)
            free.wait(20)
        return found(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    settings = wire.settings(connect_timeout_seconds=0.3)
    transport = BlockingTransport(replace(settings, endpoint=f"http://localhost:{wire.port}"))
    begun = time.monotonic()
    for _ in range(2):
        with pytest.raises(Unavailable, match="in time"):
            get_blocking(transport, 1)
    assert time.monotonic() - begun < 10
    free.set()
    get_blocking(transport, 1)
    assert len(asked) == 1


def test_where_no_thread_begins_any_more_names_are_looked_up(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the interpreter ends, and metrics are written."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    transport = BlockingTransport(
        Settings(region="us-east-1", endpoint=f"http://localhost:{wire.port}")
    )
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        # The server's own threads cannot begin either: it closes the connection.
        with pytest.raises(Unavailable, match="the connection ended"):
            get_blocking(transport, 1)


async def test_answers_larger_than_one_read(wire: Wire) -> None:
    large = {"Item": {"id": {"S": "x" * 3_000_000}}}
    wire.answer = lambda parameters: ok(large)
    assert await LoopTransport(wire.settings())("GetItem", request(1)) == large
    blocking = BlockingTransport(wire.settings())
    assert await asyncio.to_thread(drive, blocking("GetItem", request(1))) == large


@pytest.mark.parametrize("at_once", [1, 40])
def test_a_loop_that_ends_closes_its_connections(wire: Wire, at_once: int) -> None:
    transport = LoopTransport(wire.settings(max_connections=8))

    async def main() -> None:
        await asyncio.gather(*(get(transport, number) for number in range(at_once)))

    for _ in range(3):
        asyncio.run(main())
        wire.until(now=0)


def test_a_loop_that_ends_amid_requests_closes_its_connections(wire: Wire) -> None:
    wire.answer = lambda parameters: None
    transport = LoopTransport(wire.settings(max_connections=3))

    async def main() -> None:
        for number in range(9):
            task = asyncio.create_task(get(transport, number))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            running.append(task)
        await asyncio.sleep(0.2)

    running: list[asyncio.Task[None]] = []
    asyncio.run(main())
    wire.until(now=0)
    assert all(task.cancelled() for task in running)


def test_what_is_sent_while_a_loop_ends_is_answered_or_fails(wire: Wire) -> None:
    """Also where it waits for a connection of the pool that is closed."""
    transport, ended = LoopTransport(wire.settings(max_connections=2)), list[str]()

    async def numbers(number: int) -> AsyncGenerator[int, None]:
        try:
            yield number
        finally:
            try:
                async with asyncio.timeout(20):
                    await get(transport, number)
                ended.append("answered")
            except Unavailable:
                ended.append("failed")

    async def main() -> None:
        for number in range(20):
            left.append(numbers(number))
            await anext(left[-1])
            await get(transport, number)

    left: list[AsyncGenerator[int, None]] = []
    asyncio.run(main())
    assert len(ended) == 20
    wire.until(now=0)


def test_many_loops_in_threads_have_connections_of_their_own(wire: Wire) -> None:
    transport = LoopTransport(wire.settings(max_connections=2))

    async def main(first: int) -> None:
        for number in range(first, first + 30):
            await asyncio.gather(get(transport, number), get(transport, -number))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda first: asyncio.run(main(first)), range(0, 600, 100)))
    assert wire.made == 12
    wire.until(now=0)
