"""Signatures equal those of botocore's signer."""

from __future__ import annotations

import datetime
import random
import time
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tdev_models.dynamodb.transports import signing
from tdev_models.dynamodb.transports.signing import Signer
from tdev_models.errors import ConfigurationError

HOSTS = ("dynamodb.eu-west-1.amazonaws.com", "127.0.0.1:8000", "[::1]:4566", "x.example:8443")
REGIONS = ("us-east-1", "cn-north-1", "us-gov-west-1", "eusc-de-east-1")
OPERATIONS = ("GetItem", "Query", "TransactWriteItems")
TOKEN = "abcXYZ019+/=-_. "


def head_of(made: bytes) -> dict[str, str]:
    start, *lines = made.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert start == "POST / HTTP/1.1"
    return dict(line.split(": ", 1) for line in lines)


def test_ten_thousand_random_requests_have_botocores_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(11)
    at = [0.0]
    clock = SimpleNamespace(time=lambda: at[0], strftime=time.strftime, gmtime=time.gmtime)
    monkeypatch.setattr(signing, "time", clock)
    monkeypatch.setattr(
        botocore.auth,
        "get_current_datetime",
        lambda: datetime.datetime.fromtimestamp(int(at[0]), datetime.UTC).replace(tzinfo=None),
    )
    signers = [
        (host, region, name, Signer(host, region, name, "agent"))
        for host in HOSTS
        for region in REGIONS
        for name in ("dynamodb", "other")
    ]
    for number in range(10_000):
        at[0] = chance.uniform(1.6e9, 2.2e9) if number % 3 else at[0] + chance.random()
        host, region, name, signer = chance.choice(signers)
        credentials = Credentials(
            "".join(chance.choices("ABCDEFGHIJ0123456789", k=20)),
            "".join(chance.choices(TOKEN.strip(), k=40)),
            "".join(chance.choices(TOKEN, k=chance.randrange(1, 900))) if number % 2 else None,
        )
        operation, body = chance.choice(OPERATIONS), chance.randbytes(chance.randrange(300))
        ours = head_of(signer.head(operation, body, credentials))
        assert ours["Host"] == host
        assert ours["Content-Length"] == str(len(body))
        theirs = AWSRequest(
            "POST",
            f"http://{host}/",
            {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": ours["X-Amz-Target"]},
            body,
        )
        SigV4Auth(credentials, name, region).add_auth(theirs)
        for header in ("Authorization", "X-Amz-Date", "X-Amz-Security-Token"):
            assert ours.get(header) == theirs.headers.get(header), (number, header)


@pytest.mark.parametrize("field", ["access_key", "secret_key", "token"])
@pytest.mark.parametrize("end", ["\r\nHost: elsewhere", "\n", "\udcff"])
def test_a_credential_cannot_add_headers(field: str, end: str) -> None:
    values: dict[str, Any] = {"access_key": "a", "secret_key": "s", "token": "t"}
    signer = Signer("h", "us-east-1", "dynamodb", "agent")
    signer.head("GetItem", b"", Credentials(**values))
    values[field] += end
    with pytest.raises(ConfigurationError, match="line break"):
        signer.head("GetItem", b"", Credentials(**values))


def test_the_user_agent_cannot_add_headers() -> None:
    signer = Signer("h", "us-east-1", "dynamodb", "agent exec-env/x\r\nHost: elsewhere\udcff")
    head = head_of(signer.head("GetItem", b"", Credentials("a", "s")))
    assert (head["Host"], head["User-Agent"]) == ("h", "agent exec-env/x--Host: elsewhere-")


@pytest.mark.parametrize("hours", [-9, 0.5, 1000])
def test_signatures_take_the_time_of_the_store(hours: float) -> None:
    signer = Signer("h", "us-east-1", "dynamodb", "agent")
    there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
    assert signer.corrects(format_datetime(there, usegmt=True), 0.0)
    stamp = head_of(signer.head("GetItem", b"", Credentials("a", "s")))["X-Amz-Date"]
    signed = datetime.datetime.strptime(stamp + "+0000", "%Y%m%dT%H%M%SZ%z")
    assert abs(signed - there) < datetime.timedelta(seconds=5)
    assert not signer.corrects(format_datetime(there, usegmt=True), signer.skew_seconds)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 99 Foo 2031 00:00:00 GMT"])
def test_a_date_that_is_none_corrects_nothing(date: str | None) -> None:
    assert not Signer("h", "us-east-1", "dynamodb", "agent").corrects(date, 0.0)
