"""A small month, the page on it by the ASGI test client, and served on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tdev_models import sync, web
from tdev_models.web.serving import Server

Client = Callable[..., TestClient]


@pytest.fixture
def client() -> Iterator[Client]:
    """Makes clients of an application with the given arguments, under a host's name."""
    opened: list[TestClient] = []

    def make(language: str = "en", **arguments: Any) -> TestClient:
        made = TestClient(
            web.app(**arguments),
            base_url="http://localhost",
            headers={"Accept-Language": language},
            raise_server_exceptions=True,
        )
        opened.append(made.__enter__())
        return made

    yield make
    for one in opened:
        one.__exit__(None, None, None)


def every_session(status: str) -> list[str]:
    """Return the ids of all sessions of a status, as the public call lists them."""
    found, cursor = list[str](), None
    while True:
        page = sync.list_pipeline_sessions(status=status, limit=1000, cursor=cursor)
        found += [session.session_id for session in page]
        if (cursor := page.cursor) is None:
            return found


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """Serve the page on a free port, and yield its address."""
    server = Server(app, 0)
    with server.config.bind_socket() as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server ended"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
