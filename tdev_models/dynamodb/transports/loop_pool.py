"""The open connections of one event loop to DynamoDB: HTTP/1.1 over asyncio's transports."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, cast

import httptools

from tdev_models.aws import untrusted
from tdev_models.dynamodb.threads import in_thread
from tdev_models.dynamodb.transports.answers import IDLE_SECONDS, Answer, Reader
from tdev_models.dynamodb.transports.target import Target
from tdev_models.errors import TdevError, Unavailable

# How many connections are made at once: each takes the loop a TLS handshake.
_MADE_AT_ONCE: Final = 4


class Pool:
    """At most so many connections, to be made within so many seconds each.

    A request that finds none free waits.

    Attributes:
        loop: the event loop that it belongs to; None once it is closed.
    """

    def __init__(
        self, target: Target, connect_seconds: float, most: int, *, is_last: bool = False
    ) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._target, self._connect_seconds, self._most = target, connect_seconds, most
        self._open, self._all_closed = set[Connection](), asyncio.Event()
        self._idle = deque[Connection]()  # the one used last is at the end
        self._waiting = deque[_Turn]()
        self._making = set[asyncio.Task[None]]()
        self._asked: Future[list[tuple[Any, ...]]] | None = None  # for the endpoint's addresses
        self._answers = 0
        self._keeps = not is_last  # it is nobody's to close: the loop has begun to end
        if is_last:
            return
        # A loop that ends closes the generators that have begun in it, and so this pool.
        self._guard = self._closed_with_the_loop()
        with suppress(StopIteration):
            cast(Any, self._guard.__anext__()).send(None)

    async def exchange(self, request: bytes, seconds: float) -> Answer:
        """Send the bytes of one request and return its answer.

        Raises:
            Unavailable: there was none within so many seconds.
        """
        connection = self._newest_idle() or await self._next_free(seconds)
        answers = self._answers
        try:
            answer = await connection.exchange(request, seconds)
        except TimeoutError:
            problem = f"no answer within {seconds:g} s"
            if answers == self._answers:  # to anybody: those that wait would wait in vain
                in_vain = [turn for turn in self._waiting if turn.seconds <= seconds]
                self._waiting = deque(turn for turn in self._waiting if turn.seconds > seconds)
                _fail(in_vain, lambda: Unavailable(problem))
                self._close_idle()  # the way to the server may be another one since they were made
            raise Unavailable(problem) from None
        finally:
            self._give_back(connection)
        self._answers += 1
        return answer

    def forget(self, connection: Connection) -> None:
        """Take note that a connection has ended."""
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()
        with suppress(ValueError):
            self._idle.remove(connection)
        self._make_more()

    def _newest_idle(self) -> Connection | None:
        if not self._idle:
            return None
        connection = self._idle.pop()
        if connection.is_fresh():
            return connection
        connection.close()
        self._close_idle()  # which are older
        return None

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _next_free(self, seconds: float) -> Connection:
        turn = _Turn(seconds)
        self._waiting.append(turn)
        self._make_more()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back(turn.result())
            raise

    def _give_back(self, connection: Connection) -> None:
        if not connection.reusable:
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        if not self._keeps:
            connection.close()
            return
        self._idle.append(connection)
        while self._idle and not self._idle[0].is_fresh():  # it may be so itself, after so long
            self._idle.popleft().close()

    def _make_more(self) -> None:
        while (
            self.loop is not None
            and len(self._making) < min(_MADE_AT_ONCE, len(self._waiting))
            and len(self._open) + len(self._making) < self._most
        ):
            task = self.loop.create_task(self._make())
            self._making.add(task)
            task.add_done_callback(self._made)

    async def _make(self) -> None:
        try:
            connection = await self._connected()
        except TimeoutError:
            self._cannot_connect("no connection in time")
        except ssl.SSLCertVerificationError as error:
            problem = error
            self._cannot_make(lambda: untrusted(self._where(), problem))
        # No name that DNS could know; no thread to ask it in.
        except (OSError, ValueError, RuntimeError) as error:
            self._cannot_connect(str(error) or type(error).__name__)
        else:
            self._open.add(connection)
            self._give_back(connection)

    async def _connected(self) -> Connection:
        """Return a new connection to the first address of the endpoint that can be reached."""
        target, seconds = self._target, self._connect_seconds
        addresses = await self._addresses()
        for address in addresses:
            try:
                async with asyncio.timeout(seconds):
                    _, connection = await asyncio.get_running_loop().create_connection(
                        lambda: Connection(self),
                        address,
                        target.port,
                        ssl=target.tls,
                        server_hostname=target.host if target.tls else None,
                    )
                return connection
            except OSError as error:  # a TimeoutError, too
                if address == addresses[-1] or isinstance(error, ssl.SSLError):
                    raise
        raise OSError("the name has no address")

    async def _addresses(self) -> list[str]:
        """Return the endpoint's addresses, as DNS gives them."""
        name = self._target.host, self._target.port, 0, socket.SOCK_STREAM, 0
        try:
            found = socket.getaddrinfo(*name, socket.AI_NUMERICHOST)  # at once: asks nobody
        except socket.gaierror:
            # Not in the loop's own threads: these are gone where the main thread has ended before
            # the loop, and the end of `asyncio.run` waits for them.
            # In one, however many wait for it: where no name server answers, that takes long.
            # An answer for which nobody waited any more serves whoever asks next.
            asked = self._asked = self._asked or in_thread(socket.getaddrinfo, *name)
            try:
                async with asyncio.timeout(self._connect_seconds):
                    found = await asyncio.wrap_future(asked)
            finally:
                if self._asked is asked and asked.done():
                    self._asked = None
        return [*dict.fromkeys(str(one[4][0]) for one in found)]

    def _where(self) -> str:
        return f"{self._target.host}:{self._target.port}"

    def _cannot_connect(self, problem: str) -> None:
        self._cannot_make(lambda: Unavailable(f"cannot connect to {self._where()}: {problem}"))

    def _cannot_make(self, error: Callable[[], TdevError]) -> None:
        # Where others are open, one of them may serve whoever waits next.
        count = min(1, len(self._waiting)) if self._open else len(self._waiting)
        _fail([self._waiting.popleft() for _ in range(count)], error)

    def _made(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        self._make_more()

    async def _closed_with_the_loop(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.loop = None
            self._all_closed.clear()
            making = [*self._making]
            for task in making:
                task.cancel()
            for connection in [*self._open]:
                connection.close()
            # Other generators that end with the loop may send what they have left to do.
            while self._waiting:
                self._cannot_connect("the event loop ends")
            if making:
                await asyncio.wait(making)
            if self._open:  # until the loop has closed their sockets
                await self._all_closed.wait()


class _Turn(asyncio.Future["Connection"]):
    """A request that waits for a connection, and then so many seconds for its answer."""

    def __init__(self, seconds: float) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.seconds = seconds


def _fail(turns: Iterable[_Turn], error: Callable[[], TdevError]) -> None:
    for turn in turns:
        if not turn.done():
            turn.set_exception(error())


class Connection(asyncio.Protocol):
    """One connection, with one request at a time.

    Attributes:
        reusable: whether another request can be sent: it is open, and no answer is outstanding.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool, self._loop = pool, asyncio.get_running_loop()
        self._reader = Reader()
        self._waiter: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self._used = self._loop.time()
        self.reusable = True

    def is_fresh(self) -> bool:
        """Return whether it was used lately, so that nothing on the way has forgotten it."""
        return self._loop.time() - self._used < IDLE_SECONDS

    async def exchange(self, request: bytes, seconds: float) -> Answer:
        """Send the bytes of one request and return its answer.

        Raises:
            TimeoutError: there was none within so many seconds.
            Unavailable: the connection ended before it, or it was not HTTP.
        """
        if self._transport is None or self._transport.is_closing():
            self.reusable = False
            raise Unavailable("the server closed the connection")
        self.reusable = False  # until the answer is complete
        self._reader.begin()
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_later(seconds, self._fail, TimeoutError())
        self._transport.write(request)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiter, self._used = None, timer.when() - seconds
            if not self.reusable:
                self.close()

    def close(self) -> None:
        """Close it at once, whatever is under way."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport that asyncio has connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes of an answer."""
        if self._waiter is None or self._waiter.done():
            self.close()  # nobody has asked for these
            return
        try:
            answer = self._reader.feed(data)
        except httptools.HttpParserError as error:
            self._fail(Unavailable(f"the answer is not HTTP: {error}"))
            return
        if answer is not None:
            self.reusable = self._reader.reusable
            self._waiter.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """Take note that the connection has ended."""
        self.reusable, self._transport = False, None
        if self._waiter is not None and not self._waiter.done():
            answer = None if error else self._reader.end()
            if answer is not None:
                self._waiter.set_result(answer)
            else:
                problem = f": {error}" if error else ""
                self._waiter.set_exception(
                    Unavailable(f"the connection ended before the answer{problem}")
                )
        self._pool.forget(self)
