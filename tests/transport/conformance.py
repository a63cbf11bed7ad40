"""What `tdev_models.settings.Transport` promises, checked against any transport.

`CHECKS` are functions of a `send`, which sends one operation over the transport with the given
settings and blocks until the response, and of a `Server`, which answers as it is told.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tdev_models import Settings, errors
from tdev_models.errors import ConditionFailed, TdevError

Send = Callable[[Settings, str, Mapping[str, Any]], dict[str, Any]]

GET = {"TableName": "t-developer-dev-x", "Key": {"id": {"S": "1"}}}
UPDATE = {**GET, "UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"S": "x"}}}
STORED = {"id": {"S": "1"}, "chunk": {"B": "AAEC/w=="}, "n": {"N": "1.50"}}
LOADED = {"id": {"S": "1"}, "chunk": {"B": b"\x00\x01\x02\xff"}, "n": {"N": "1.50"}}


@dataclass
class Server:
    """A DynamoDB on loopback that gives one answer: status and body, `close`, or `hang`.

    Attributes:
        received: operation and request of each call, in the order of their arrival.
    """

    status: int = 200
    body: Mapping[str, Any] | bytes = field(default_factory=dict)
    trouble: str = ""
    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    port: int = 0

    def settings(self, read_timeout_seconds: float = 4.0) -> Settings:
        endpoint = f"http://127.0.0.1:{self.port}"
        return Settings(
            region="us-east-1", endpoint=endpoint, read_timeout_seconds=read_timeout_seconds
        )

    def fails(self, code: str, message: str = "said AWS", status: int = 400, **more: Any) -> None:
        kind = f"com.amazonaws.dynamodb.v20120810#{code}"
        self.status, self.body = status, {"__type": kind, "message": message, **more}


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server on a free port until the block ends."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"]))
            state.received.append((self.headers["X-Amz-Target"].split(".")[1], json.loads(text)))
            if state.trouble == "close":
                self.close_connection = True
                return
            if state.trouble == "hang":
                time.sleep(2)
            body = state.body if isinstance(state.body, bytes) else json.dumps(state.body).encode()
            self.send_response(state.status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("x-amz-crc32", str(zlib.crc32(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    class Listening(ThreadingHTTPServer):
        request_queue_size = 128

    server = Listening(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def returns_the_response_with_capacity_and_bytes(send: Send, server: Server) -> None:
    server.body = {"Item": STORED, "ConsumedCapacity": {"TableName": "x", "CapacityUnits": 1.5}}
    response = send(server.settings(), "GetItem", GET)
    assert response["Item"] == LOADED
    assert response["ConsumedCapacity"]["CapacityUnits"] == 1.5


def sends_the_request_once_and_leaves_it_as_it_was(send: Send, server: Server) -> None:
    request = {**copy.deepcopy(UPDATE), "ExpressionAttributeValues": {":a": {"B": b"\x00\xff"}}}
    kept = copy.deepcopy(request)
    send(server.settings(), "UpdateItem", request)
    assert request == kept
    ((operation, received),) = server.received
    assert operation == "UpdateItem"
    assert received == {**kept, "ExpressionAttributeValues": {":a": {"B": "AP8="}}}


def tells_the_stored_item_of_a_failed_condition(send: Send, server: Server) -> None:
    server.fails("ConditionalCheckFailedException", Item=STORED)
    with pytest.raises(ConditionFailed) as failed:
        send(server.settings(), "UpdateItem", UPDATE)
    assert failed.value.item == LOADED


def tells_which_part_of_a_transaction_failed(send: Send, server: Server) -> None:
    reasons = [{"Code": "None"}, {"Code": "ConditionalCheckFailed", "Item": STORED}]
    server.fails("TransactionCanceledException", CancellationReasons=reasons)
    with pytest.raises(ConditionFailed) as failed:
        send(server.settings(), "TransactWriteItems", {"TransactItems": [{"Update": UPDATE}] * 2})
    assert (failed.value.item, failed.value.position) == (LOADED, 1)


ANSWERS: tuple[tuple[str, int, type[TdevError]], ...] = (
    ("ProvisionedThroughputExceededException", 400, errors.Throttled),
    ("ThrottlingException", 400, errors.Throttled),
    ("RequestLimitExceeded", 400, errors.Throttled),
    ("TransactionConflictException", 400, errors.Conflict),
    ("TransactionInProgressException", 400, errors.Conflict),
    ("AccessDeniedException", 400, errors.AccessDenied),
    ("ExpiredTokenException", 400, errors.ConfigurationError),
    ("ResourceNotFoundException", 400, errors.ConfigurationError),
    ("ItemCollectionSizeLimitExceededException", 400, errors.StoreError),
    ("InternalServerError", 500, errors.Unavailable),
    ("ServiceUnavailable", 503, errors.Unavailable),
    ("Unheard", 502, errors.Unavailable),
)


def gives_each_answer_its_error_and_tries_nothing_again(send: Send, server: Server) -> None:
    for number, (code, status, kind) in enumerate(ANSWERS, 1):
        server.fails(code, status=status)
        with pytest.raises(kind, match="said AWS") as raised:
            send(server.settings(), "GetItem", GET)
        assert type(raised.value) is kind, code
        assert raised.value.code == code
        assert len(server.received) == number, code


def gives_an_answer_without_a_body_its_error(send: Send, server: Server) -> None:
    server.body = b""
    for server.status in (408, 503):  # the former, of a load balancer
        with pytest.raises(errors.Unavailable):
            send(server.settings(), "GetItem", GET)


def an_item_too_large_is_said_so(send: Send, server: Server) -> None:
    message = "Item size to update has exceeded the maximum allowed size"
    server.fails("ValidationException", message)
    with pytest.raises(errors.ItemTooLarge):
        send(server.settings(), "UpdateItem", UPDATE)


def a_connection_that_ends_is_unavailable(send: Send, server: Server) -> None:
    server.trouble = "close"
    with pytest.raises(errors.Unavailable):
        send(server.settings(), "GetItem", GET)
    assert len(server.received) == 1


def an_answer_that_is_late_is_unavailable(send: Send, server: Server) -> None:
    send(server.settings(read_timeout_seconds=0.2), "GetItem", GET)  # the first one takes longer
    server.trouble, begun = "hang", time.monotonic()
    with pytest.raises(errors.Unavailable):
        send(server.settings(read_timeout_seconds=0.2), "GetItem", GET)
    assert time.monotonic() - begun < 3.5  # less than the timeout that is the default
    assert len(server.received) == 2


def nobody_listening_is_unavailable(send: Send, server: Server) -> None:
    with serving() as gone:
        nowhere = gone.settings()
    with pytest.raises(errors.Unavailable):
        send(nowhere, "GetItem", GET)


def many_at_once_get_their_own_answers(send: Send, server: Server) -> None:
    server.body, current = {"Item": STORED}, server.settings()
    with ThreadPoolExecutor(16) as threads:
        runs = [threads.submit(send, current, "GetItem", GET) for _ in range(64)]
        assert all(run.result()["Item"] == LOADED for run in runs)
    assert len(server.received) == 64


CHECKS: tuple[Callable[[Send, Server], None], ...] = (
    returns_the_response_with_capacity_and_bytes,
    sends_the_request_once_and_leaves_it_as_it_was,
    tells_the_stored_item_of_a_failed_condition,
    tells_which_part_of_a_transaction_failed,
    gives_each_answer_its_error_and_tries_nothing_again,
    gives_an_answer_without_a_body_its_error,
    an_item_too_large_is_said_so,
    a_connection_that_ends_is_unavailable,
    an_answer_that_is_late_is_unavailable,
    nobody_listening_is_unavailable,
    many_at_once_get_their_own_answers,
)
