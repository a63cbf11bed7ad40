"""The transport of event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Final, TypeVar

from tdev_models import aws
from tdev_models.dynamodb.threads import in_thread
from tdev_models.dynamodb.transports.answers import Answer
from tdev_models.dynamodb.transports.loop_pool import Pool
from tdev_models.dynamodb.transports.native import NativeTransport
from tdev_models.dynamodb.transports.pace import turn
from tdev_models.dynamodb.transports.target import Target
from tdev_models.errors import Unavailable
from tdev_models.forks import after_fork_in_child
from tdev_models.settings import Settings

T = TypeVar("T")

_BOTOCORE_THREADS: Final = 32

_pools: dict[tuple[asyncio.AbstractEventLoop, Target, float, int], Pool] = {}
_pools_of_the_parent: list[Any] = []


class LoopTransport(NativeTransport):
    """Suspends the task until the answer is there."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock, self._aside_now = threading.Lock(), dict[Callable[[], Any], Future[Any]]()
        self._last: Pool | None = None

    async def _aside(self, work: Callable[[], T]) -> T:
        """Do the work in a thread, once for all tasks that need it now."""
        return await asyncio.wrap_future(self._begun_aside(work))

    def _begun_aside(self, work: Callable[[], T]) -> Future[T]:
        with self._lock:
            future = self._aside_now.get(work)
            if future is None or future.done():
                try:
                    future = self._aside_now[work] = in_thread(work)
                except RuntimeError as error:  # later there may be one; an owner's write must wait
                    raise Unavailable(f"there is no thread for credentials: {error}") from error
        return future

    async def _renewed_credentials(self, target: Target) -> Any:
        renewal = self._begun_aside(target.renewed_credentials)
        # Whoever gives them out may hang: nobody waits for new ones while the former do.
        return target.lasting_credentials() or await asyncio.wrap_future(renewal)

    async def _by_botocore(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(
            _executor(), aws.call, self._settings, operation, request
        )

    async def _exchange(self, target: Target, request: bytes) -> Answer:
        loop, pool = asyncio.get_running_loop(), self._last
        if pool is None or pool.loop is not loop:
            pool = self._last = _pool(loop, target, self._settings)
        answer = await pool.exchange(request, self._settings.read_timeout_seconds)
        await turn()  # many answers may have come at once
        return answer


def _pool(loop: asyncio.AbstractEventLoop, target: Target, settings: Settings) -> Pool:
    """Return the loop's pool of connections to a target."""
    for key in [*_pools]:
        if key[0].is_closed():
            _pools.pop(key, None)
    seconds, most = settings.connect_timeout_seconds, settings.max_connections
    key = loop, target, seconds, most
    pool = _pools.get(key)
    if pool is None or pool.loop is None:  # the latter: other generators end with the loop, too
        pool = _pools[key] = Pool(target, seconds, most, is_last=pool is not None)
    return pool


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_BOTOCORE_THREADS, thread_name_prefix="tdev")


def _after_fork() -> None:
    # Kept, since asyncio complains of a transport that is forgotten while it is open.
    _pools_of_the_parent.append({**_pools})
    _pools.clear()
    _executor.cache_clear()


after_fork_in_child(_after_fork)
