"""What a request costs over the package's own transport and over botocore's, in one run.

`python -m benchmarks.transports [ROUNDS SECONDS]`: processor time an operation, in microseconds, of
the client alone; a server in another process answers at once. The rounds are interleaved.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import ClassVar

from tdev_models import PipelineSession, Settings
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.client import Client

META = {"request": "a todo app", "stack": ["react", "node"], "note": "x" * 440}
NOW = 1764000100.654321
ITEM = {
    "session_id": {"S": "project-00000001"},
    "user_id": {"S": "user-1"},
    "project_name": {"S": "My Todo App"},
    "pipeline_type": {"S": "PRODUCTION"},
    "status": {"S": "ACTIVE"},
    "current_agent": {"S": "generation"},
    "progress": {"N": "6"},
    "created_at": {"N": str(NOW)},
    "last_updated": {"N": str(NOW)},
    "metadata": {"S": json.dumps(META)},
    "fence": {"N": "3"},
    "lease_owner": {"S": "host:123"},
}
CONSUMED = {"TableName": "t", "CapacityUnits": 1.0}
ANSWERS = {
    "GetItem": {"Item": ITEM, "ConsumedCapacity": CONSUMED},
    "UpdateItem": {"Attributes": ITEM, "ConsumedCapacity": CONSUMED},
    "Query": {"Items": [ITEM] * 25, "Count": 25, "ConsumedCapacity": CONSUMED},
}


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
    """Answers each request by its operation, without a look at anything else."""

    messages: ClassVar = {
        f".{name}\r".encode(): _message(answer) for name, answer in ANSWERS.items()
    }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
        if end and len(body) >= length:
            self.received = b""
            message = next(one for name, one in self.messages.items() if name in head)
            self.transport.write(message)  # type: ignore[attr-defined]


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def operations(client: Client) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the operations that are measured."""
    ours = PipelineSession
    condition = ours.lease_token.does_not_exist() & ours.status.is_in("ACTIVE", "FAILED")
    actions = [
        ours.status.set("ACTIVE"),
        ours.current_agent.set("generation"),
        ours.progress.set(6),
        ours.last_updated.set(NOW),
    ]
    sessions = client.sessions
    return {
        "get": lambda: sessions.get("s"),
        "update": lambda: sessions.update("s", actions=actions, condition=condition),
        "query": lambda: sessions.page("ACTIVE", index=ours.status_index, limit=25),
    }


async def _in_a_loop(
    operation: Callable[[], Awaitable[object]], at_once: int, seconds: float
) -> int:
    done, end = 0, time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await operation()
            done += 1

    await asyncio.gather(*(work() for _ in range(at_once)))
    return done


def _in_a_thread(operation: Callable[[], Awaitable[object]], seconds: float) -> int:
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        drive(operation())
        done += 1
    return done


def measured(endpoint: str, rounds: int, seconds: float) -> dict[tuple[str, str, int, str], float]:
    """Return the median microseconds by operation, way to wait, number at once, and transport."""
    found = defaultdict[tuple[str, str, int, str], list[float]](list)
    cases = []
    for transport in ("own", "botocore"):
        current = Settings(
            region="us-east-1",
            endpoint=endpoint,
            transport="botocore" if transport == "botocore" else None,
        )
        for at_once in (1, 32):
            cases += [
                ("loop", at_once, transport, *one)
                for one in operations(AsyncClient(current)).items()
            ]
        cases += [
            ("thread", 1, transport, *one) for one in operations(BlockingClient(current)).items()
        ]
    with asyncio.Runner() as runner:
        for number in range(rounds + 1):
            for way, at_once, transport, name, operation in random.sample(cases, len(cases)):
                begun = time.process_time()
                if way == "loop":
                    done = runner.run(_in_a_loop(operation, at_once, seconds))
                else:
                    done = _in_a_thread(operation, seconds)
                if number:  # the first round is the first use of everything
                    each = (time.process_time() - begun) / done * 1e6
                    found[name, way, at_once, transport].append(each)
    return {key: statistics.median(each) for key, each in found.items()}


def main(rounds: int = 7, seconds: float = 0.3) -> None:
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.transports", "serve"], stdout=subprocess.PIPE
    ) as stub:
        try:
            assert stub.stdout
            endpoint = f"http://127.0.0.1:{int(stub.stdout.readline())}"
            found = measured(endpoint, rounds, seconds)
        finally:
            stub.terminate()
    print(f"microseconds of processor time an operation, medians of {rounds} rounds")
    print(f"{'':>8} {'':>8} {'at once':>8} {'own':>8} {'botocore':>9} {'ratio':>6}")
    for name, way, at_once, transport in found:
        if transport == "own":
            own, theirs = (found[name, way, at_once, one] for one in ("own", "botocore"))
            print(
                f"{name:>8} {way:>8} {at_once:>8} {own:>8.0f} {theirs:>9.0f} {own / theirs:>6.2f}"
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(_serve())
    else:
        main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
