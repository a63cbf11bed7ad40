"""The open connections of plain threads to DynamoDB: HTTP/1.1 over blocking sockets."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

import httptools

from tdev_models.aws import untrusted
from tdev_models.dynamodb.threads import in_thread
from tdev_models.dynamodb.transports.answers import IDLE_SECONDS, Answer, Reader
from tdev_models.dynamodb.transports.target import Target
from tdev_models.errors import Unavailable
from tdev_models.settings import Settings

_PART_BYTES: Final = 65536


class BlockingPool:
    """Keeps connections open for the requests of all settings with this target.

    A thread that finds none free makes one: it never waits for another thread's request.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle = deque[_Connection]()  # the one used last is at the end
        self._asked: Future[list[tuple[Any, ...]]] | None = None  # for the endpoint's addresses
        self._answers = 0

    def exchange(self, request: bytes, settings: Settings) -> Answer:
        """Send the bytes of one request and return its answer.

        At most `max_connections` are kept open after it, for further ones.

        Raises:
            Unavailable: there was none.
        """
        seconds, answers = settings.read_timeout_seconds, self._answers
        connection = self._newest_idle() or self._made(settings.connect_timeout_seconds)
        try:
            answer = connection.exchange(request, seconds)
        except TimeoutError:
            if answers == self._answers:  # to anybody
                self.close()  # the way to the server may be another one since they were made
            raise Unavailable(f"no answer within {seconds:g} s") from None
        except OSError as error:
            raise Unavailable(f"the connection ended before the answer: {error}") from error
        except httptools.HttpParserError as error:
            raise Unavailable(f"the answer is not HTTP: {error}") from error
        finally:
            self._give_back(connection, settings.max_connections)
        self._answers += 1
        return answer

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def _newest_idle(self) -> _Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable():
                return connection
            connection.close()

    def _made(self, seconds: float) -> _Connection:
        target = self._target
        where = f"cannot connect to {target.host}:{target.port}"
        try:
            sock = self._connected(seconds)
        except TimeoutError:
            raise Unavailable(f"{where}: no connection in time") from None
        except (OSError, ValueError) as error:  # the latter: no name that DNS could know
            raise Unavailable(f"{where}: {error}") from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if target.tls is not None:
                sock = target.tls.wrap_socket(sock, server_hostname=target.host)
        except OSError as error:
            sock.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise untrusted(f"{target.host}:{target.port}", error) from error
            raise Unavailable(f"{where}: {error}") from error
        return _Connection(sock)

    def _connected(self, seconds: float) -> socket.socket:
        """Return a socket to the first address of the endpoint that can be reached."""
        addresses = self._addresses(seconds)
        for address in addresses:
            try:
                return socket.create_connection((address, self._target.port), seconds)
            except OSError:
                if address == addresses[-1]:
                    raise
        raise OSError("the name has no address")

    def _addresses(self, seconds: float) -> list[str]:
        """Return the endpoint's addresses, as DNS gives them in the time that connecting may take.

        As those of a loop: an answer that comes later serves whoever asks next.
        """
        name = self._target.host, self._target.port, 0, socket.SOCK_STREAM, 0
        try:
            found = socket.getaddrinfo(*name, socket.AI_NUMERICHOST)  # at once: asks nobody
        except socket.gaierror:
            try:
                asked = self._asked = self._asked or in_thread(socket.getaddrinfo, *name)
            except RuntimeError:  # no thread begins any more, as while the interpreter ends
                return [str(one[4][0]) for one in socket.getaddrinfo(*name)]
            try:
                found = asked.result(seconds)
            finally:
                if self._asked is asked and asked.done():
                    self._asked = None
        return [*dict.fromkeys(str(one[4][0]) for one in found)]

    def _give_back(self, connection: _Connection, most: int) -> None:
        if not connection.reusable or len(self._idle) >= most:
            connection.close()
            return
        self._idle.append(connection)
        # What many threads once needed, and one does not, the server has closed by then.
        with suppress(IndexError):
            while not self._idle[0].is_fresh():
                self._idle.popleft().close()


class _Connection:
    """One connection, with one request at a time.

    Attributes:
        reusable: whether another request can be sent: it is open, and no answer is outstanding.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._reader = sock, Reader()
        self._used, self.reusable = time.monotonic(), True

    def is_fresh(self) -> bool:
        """Return whether it was used lately, so that nothing on the way has forgotten it."""
        return time.monotonic() - self._used < IDLE_SECONDS

    def is_usable(self) -> bool:
        """Return whether it is open, and nothing on the way has forgotten it."""
        if not self.is_fresh():
            return False
        # What can be read now is the server's end of the connection, or something unasked for.
        return not _is_readable(self._socket)

    def exchange(self, request: bytes, seconds: float) -> Answer:
        """Send the bytes of one request and return its answer.

        Raises:
            OSError: there was none; a TimeoutError where that took so many seconds.
            httptools.HttpParserError: what came is not HTTP.
        """
        self.reusable, self._used = False, time.monotonic()
        self._reader.begin()
        self._socket.settimeout(seconds)
        self._socket.sendall(request)
        answer = None
        while answer is None:
            left = self._used + seconds - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(_PART_BYTES)
            answer = self._reader.feed(part) if part else self._reader.end()
            if not part and answer is None:
                raise ConnectionError("closed by the server")
        self.reusable = self._reader.reusable
        return answer

    def close(self) -> None:
        """Close it."""
        self._socket.close()


if hasattr(select, "poll"):

    def _is_readable(sock: socket.socket) -> bool:
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

else:  # Windows

    def _is_readable(sock: socket.socket) -> bool:
        return bool(select.select([sock], [], [], 0)[0])
