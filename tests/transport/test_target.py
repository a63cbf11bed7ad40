"""Requests go where botocore's own client sends them, with its credentials and certificates."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError
from moto import mock_aws

from tdev_models import Settings, aws, get_user_project, settings, sync
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.transports import target
from tdev_models.dynamodb.transports.blocking import BlockingTransport
from tdev_models.dynamodb.transports.loop import LoopTransport
from tdev_models.dynamodb.transports.target import Target, opened
from tdev_models.errors import ConfigurationError, TdevError, Unavailable
from tdev_models.models import TABLES
from tests.transport.conformance import GET
from tests.transport.test_signing import head_of

KEYS = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret"}
ACCOUNT = {**KEYS, "AWS_ACCOUNT_ID": "123456789012"}
PROFILE = """
[default]
region = eu-central-1
[profile other]
region = ap-south-1
aws_access_key_id = PROFILEKEY
aws_secret_access_key = s
aws_session_token = t
{lines}
[profile with-user]
endpoint_url = https://me:secret@h.example
region = eu-central-1
aws_access_key_id = PROFILEKEY
aws_secret_access_key = s
[services local]
dynamodb =
  endpoint_url = https://services.example:9000
"""

# By name: the environment, and lines of the profile "other" where it is used.
CASES: dict[str, tuple[dict[str, str], str | None]] = {
    "region": ({**KEYS, "AWS_DEFAULT_REGION": "eu-west-1"}, None),
    "region of the default profile": (KEYS, None),
    "China": ({**KEYS, "AWS_DEFAULT_REGION": "cn-north-1"}, None),
    "GovCloud": ({**KEYS, "AWS_DEFAULT_REGION": "us-gov-west-1"}, None),
    "the sovereign cloud": ({**KEYS, "AWS_DEFAULT_REGION": "eusc-de-east-1"}, None),
    "a region of tomorrow": ({**KEYS, "AWS_DEFAULT_REGION": "eu-north-7"}, None),
    "the region local": ({**KEYS, "AWS_DEFAULT_REGION": "local"}, None),
    "no region at all": ({**KEYS, "AWS_CONFIG_FILE": os.devnull}, None),
    "no possible region": ({**KEYS, "AWS_DEFAULT_REGION": "not/one"}, None),
    "FIPS": ({**KEYS, "AWS_USE_FIPS_ENDPOINT": "true"}, None),
    "FIPS in GovCloud": (
        {**KEYS, "AWS_DEFAULT_REGION": "us-gov-east-1", "AWS_USE_FIPS_ENDPOINT": "true"},
        None,
    ),
    "a FIPS region": ({**KEYS, "AWS_DEFAULT_REGION": "fips-us-east-1"}, None),
    "dual stack": ({**KEYS, "AWS_USE_DUALSTACK_ENDPOINT": "true"}, None),
    "dual stack in China": (
        {**KEYS, "AWS_DEFAULT_REGION": "cn-northwest-1", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
        None,
    ),
    "FIPS and dual stack": (
        {**KEYS, "AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
        None,
    ),
    "an account": (ACCOUNT, None),
    "an account in China": ({**ACCOUNT, "AWS_DEFAULT_REGION": "cn-north-1"}, None),
    "an account with FIPS": ({**ACCOUNT, "AWS_USE_FIPS_ENDPOINT": "true"}, None),
    "an account with dual stack": ({**ACCOUNT, "AWS_USE_DUALSTACK_ENDPOINT": "true"}, None),
    "an account, disabled": ({**ACCOUNT, "AWS_ACCOUNT_ID_ENDPOINT_MODE": "disabled"}, None),
    "an account, required": ({**ACCOUNT, "AWS_ACCOUNT_ID_ENDPOINT_MODE": "REQUIRED"}, None),
    "no account, required": ({**KEYS, "AWS_ACCOUNT_ID_ENDPOINT_MODE": "required"}, None),
    "an unknown account mode": ({**KEYS, "AWS_ACCOUNT_ID_ENDPOINT_MODE": "perhaps"}, None),
    "an endpoint": ({**KEYS, "AWS_ENDPOINT_URL": "https://all.example:8443/"}, None),
    "an endpoint with FIPS": (
        {**KEYS, "AWS_ENDPOINT_URL": "https://h:80", "AWS_USE_FIPS_ENDPOINT": "true"},
        None,
    ),
    "an endpoint of one service": (
        {
            **ACCOUNT,
            "AWS_ENDPOINT_URL": "http://all.example",
            "AWS_ENDPOINT_URL_DYNAMODB": "http://[::1]:4566",
        },
        None,
    ),
    "endpoints that are ignored": (
        {
            **KEYS,
            "AWS_ENDPOINT_URL": "http://all.example",
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        },
        None,
    ),
    "no possible endpoint": ({**KEYS, "AWS_ENDPOINT_URL": "all.example"}, None),
    "a profile": ({}, ""),
    "a profile's endpoint": ({}, "endpoint_url = https://profile.example:81"),
    "a profile's services": ({}, "services = local"),
    "a profile's services that are missing": ({}, "services = none"),
    "a profile's dual stack": ({}, "use_dualstack_endpoint = true"),
    "a profile's FIPS": ({}, "use_fips_endpoint = true"),
    "a profile's account": ({}, "aws_account_id = 210987654321"),
    "a file that is none of AWS's": ({**KEYS, "AWS_CONFIG_FILE": __file__}, None),
}


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text(PROFILE.format(lines=""))
    monkeypatch.setattr(target, "_opened", {})
    monkeypatch.setattr(aws, "_clients", {})
    monkeypatch.setattr(target, "opened", opened)


def set_up(case: tuple[dict[str, str], str | None], monkeypatch: Any, tmp_path: Path) -> None:
    environ, lines = case
    if lines is not None:
        (tmp_path / "config").write_text(PROFILE.format(lines=lines))
        monkeypatch.setenv("AWS_PROFILE", "other")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def sent_by_botocore() -> tuple[str, str, str | None]:
    """Return scheme and host, scope and token of what botocore's client sends."""
    sent: list[Any] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        response = AWSResponse(request.url, 200, {}, None)
        response._content = b"{}"
        return response

    client = aws.dynamodb(Settings())
    client.meta.events.register("before-send.dynamodb", answer)
    client.get_item(**GET)
    (request,) = sent
    return _origin(request.url), *_signed(request.headers)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _signed(headers: Any) -> tuple[str, str | None]:
    text, token = (
        one.decode() if isinstance(one, bytes) else one
        for one in (headers["Authorization"], headers.get("X-Amz-Security-Token"))
    )
    key, _, *scope = text.partition("Credential=")[2].partition(",")[0].split("/")
    return "/".join([key, *scope]), token


