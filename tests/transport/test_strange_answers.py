"""Answers with status 200 that DynamoDB does not give: of whatever else listens there."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pynamodb.exceptions import UpdateError

from tdev_models import (
    Settings,
    Unavailable,
    save_pipeline_session,
    settings,
    sync,
)
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.transports.blocking import BlockingTransport
from tdev_models.models import PipelineSession
from tdev_models.retry import is_retried
from tdev_models.security.kms import Kms
from tests.transport.wire import OK, ok, wired

KEY = "arn:aws:kms:us-east-1:123456789012:key/k"


def save() -> None:
    sync.save_pipeline_session(session_id="s", user_id="u")


def save_in_a_loop() -> None:
    asyncio.run(save_pipeline_session(session_id="s", user_id="u"))


def save_execution() -> None:
    sync.update_agent_execution(execution_id="e", agent_name="parser", project_id="s")


def list_sessions() -> None:
    sync.list_pipeline_sessions(user_id="u")


@pytest.mark.parametrize("transport", [None, "botocore"], ids=["own", "botocore"])
@pytest.mark.parametrize(
    ("call", "lacks"),
    [
        (save, "lacks Attributes"),
        (save_in_a_loop, "lacks Attributes"),
        (list_sessions, "lacks Items"),
        (save_execution, "lacks Responses"),
    ],
)
@pytest.mark.parametrize("answer", [{"status": "up"}, {}], ids=["other JSON", "nothing"])
def test_an_answer_without_what_was_asked_for_is_none(
    answer: dict[str, Any],
    call: Callable[[], None],
    lacks: str,
    transport: Literal["botocore"] | None,
) -> None:
    with wired() as wire:
        wire.answer = lambda request: ok(answer)
        with settings.use(wire.settings(retry_seconds=0, transport=transport)):
            with pytest.raises(Unavailable, match=lacks) as raised:
                call()
    assert is_retried(raised.value)


def test_a_count_that_counts_nothing_is_none() -> None:
    with wired() as wire:
        wire.answer = lambda request: ok({"Items": []})
        with settings.use(wire.settings(retry_seconds=0)):
            with pytest.raises(Unavailable, match="lacks Count"):
                sync.usage_report("2031-05-01", "2031-05-02")


def test_answers_of_fewer_items_than_were_asked_for_are_none() -> None:
    with wired() as wire:
        wire.answer = lambda request: ok({"Responses": [{}]})
        with settings.use(wire.settings(retry_seconds=0)):
            with pytest.raises(Unavailable, match="as many"):
                save_execution()


@pytest.mark.parametrize(
    ("body", "checked", "problem"),
    [
        (b"<p>Log in to the network</p>", None, "not the JSON"),
        (b"", None, "not the JSON"),
        (b'{"Item": {"session_', None, "not the JSON"),
        (b'{"Item": {"session_id": {"S": "2"}}}', b'{"Item": {}}', "checksum"),
    ],
    ids=["page", "nothing", "cut short", "damaged"],
)
@pytest.mark.parametrize("transport", [None, "botocore"], ids=["own", "botocore"])
def test_what_dynamodb_did_not_answer_is_no_success(
    transport: Literal["botocore"] | None, body: bytes, checked: bytes | None, problem: str
) -> None:
    """Neither an item that does not exist nor a write that is done, also behind a proxy."""
    crc = zlib.crc32(body if checked is None else checked)
    head = b"HTTP/1.1 200 OK\r\nx-amz-crc32: %d\r\nContent-Length: %d\r\n\r\n"
    with wired() as wire:
        wire.answer = lambda request: head % (crc, len(body)) + body
        with settings.use(wire.settings(retry_seconds=0, transport=transport)) as chosen:
            with pytest.raises(Unavailable, match=problem):
                sync.get_pipeline_session("s")
            with pytest.raises(Unavailable, match=problem):
                drive(BlockingTransport(chosen)("TransactWriteItems", {"TransactItems": []}))
            with pytest.raises(UpdateError, match=problem):
                PipelineSession("s").save()


@pytest.mark.parametrize("transport", [None, "botocore"], ids=["own", "botocore"])
def test_an_answer_without_content_is_none(transport: Literal["botocore"] | None) -> None:
    with wired() as wire:
        wire.answer = lambda request: b"HTTP/1.1 204 No Content\r\n\r\n"
        with settings.use(wire.settings(retry_seconds=0, transport=transport)):
            with pytest.raises(Unavailable, match="not the JSON"):
                sync.get_pipeline_session("s")
            with pytest.raises(UpdateError, match="not the JSON"):
                PipelineSession("s").save()


@pytest.mark.parametrize("body", [b"<p>Log in to the network</p>", b"", b"{}"])
def test_what_kms_did_not_answer_is_no_data_key(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kms = Kms(Settings(region="us-east-1"))
    with wired() as wire:
        wire.answer = lambda request: OK % (len(body), body)
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{wire.port}")
        with pytest.raises(Unavailable, match="not that of KMS"):
            kms.new_data_key(KEY, {})
        with pytest.raises(Unavailable, match="not that of KMS"):
            kms.decrypted(KEY, b"encrypted", {})
