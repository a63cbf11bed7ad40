"""A server of which a test sees the connections, and says what each request gets."""

from __future__ import annotations

import json
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tdev_models import Settings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


def ok(body: Any) -> bytes:
    text = json.dumps(body).encode()
    return OK % (len(text), text)


@dataclass
class Wire:
    """What the server has seen, and what it does.

    Attributes:
        answer: given a request's parameters, returns the bytes to send; empty closes the
            connection, None keeps silent.
        closes: whether it closes a connection after each answer.
        made: how many connections were made.
        now: how many are open.
        most: how many were open at once.
    """

    answer: Callable[[dict[str, Any]], bytes | None] = lambda request: ok({"Item": request["Key"]})
    closes: bool = False
    made: int = 0
    now: int = 0
    most: int = 0
    heads: list[bytes] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0
    scheme: str = "http"
    close_all: Callable[[], None] = lambda: None

    def settings(self, **changes: Any) -> Settings:
        endpoint = f"{self.scheme}://localhost:{self.port}"
        if self.scheme == "http":
            endpoint = f"http://127.0.0.1:{self.port}"
        return Settings(region="us-east-1", endpoint=endpoint, **changes)

    def until(self, now: int) -> None:
        """Wait until so many connections are open."""
        deadline = time.monotonic() + 20
        while self.now != now:
            assert time.monotonic() < deadline, f"{self.now} connections are open, not {now}"
            time.sleep(0.01)


@contextmanager
def wired(tls: ssl.SSLContext | None = None) -> Iterator[Wire]:
    """Run a server on a free port until the block ends."""
    wire, connections = Wire(scheme="https" if tls else "http"), set[Any]()

    class Handler(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            if tls is not None:
                self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()
            with wire.lock:
                connections.add(self.request)
                wire.made, wire.now = wire.made + 1, wire.now + 1
                wire.most = max(wire.most, wire.now)

        def handle(self) -> None:
            with suppress(OSError):
                while request := self._request():
                    answer = wire.answer(request)
                    if answer == b"":
                        return
                    if answer is not None:
                        self.wfile.write(answer)
                    if wire.closes:
                        return

        def _request(self) -> dict[str, Any] | None:
            head = b""
            while line := self.rfile.readline().rstrip(b"\r\n"):
                head += line + b"\n"
            if not head:
                return None
            wire.heads.append(head)
            length = int(head.lower().partition(b"content-length:")[2].split(b"\n")[0])
            parameters: dict[str, Any] = json.loads(self.rfile.read(length))
            return parameters

        def finish(self) -> None:
            with suppress(OSError):
                super().finish()
            with wire.lock:
                connections.discard(self.request)
                wire.now -= 1
            self.request.close()

    class Listening(socketserver.ThreadingTCPServer):
        request_queue_size, daemon_threads, block_on_close = 256, True, False

        def handle_error(self, request: Any, client_address: Any) -> None: ...

    def close_all() -> None:
        with wire.lock:
            for one in connections:
                with suppress(OSError):
                    one.shutdown(2)

    wire.close_all = close_all
    server = Listening(("127.0.0.1", 0), Handler)
    wire.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield wire
    finally:
        close_all()
        server.shutdown()
        server.server_close()
        thread.join()
