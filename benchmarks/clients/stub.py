"""A server that answers DynamoDB's requests at once, or after a while.

`python -m benchmarks.clients.stub [SECONDS [CERTIFICATE KEY]]` prints its port.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import zlib
from typing import ClassVar, cast

from benchmarks.clients.items import ITEM

_CONSUMED = {"TableName": "t", "CapacityUnits": 1.0}
_ANSWERS = {
    "GetItem": {"Item": ITEM, "ConsumedCapacity": _CONSUMED},
    "PutItem": {"ConsumedCapacity": _CONSUMED},
    "UpdateItem": {"ConsumedCapacity": _CONSUMED},
    "Query": {
        "Items": [ITEM] * 25,
        "Count": 25,
        "ScannedCount": 25,
        "ConsumedCapacity": _CONSUMED,
    },
    "TransactWriteItems": {"ConsumedCapacity": [_CONSUMED]},
    "DescribeEndpoints": {"Endpoints": []},
}
_ALL_NEW = {"Attributes": ITEM, "ConsumedCapacity": _CONSUMED}


def _message(answer: object) -> bytes:
    body = json.dumps(answer, separators=(",", ":")).encode()
    head = (
        "HTTP/1.1 200 OK\r\nServer: Server\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        "Content-Type: application/x-amz-json-1.0\r\nConnection: keep-alive\r\n"
        f"x-amzn-RequestId: {'A' * 52}\r\nx-amz-crc32: {zlib.crc32(body)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Stub(asyncio.Protocol):
    """Answers each request by its operation, without a look at anything else.

    Attributes:
        seconds: how long an answer takes.
    """

    seconds: ClassVar = 0.0
    messages: ClassVar = {
        f".{name}\r".encode(): _message(answer) for name, answer in _ANSWERS.items()
    }
    all_new: ClassVar = _message(_ALL_NEW)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
        if not end or len(body) < length:
            return
        self.received = b""
        message = next(one for name, one in self.messages.items() if name in head)
        if b"ALL_NEW" in body:
            message = self.all_new
        if self.seconds:
            asyncio.get_running_loop().call_later(self.seconds, self.transport.write, message)
        else:
            self.transport.write(message)


async def _serve(certificate: list[str]) -> None:
    tls = None
    if certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Stub, "127.0.0.1", 0, ssl=tls, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    Stub.seconds = float(sys.argv[1]) if sys.argv[1:] else 0.0
    asyncio.run(_serve(sys.argv[2:]))
