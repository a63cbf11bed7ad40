"""DynamoDB's JSON: a request's parameters as bytes, and an answer as its response or its error."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

import orjson
from botocore.parsers import create_parser

from tdev_models.aws import quiet, tables_of
from tdev_models.dynamodb.transports.answers import Answer
from tdev_models.errors import TdevError, Unavailable, from_response

# What the services send. Parameters and answers hold typed values, texts and numbers only. Others
# are left to botocore, which knows by its model of the service what is, say, a moment in time.
OPERATIONS: Final = frozenset(
    {"GetItem", "Query", "TransactGetItems", "TransactWriteItems", "UpdateItem"}
)

_PARSER: Final = create_parser("json")


def encoded(request: Mapping[str, Any]) -> bytes:
    """Return the parameters of an operation as DynamoDB takes them, binaries in base64."""
    return orjson.dumps(request, default=_binary)


def _binary(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is no typed value of DynamoDB")


def decoded(answer: Answer, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response that an answer to this request holds.

    Raises:
        TdevError: the error that the answer means.
        Unavailable: the answer was damaged on its way.
    """
    body = answer.body
    checksum = answer.headers.get("x-amz-crc32")
    if checksum is not None and checksum != str(zlib.crc32(body)):
        raise Unavailable("the answer does not match its checksum")
    if answer.status >= 300:
        raise _error(answer, request)
    return _members(body)


def _members(body: bytes) -> dict[str, Any]:
    try:
        members = orjson.loads(body)
        if not isinstance(members, dict):
            raise ValueError
        # One letter is looked for by far the quickest.
        if b"B" in body and (b'"B"' in body or b'"BS"' in body):
            _make_binaries(members)
    except ValueError:
        raise Unavailable("the answer is not the JSON of DynamoDB") from None
    if None in members.values():
        return {name: value for name, value in members.items() if value is not None}
    return members


def _make_binaries(members: dict[str, Any]) -> None:
    """Make bytes of the base64 of all `{"B": ...}` and `{"BS": [...]}` inside an answer."""
    inside: list[Any] = [members]
    for value in inside:
        if isinstance(value, list):
            inside += value
        elif isinstance(value, dict):
            for name, part in value.items():
                if isinstance(part, dict):
                    inside.append(part)
                elif name == "B" and isinstance(part, str):
                    value[name] = b64decode(part)
                elif isinstance(part, list):
                    # A table, too, may be named BS: of those some members are lists of objects.
                    if name == "BS" and all(isinstance(one, str) for one in part):
                        value[name] = [b64decode(one) for one in part]
                    else:
                        inside.append(part)


def _error(answer: Answer, request: Mapping[str, Any]) -> TdevError:
    try:
        return from_response(_refusal(answer), tables_of(request))
    except Exception:  # whatever a proxy, or what is damaged, leads botocore's parser to
        problem = {"Code": str(answer.status), "Message": "the answer is not the JSON of DynamoDB"}
        status = {"HTTPStatusCode": answer.status}
        return from_response({"Error": problem, "ResponseMetadata": status})


def _refusal(answer: Answer) -> dict[str, Any]:
    with quiet():
        response: dict[str, Any] = _PARSER.parse(
            {"status_code": answer.status, "headers": answer.headers, "body": answer.body}, None
        )
    if b"Item" in answer.body or b"CancellationReasons" in answer.body:
        try:
            members = _members(answer.body)
        except Unavailable:
            members = {}
        for name in ("Item", "CancellationReasons"):
            if name in members:
                response[name] = members[name]
    return response
