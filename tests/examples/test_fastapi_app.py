"""The example's server, killed and stopped while agents run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from tdev_models import AGENTS, Settings

ROOT = Path(__file__).parents[2]


class Server:
    """One process of the example."""

    def __init__(self, store: Settings, log: Path, hangs: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TDEV_ENV": store.environment,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_DYNAMODB": store.endpoint or "",
            "TDEV_AUTOMATIC_METRICS": "off",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.examples.served", str(self.port), str(log), hangs],
            env=environment,
        )

    def ask(self, path: str, user_id: str, body: Any = None) -> Any:
        """Send a request, and return its JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-User": user_id, "Content-Type": "application/json"}
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        """Return whether it answers."""
        assert self.process.poll() is None, "the server ended"
        try:
            self.ask("/openapi.json", "nobody")
        except URLError:
            return False
        return True


@contextmanager
def serving(store: Settings, log: Path, hangs: str = "") -> Iterator[Server]:
    """Run a server until it is ended."""
    server = Server(store, log, hangs)
    try:
        wait_for(server.is_up)
        yield server
    finally:
        server.process.kill()
        server.process.wait(10)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ran(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_server_leaves_another_ends(
    strict_store: Settings, tmp_path: Path, end: signal.Signals
) -> None:
    log = tmp_path / "log"
    with ExitStack() as servers:
        first = servers.enter_context(serving(strict_store, log, "generation"))
        started = first.ask("/projects", "u1", {"request": "a todo app"})
        project_id = started["session_id"]
        wait_for(lambda: "generation" in ran(log))
        first.process.send_signal(end)
        if end == signal.SIGTERM:  # the agent that runs may end
            log.with_suffix(".go").touch()
        assert first.process.wait(20) == -end
        log.with_suffix(".go").touch()

        second = servers.enter_context(serving(strict_store, log))

        def progress() -> Any:
            query = urlencode({"session_id": project_id})
            return second.ask(f"/runs/api/session?{query}", "u1")

        wait_for(lambda: progress()["status"] == "COMPLETED")
        again = ["generation"] if end == signal.SIGKILL else []
        assert Counter(ran(log)) == Counter([*AGENTS, *again])
        wait_for(lambda: second.ask("/runs/api/projects", "u1")["items"])
        downloaded = second.ask(f"/projects/{project_id}/download", "u1", {})
        assert downloaded["by"] == "download"
        assert second.ask("/runs/api/projects", "u1")["items"][0]["download_count"] == 1
        for path in (f"/runs/session?session_id={project_id}", f"/projects/{project_id}/download"):
            with pytest.raises(HTTPError) as refused:
                second.ask(path, "u2", {} if "download" in path else None)
            assert refused.value.code == 404
            refused.value.close()
        with pytest.raises(HTTPError) as unknown:
            second.ask("/runs/", "")
        assert unknown.value.code == 401
        unknown.value.close()


def test_the_example_is_short() -> None:
    lines = (ROOT / "examples" / "fastapi_app.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60
