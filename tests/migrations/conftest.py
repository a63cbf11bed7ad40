"""Engines for the tests of migrations: moto with the rules of AWS, and dynoxide."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import botocore.client
import moto.server
import pytest
import werkzeug.serving

from tdev_models.settings import Settings
from tests.migrations.strict import StrictAws

REGION = "us-east-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "TDEV_")) and name != "TDEV_DYNOXIDE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", REGION)


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = moto.server.DomainDispatcherApplication(moto.server.create_backend_app)
    # One request at a time: moto's races come from its threads.
    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> StrictAws:
    """AWS as documented; what every runner sends is in `aws.calls`."""
    strict = StrictAws(moto_url)
    plain = botocore.client.BaseClient._make_api_call

    def call(client: Any, operation: str, params: dict[str, Any]) -> Any:
        if threading.current_thread().name.startswith("tdev-heartbeat"):
            return plain(client, operation, params)  # of sessions that other tests left open
        return strict.call(client, operation, params)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    return strict


@pytest.fixture(scope="session")
def dynoxide_url() -> Iterator[str]:
    binary = os.environ.get("TDEV_DYNOXIDE") or shutil.which("dynoxide")
    if binary is None:
        reason = "dynoxide is neither on PATH nor in TDEV_DYNOXIDE"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 0.1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture
def environment() -> str:
    """A name that no other test has."""
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def settings(environment: str, moto_url: str) -> Settings:
    return Settings(environment=environment, region=REGION, endpoint=moto_url)
