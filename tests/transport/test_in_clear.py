"""Nothing travels unencrypted to another machine, whoever names the endpoint and whoever sends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdev_models import (
    Settings,
    aws,
    get_pipeline_session,
    settings,
    sync,
)
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient
from tdev_models.dynamodb.transports import target
from tdev_models.errors import ConfigurationError, InvalidRequest, TdevError, Unavailable
from tdev_models.migrations import calls
from tdev_models.models import PipelineSession
from tdev_models.security import fields
from tests.transport.wire import Wire, ok, wired

HOST = "dynamodb.elsewhere.example"
KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/k"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKID",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}

# How an endpoint can be named: variables, and lines of the AWS configuration file.
WAYS: dict[str, tuple[dict[str, str], str]] = {
    "AWS_ENDPOINT_URL": ({"AWS_ENDPOINT_URL": "{url}"}, ""),
    "AWS_ENDPOINT_URL_DYNAMODB": ({"AWS_ENDPOINT_URL_DYNAMODB": "{url}"}, ""),
    "profile": ({}, "[default]\nendpoint_url = {url}"),
    "named profile": ({"AWS_PROFILE": "other"}, "[profile other]\nendpoint_url = {url}"),
    "services section": (
        {},
        "[default]\nservices = own\n[services own]\ndynamodb =\n  endpoint_url = {url}",
    ),
    "proxy": ({"HTTP_PROXY": "{url}", "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}"}, ""),
    "user in front of loopback": ({"AWS_ENDPOINT_URL": "http://127.0.0.1@" + HOST + ":{port}"}, ""),
}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A server that a name of another machine leads to."""
    found = socket.getaddrinfo

    def here(host: Any, *more: Any, **named: Any) -> Any:
        return found("127.0.0.1" if host in (HOST, HOST.encode()) else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    with wired() as wire:
        wire.answer = lambda request: ok({})
        yield wire


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**KEYS, "AWS_CONFIG_FILE": str(tmp_path / "config")}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(target, "_opened", {})
    monkeypatch.setattr(aws, "_clients", {})
    monkeypatch.setattr(settings, "_configured", None)
    for kind in (AsyncClient, BlockingClient):
        monkeypatch.setattr(kind, "_open", {})
    calls._client.cache_clear()


def name_it(way: str, wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables, lines = WAYS[way]
    facts = {"url": f"http://{HOST}:{wire.port}", "port": str(wire.port)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(**facts))
    (tmp_path / "config").write_text(lines.format(**facts))


def by_the_loop(current: Settings) -> None:
    with settings.use(current):
        asyncio.run(get_pipeline_session("s"))


def by_a_thread(current: Settings) -> None:
    with settings.use(current):
        sync.get_pipeline_session("s")


def by_botocore(current: Settings) -> None:
    with settings.use(current, transport="botocore"):
        sync.get_pipeline_session("s")


def by_the_orm(current: Settings) -> None:
    with settings.use(current):
        PipelineSession("s", status="ACTIVE").save()


def by_migrations(current: Settings) -> None:
    calls.Calls(current)("DescribeTable", TableName="x")


SENDERS = (by_the_loop, by_a_thread, by_botocore, by_the_orm, by_migrations)


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_sent_in_clear(
    way: str,
    send: Callable[[Settings], None],
    elsewhere: Wire,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name_it(way, elsewhere, monkeypatch, tmp_path)
    with pytest.raises((ConfigurationError, InvalidRequest), match=r"unencrypted.*TDEV_ALLOW_HTTP"):
        send(Settings(environment="prod"))
    with pytest.raises(TdevError, match=r"unencrypted|holds a user"):
        send(settings.current())  # of dev, from the environment
    assert elsewhere.made == 0


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "user in front of loopback"])
def test_who_allows_plain_http_gets_it(
    way: str,
    send: Callable[[Settings], None],
    elsewhere: Wire,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    name_it(way, elsewhere, monkeypatch, tmp_path)
    monkeypatch.setenv("TDEV_ALLOW_HTTP", "on")
    with suppress(TdevError):  # it gets no answer that it could use
        send(replace(settings.current(), retry_seconds=0, connect_timeout_seconds=9))
    assert elsewhere.made


@pytest.mark.parametrize("service", ["sts", "cloudwatch", "application_auto_scaling"])
def test_the_other_services_of_migrations_get_nothing_in_clear(
    service: str, elsewhere: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = {
        "sts": "GetCallerIdentity",
        "cloudwatch": "DescribeAlarms",
        "application_auto_scaling": "DescribeScalableTargets",
    }[service]
    url = f"http://{HOST}:{elsewhere.port}"
    monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service.upper()}", url)
    on_aws = calls.Calls(Settings())
    with pytest.raises(ConfigurationError, match="unencrypted"):
        on_aws(operation, **({"ServiceNamespace": "dynamodb"} if "auto" in service else {}))
    assert elsewhere.made == 0


def test_no_data_key_travels_in_clear_where_other_settings_allow_it(
    elsewhere: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://{HOST}:{elsewhere.port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", url)
    monkeypatch.setattr(fields, "_keys", {})
    chosen = Settings(kms_key=KMS_KEY, retry_seconds=0)
    for sent in range(2):
        with settings.use(chosen):
            with pytest.raises(ConfigurationError, match="unencrypted"):
                sync.save_pipeline_session(session_id="s", metadata={})
        assert len(elsewhere.heads) == sent
        with settings.use(chosen, allow_http=True):
            with pytest.raises(Unavailable, match="not that of KMS"):
                sync.save_pipeline_session(session_id="s", metadata={})
        assert len(elsewhere.heads) == sent + 1


def test_rules_of_the_users_own_cannot_lead_to_plain_http(
    elsewhere: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = tmp_path / "models/dynamodb/2012-08-10"
    rules.mkdir(parents=True)
    (rules / "endpoint-rule-set-1.json").write_text(
        '{"version": "1.0", "parameters": {"Region": {"type": "String", "builtIn": "AWS::Region"}},'
        '"rules": [{"conditions": [], "type": "endpoint", "endpoint":'
        f'{{"url": "http://{HOST}:{elsewhere.port}", "properties": {{}}, "headers": {{}}}}}}]}}'
    )
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path / "models"))
    for send in SENDERS:
        with pytest.raises(ConfigurationError, match="unencrypted"):
            send(Settings())
    assert elsewhere.made == 0


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]"])
def test_loopback_is_no_network(host: str) -> None:
    url = f"http://{host}:8000"
    assert Settings(environment="prod", endpoint=url).endpoint == url


@pytest.mark.parametrize(
    "host",
    ["dynamodb", "localhost.example", "127.0.0.1.example", "128.0.0.1", "0.0.0.0", "[::2]"],
)
def test_what_only_looks_like_loopback_is_refused(host: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^endpoint: .*TDEV_ALLOW_HTTP"):
        Settings(endpoint=f"http://{host}:8000")
    Settings(endpoint=f"http://{host}:8000", allow_http=True)


async def test_a_user_of_plain_http_is_told_before_credentials_are_fetched(
    elsewhere: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text("a secret token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:{elsewhere.port}")
    with settings.use(Settings(region="us-east-1")):
        with pytest.raises(ConfigurationError, match="unencrypted"):
            await get_pipeline_session("s")
    assert elsewhere.made == 0
