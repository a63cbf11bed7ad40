"""How long 10 MB of JSON take, how long they stop an event loop, and what other encoders need.

Others are measured where they are installed: `pip install orjson pydantic-core`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any

from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.json_decoding import decode
from tdev_models.json_form import encode
from tdev_models.settings import Settings

ROUNDS = 5


def nested(size: int) -> Any:
    dice = random.Random(1)
    return [
        {
            "id": dice.randrange(10**6),
            "name": f"component-{number}",
            "score": dice.random(),
            "tags": ["a", f"b{number}"],
            "props": {"title": "wörld", "visible": True, "pos": {"x": number, "y": None}},
        }
        for number in range(size // 140)
    ]


def special(count: int) -> Any:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    return [
        {"id": uuid.UUID(int=number), "at": moment, "took": timedelta(number), "tags": {"a", "b"}}
        for number in range(count)
    ]


VALUES = {
    "536 KB nested": nested(536_000),
    "10 MB nested": nested(10_000_000),
    "10 MB of files": {f"f{n}.py": "def f(x):\n    return 1\n" * 20_000 for n in range(21)},
    "10 MB in one string": '    print("a")\n' * 650_000,
    "40,000 special": special(10_000),
}


def milliseconds(work: Callable[[], Any]) -> float | None:
    """Return the processor time of the quickest round; None where the work cannot be done."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.thread_time()
        try:
            result = work()
        except TypeError:
            return None
        best = min(best, time.thread_time() - begun)
        del result
    return best * 1000


def longest_stop(work: Callable[[], Any]) -> float:
    """Return for how many milliseconds such work stops the event loop, in the best round."""

    async def measured() -> float:
        client, stops, done = AsyncClient(Settings()), [0.0], False

        async def watch() -> None:
            while not done:
                begun = time.perf_counter()
                await asyncio.sleep(0.001)
                stops.append(time.perf_counter() - begun - 0.001)

        task = asyncio.create_task(watch())
        await asyncio.sleep(0)
        result = await client.compute(work)
        done = True
        await task
        del result
        return max(stops)

    return min(asyncio.run(measured()) for _ in range(ROUNDS)) * 1000


def others() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    found: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "json": (json.dumps, json.loads)
    }
    for module, names in (
        ("orjson", ("dumps", "loads")),
        ("pydantic_core", ("to_json", "from_json")),
    ):
        try:
            writer, reader = (getattr(import_module(module), name) for name in names)
        except ImportError:
            continue
        found[module] = writer, reader
    return found


def main() -> None:
    print("ms of processor time to write / to read (longest stop of an event loop)")
    gc.freeze()  # the collector, which stops all threads, shall pass over the benchmark's own data
    ways = {"tdev_models": (lambda value: encode("f", value), decode), **others()}
    for name, value in VALUES.items():
        text = encode("f", value)
        for way, (write, read) in ways.items():
            columns = []
            for work in (partial(write, value), partial(read, text)):
                taken = milliseconds(work)
                columns.append("-" if taken is None else f"{taken:.0f} ({longest_stop(work):.0f})")
            print(f"{name:20} {way:14} {columns[0]:>12} / {columns[1]:>12}", flush=True)


if __name__ == "__main__":
    main()
