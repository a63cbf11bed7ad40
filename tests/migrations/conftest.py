"""An engine for the tests of migrations: moto, with the rules of AWS that moto lacks."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from typing import Any

import botocore.client
import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tdev_models.migrations import calls
from tdev_models.settings import Settings
from tests.migrations.runs import prod
from tests.migrations.strict import StrictAws

REGION = "us-east-1"
ENDPOINT = "http://localhost"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "TDEV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", REGION)


@pytest.fixture(scope="session")
def moto() -> Any:
    """Moto as one WSGI application, called without sockets, which halves the time."""
    apps: dict[str, Any] = {}

    def dispatch(environ: dict[str, Any], start_response: Any) -> Any:
        scope = environ.get("HTTP_AUTHORIZATION", "////").split("/")[3]
        service = {"": "moto_api", "monitoring": "cloudwatch"}.get(scope, scope).replace("-", "")
        if service not in apps:
            apps[service] = create_backend_app(service)
        return apps[service](environ, start_response)

    return dispatch


@pytest.fixture
def aws(moto: Any, monkeypatch: pytest.MonkeyPatch) -> StrictAws:
    """AWS as documented; every call of every run is in `aws.calls`."""
    real = URLLib3Session.send

    def send(session: Any, request: Any) -> Any:
        if not request.url.startswith(ENDPOINT):
            return real(session, request)
        headers = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        data = request.body.encode() if isinstance(request.body, str) else request.body
        path = request.url.removeprefix(ENDPOINT)
        builder = EnvironBuilder(path=path, method=request.method, headers=headers, data=data)
        body, status, answered = run_wsgi_app(moto, builder.get_environ(), buffered=True)
        code = int(status.split()[0])
        return AWSResponse(request.url, code, dict(answered), Body(b"".join(body)))

    monkeypatch.setattr(URLLib3Session, "send", send)
    monkeypatch.setenv("AWS_ENDPOINT_URL", ENDPOINT)
    strict = StrictAws(ENDPOINT)
    monkeypatch.setattr(
        botocore.client.BaseClient,
        "_make_api_call",
        lambda client, operation, params: strict.call(client, operation, params),
    )
    return strict


class Body(io.BytesIO):
    """The body of an answer, as botocore reads it."""

    def stream(self) -> Iterator[bytes]:
        yield self.read()


@pytest.fixture
def environment() -> str:
    """The name of an environment that no other test uses."""
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def like_prod(aws: StrictAws, environment: str) -> str:
    """The name of an environment whose table `metrics` is as `prod` declares it."""
    assert prod("apply", environment, "--table=metrics") == 0
    return environment


@pytest.fixture
def settings(environment: str) -> Settings:
    return Settings(environment=environment, region=REGION, endpoint=ENDPOINT)


@pytest.fixture
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a read up soon: for tests in which it never succeeds."""
    monkeypatch.setattr(calls, "LOCAL", calls.LOCAL._replace(read=0.2))
