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
import pytest
import werkzeug.serving
from moto.moto_server.werkzeug_app import create_backend_app

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
def moto() -> Iterator[str]:
    """The endpoint of a moto of these tests' own: they empty it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # One request at a time: moto's races come from its threads.
    server = werkzeug.serving.make_server("127.0.0.1", 0, _dispatch(), threaded=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def _dispatch() -> Any:
    """Return moto as one application; its own dispatcher takes longer to find a service."""
    apps: dict[str, Any] = {}

    def dispatch(environ: dict[str, Any], start_response: Any) -> Any:
        scope = environ.get("HTTP_AUTHORIZATION", "////").split("/")[3]
        service = {"": "moto_api", "monitoring": "cloudwatch"}.get(scope, scope)
        service = service.replace("-", "")
        if service not in apps:
            apps[service] = create_backend_app(service)
        return apps[service](environ, start_response)

    return dispatch


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> StrictAws:
    """AWS as documented; what every runner sends is in `aws.calls`."""
    strict = StrictAws(moto)

    def call(client: Any, operation: str, params: dict[str, Any]) -> Any:
        return strict.call(client, operation, params)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    return strict


@pytest.fixture(scope="session")
def dynoxide() -> Iterator[str]:
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
def settings(environment: str, moto: str) -> Settings:
    return Settings(environment=environment, region=REGION, endpoint=moto)
