"""Wake 1,000 tasks of one event loop: by one shared future, and by a standard one for each.

`python -m benchmarks.shared_future` prints the median seconds of both, taken in turns.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.settings import Settings

WAITERS, ROUNDS = 1000, 31


async def shared() -> float:
    client, future = AsyncClient.for_settings(Settings(region="us-east-1")), SharedFuture()
    return await woken(lambda: client.wait_for(future), lambda: future.settle(None))


async def standard() -> float:
    future: Future[None] = Future()
    return await woken(lambda: asyncio.wrap_future(future), lambda: future.set_result(None))


async def woken(wait: Callable[[], Awaitable[object]], settle: Callable[[], None]) -> float:
    async def waiter() -> None:
        await wait()

    tasks = [asyncio.create_task(waiter()) for _ in range(WAITERS)]
    await asyncio.sleep(0)
    begun = time.perf_counter()
    threading.Thread(target=settle).start()
    await asyncio.gather(*tasks)
    return time.perf_counter() - begun


def main() -> None:
    rounds = [(asyncio.run(shared()), asyncio.run(standard())) for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"{WAITERS} tasks woken: shared future {1000 * ours:.1f} ms, ", end="")
    print(f"concurrent.futures.Future {1000 * theirs:.1f} ms, {theirs / ours:.1f} times as long")


if __name__ == "__main__":
    main()
