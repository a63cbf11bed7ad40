"""Bodies are those of botocore's serializer, and are read as by botocore's parser."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.model import OperationModel, Shape
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given, settings, strategies as st

from tdev_models import Settings, aws
from tdev_models.dynamodb.transports.answers import Answer
from tdev_models.dynamodb.transports.bodies import OPERATIONS, decoded, encoded
from tdev_models.errors import StoreError, TdevError, Unavailable, from_response
from tdev_models.migrations.calls import Busy, Calls
from tdev_models.security.kms import Kms
from tests.transport.conformance import GET
from tests.transport.wire import wired

TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES = st.sampled_from(["id", "B", "BS", "S", "M", "null", "ünï", '"B"']) | TEXTS
NUMBERS = st.integers(0, 2**60) | st.floats(0, 1e9, allow_nan=False)


@cache
def operation(name: str) -> OperationModel:
    return botocore.session.get_session().get_service_model("dynamodb").operation_model(name)


def values(binary: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return typed values, one tag each."""
    numbers = NUMBERS.map(str)
    plain = (
        st.fixed_dictionaries({"S": TEXTS})
        | st.fixed_dictionaries({"N": numbers})
        | st.fixed_dictionaries({"B": binary})
        | st.fixed_dictionaries({"SS": st.lists(TEXTS, max_size=3)})
        | st.fixed_dictionaries({"NS": st.lists(numbers, max_size=3)})
        | st.fixed_dictionaries({"BS": st.lists(binary, max_size=3)})
        | st.fixed_dictionaries({"NULL": st.just(True)})
        | st.fixed_dictionaries({"BOOL": st.booleans()})
    )
    return st.recursive(
        plain,
        lambda inner: (
            st.fixed_dictionaries({"L": st.lists(inner, max_size=3)})
            | st.fixed_dictionaries({"M": st.dictionaries(NAMES, inner, max_size=3)})
        ),
        max_leaves=8,
    )