def sent_by_the_package() -> tuple[str, str, str | None]:
    found = opened(Settings())
    assert found is not None
    headers = head_of(found.signer.head("GetItem", b"{}", found.renewed_credentials()))
    url = f"{'http' if found.tls is None else 'https'}://{headers['Host']}"
    return _origin(url), *_signed(headers)


@pytest.mark.parametrize("name", CASES)
def test_a_request_goes_where_botocore_sends_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_up(CASES[name], monkeypatch, tmp_path)
    expected: Any
    try:
        expected = sent_by_botocore()
    except BotoCoreError as error:
        expected = error
    except ConfigurationError as error:  # as its client was made
        expected = error.__cause__
    if isinstance(expected, Exception):
        with pytest.raises(TdevError) as refused:
            sent_by_the_package()
        assert isinstance(refused.value, ConfigurationError), refused.value
        if isinstance(expected, BotoCoreError):
            assert type(refused.value.__cause__) is type(expected)
    else:
        assert sent_by_the_package() == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTPS_PROXY": "http://proxy.example:3128"},
        {"https_proxy": "http://proxy.example:3128", "NO_PROXY": "elsewhere.example"},
        {"AWS_ENDPOINT_URL": "https://h.example/path"},
        {"AWS_PROFILE": "with-user"},
        {"AWS_ENDPOINT_DISCOVERY_ENABLED": "true"},
        {"TDEV_TRANSPORT": "botocore"},
    ],
    ids=lambda environ: next(iter(environ)),
)
def test_botocore_sends_where_only_it_can(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_up(({**KEYS, **environ}, None), monkeypatch, tmp_path)
    assert opened(Settings.from_env()) is None


def test_a_proxy_that_is_not_for_this_host_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxies = {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".amazonaws.com"}
    set_up(({**KEYS, **proxies}, None), monkeypatch, tmp_path)
    assert isinstance(opened(Settings()), Target)


@pytest.mark.parametrize("variable", ["NO_PROXY", "HTTP_PROXY", "ALL_PROXY"])
def test_a_variable_that_names_no_proxy_for_https_changes_nothing(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_up(({**KEYS, variable: "proxy.example:3128"}, None), monkeypatch, tmp_path)
    assert isinstance(opened(Settings()), Target)


def test_endpoints_of_the_users_own_are_left_to_botocore(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / ".aws/models"
    own.mkdir(parents=True)
    (own / "endpoints.json").write_text("{}")
    set_up((KEYS, None), monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_DATA_PATH", str(own))
    assert opened(Settings()) is None


def test_no_credentials_are_looked_for_again_at_each_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigurationError, match="no credentials"):
        opened(Settings())
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert isinstance(opened(Settings()), Target)


UNUSABLE: dict[str, tuple[dict[str, str], str | None]] = {
    "no such program": ({}, "credential_process = /none/such"),
    "no possible program": ({}, "credential_process = /none/such 'a"),
    "a program that prints no JSON": ({}, "credential_process = /bin/echo oops"),
    "a program that prints a list": ({}, "credential_process = /bin/echo []"),
    "no such token": (
        {},
        "role_arn = arn:aws:iam::123456789012:role/x\nweb_identity_token_file = /none/such",
    ),
    "credentials that have ended": (
        {**KEYS, "AWS_CREDENTIAL_EXPIRATION": "2020-01-01T00:00:00Z"},
        None,
    ),
    "credentials that end never": ({**KEYS, "AWS_CREDENTIAL_EXPIRATION": "never"}, None),
    "a container's host that is none": (
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/x"},
        None,
    ),
    "a port that is none": ({}, "endpoint_url = https://h.example:99999"),
    "an address that is none": ({}, "endpoint_url = https://[::1"),
    "a proxy that is none": (
        {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "HTTP_PROXY": "http://[::1"},
        None,
    ),
}


@pytest.mark.parametrize("transport", ["", "botocore"])
@pytest.mark.parametrize("name", UNUSABLE)
async def test_what_of_the_configuration_botocore_cannot_use_is_an_error_of_the_package(
    name: str, transport: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ, lines = UNUSABLE[name]
    set_up(({**environ, "TDEV_TRANSPORT": transport}, lines), monkeypatch, tmp_path)
    if lines is not None and "endpoint_url" not in lines:
        text = (tmp_path / "config").read_text().replace("aws_access_key_id", "unused")
        (tmp_path / "config").write_text(text.replace("aws_secret_access_key", "unused_too"))
    # botocore looks at some of it as it sends.
    kinds = (ConfigurationError, Unavailable) if transport else ConfigurationError
    with settings.use(Settings.from_env(), retry_seconds=0):
        with pytest.raises(kinds, match="usable"):
            await get_user_project("u", "p")
        with pytest.raises(kinds, match="usable"):
            sync.get_user_project("u", "p")


@pytest.mark.parametrize("host", ["a\0b.example", ".example", "a..example"])
async def test_a_host_that_no_name_server_could_know_is_unavailable(
    host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_up(({}, f"endpoint_url = https://{host}"), monkeypatch, tmp_path)
    with pytest.raises(Unavailable, match="cannot connect"):
        drive(BlockingTransport(Settings())("GetItem", GET))
    with pytest.raises(Unavailable, match="cannot connect"):
        async with asyncio.timeout(5):
            await LoopTransport(Settings())("GetItem", GET)


@pytest.mark.parametrize("transport", ["", "botocore"])
@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, "https://me:hidden@127.0.0.1:1"),
        ({}, "ftp://me:hidden@127.0.0.1:1"),
        ({"HTTPS_PROXY": "http://me:hidden@127.0.0.1:99999"}, "https://h.example"),
    ],
)
def test_no_error_shows_a_password_of_an_endpoint_or_a_proxy(
    variables: dict[str, str],
    endpoint: str,
    transport: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    environ = {**variables, "TDEV_TRANSPORT": transport}
    set_up((environ, f"endpoint_url = {endpoint}"), monkeypatch, tmp_path)
    with pytest.raises(TdevError) as raised:
        drive(BlockingTransport(Settings.from_env())("GetItem", GET))
    assert "hidden" not in str(raised.value)
    assert "//***@127" in str(raised.value) or "scheme" in str(raised.value)


def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "AWS_CA_BUNDLE": "/none/ca.pem"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"/none/ca\.pem.*AWS_CA_BUNDLE"):
        opened(Settings())


async def test_a_mock_of_moto_answers_while_it_is_open_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    at_nobody = Settings(environment="mocked", region="us-east-1", retry_seconds=0)
    with settings.use(at_nobody):
        for mocked in (mock_aws(), mock_aws()):
            with mocked:
                for model in TABLES:
                    model.create_table()
                sync.save_user_project(project_id="p", user_id="u")
                assert (await get_user_project("u", "p")).user_id == "u"
    with settings.use(replace(at_nobody, endpoint="http://127.0.0.1:1")):
        with pytest.raises(Unavailable):
            await get_user_project("u", "p")