def members(shape: Shape, binary: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what botocore's model of the service allows for a shape."""
    kind = shape.type_name
    if shape.name == "AttributeValue":
        return values(binary)
    if kind == "structure":
        return st.fixed_dictionaries(
            {}, optional={name: members(part, binary) for name, part in shape.members.items()}
        )
    if kind == "list":
        return st.lists(members(shape.member, binary), max_size=2)
    if kind == "map":
        return st.dictionaries(NAMES, members(shape.value, binary), max_size=2)
    if kind == "string":
        return TEXTS
    if kind == "boolean":
        return st.booleans()
    if kind == "double":
        return st.floats(0, 1e9, allow_nan=False)
    assert kind in ("integer", "long"), kind
    return st.integers(0, 2**31 - 1)


BASE64 = st.binary(max_size=9).map(lambda one: base64.b64encode(one).decode())


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_request_has_botocores_body(data: st.DataObject) -> None:
    model = operation(data.draw(st.sampled_from(sorted(OPERATIONS))))
    request = data.draw(members(model.input_shape, st.binary(max_size=9)))
    theirs = create_serializer("json", False).serialize_to_request(request, model)
    assert json.loads(encoded(request)) == json.loads(theirs["body"])
    assert theirs["headers"] == {
        "X-Amz-Target": f"DynamoDB_20120810.{model.name}",
        "Content-Type": "application/x-amz-json-1.0",
    }
    assert (theirs["method"], theirs["url_path"]) == ("POST", "/")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_answer_is_read_as_by_botocore(data: st.DataObject) -> None:
    model = operation(data.draw(st.sampled_from(sorted(OPERATIONS))))
    response = data.draw(members(model.output_shape, BASE64))
    for name in data.draw(st.sets(st.sampled_from([*model.output_shape.members]), max_size=2)):
        response[name] = None
    body = json.dumps(response, ensure_ascii=data.draw(st.booleans())).encode()
    theirs = create_parser("json").parse(
        {"status_code": 200, "headers": {}, "body": body}, model.output_shape
    )
    del theirs["ResponseMetadata"]
    assert decoded(Answer(200, {"x-amz-crc32": str(zlib.crc32(body))}, body), GET) == theirs


def test_only_lists_of_texts_are_sets_of_binaries() -> None:
    body = b'{"ItemCollectionMetrics": {"BS": [{"ItemCollectionKey": {"k": {"B": "AAE="}}}]}}'
    key = {"k": {"B": b"\x00\x01"}}
    expected = {"ItemCollectionMetrics": {"BS": [{"ItemCollectionKey": key}]}}
    assert decoded(Answer(200, {}, body), GET) == expected
    body = b'{"Item": {"damaged": {"BS": ["AAE=", 5]}}}'
    assert decoded(Answer(200, {}, body), GET) == json.loads(body)


ERRORS = (
    {"message": "no code"},
    {"__type": "com.amazonaws.dynamodb.v20120810#ThrottlingException", "message": "m"},
    {"__type": "com.amazon.coral.validate#ValidationException:http://x", "Message": "M"},
    {"__type": "ResourceNotFoundException"},
    {"__type": "x#UnrecognizedClientException", "message": "token is invalid"},
    {"__type": "x#ConditionalCheckFailedException", "message": "m"},
    {"__type": "x#ConditionalCheckFailedException", "Item": {"B": {"B": "AAE="}}},
    {
        "__type": "x#TransactionCanceledException",
        "Message": "m",
        "CancellationReasons": [
            {"Code": "None"},
            {"Code": "ConditionalCheckFailed", "Item": {"a": {"L": [{"BS": ["AA=="]}]}}},
        ],
    },
    {
        "__type": "x#TransactionCanceledException",
        "CancellationReasons": [{"Code": "TransactionConflict", "Message": "busy"}],
    },
)
BODIES = (
    *(json.dumps(one).encode() for one in ERRORS),
    b"",
    b"<html><body><b>Http/1.1 Service Unavailable</b></body></html>",
    b"not JSON",
)


@pytest.mark.parametrize("status", [301, 400, 403, 413, 429, 500, 503])
@pytest.mark.parametrize("body", BODIES)
def test_an_error_is_what_botocore_makes_of_it(status: int, body: bytes) -> None:
    model = operation("TransactWriteItems" if b"Cancell" in body else "UpdateItem")
    response = {"status_code": status, "headers": {}, "body": body}
    parser = create_parser("json")
    parsed = parser.parse(response, model.output_shape)
    for shape in model.error_shapes:
        if shape.name == parsed["Error"]["Code"]:
            parsed.update(parser.parse(response, shape))
    expected = from_response(parsed, "t-developer-dev-x")
    with pytest.raises(TdevError) as raised:
        decoded(Answer(status, {}, body), GET)
    assert type(raised.value) is type(expected)
    assert str(raised.value) == str(expected)
    assert vars(raised.value) == vars(expected)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"Item": {', b"\xff\xfe", b"null", b'{"B": "0"}'])
def test_what_is_not_dynamodbs_json_is_no_answer(body: bytes) -> None:
    with pytest.raises(Unavailable, match="not the JSON"):
        decoded(Answer(200, {}, body), GET)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, StoreError), (403, StoreError), (500, Unavailable)]
)
@pytest.mark.parametrize(
    "body",
    [
        "<p>Zugriff für Sie gesperrt</p>".encode("latin-1"),
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"__type": 5}',
        b'{"__type": "x#ValidationException", "message": {}}',
        b'{"__type": "x#TransactionCanceledException", "CancellationReasons": [null]}',
    ],
    ids=lambda body: body[:20],
)
def test_a_refusal_that_is_not_dynamodbs_is_an_error_of_the_package(
    status: int, kind: type[TdevError], body: bytes
) -> None:
    with pytest.raises(kind):
        decoded(Answer(status, {}, body), GET)


KEY = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000"


@pytest.mark.parametrize(
    "call",
    [
        lambda chosen: aws.call(chosen, "GetItem", GET),
        lambda chosen: Kms(chosen).new_data_key(KEY, {}),
        lambda chosen: Calls(chosen)("DescribeTable", TableName="x"),
    ],
    ids=["DynamoDB", "KMS", "migrations"],
)
def test_what_botocores_parser_fails_at_is_no_answer(
    call: Callable[[Settings], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "<p>Zugriff für Sie gesperrt</p>".encode("latin-1")
    with wired() as wire:
        wire.answer = lambda parameters: (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)
        )
        chosen = wire.settings()
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", chosen.endpoint or "")
        # Both are tried again.
        with pytest.raises((Unavailable, Busy), match="UnicodeDecodeError"):
            call(chosen)


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_was_damaged_on_its_way_is_none(status: int) -> None:
    body = b'{"Item": {"id": {"S": "1"}}}'
    damaged = body.replace(b"1", b"2")
    with pytest.raises(Unavailable, match="checksum"):
        decoded(Answer(status, {"x-amz-crc32": str(zlib.crc32(body))}, damaged), GET)
