"""The transport of plain threads."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tdev_models import aws
from tdev_models.dynamodb.transports.answers import Answer
from tdev_models.dynamodb.transports.blocking_pool import BlockingPool
from tdev_models.dynamodb.transports.native import NativeTransport
from tdev_models.dynamodb.transports.target import Target
from tdev_models.forks import after_fork_in_child

T = TypeVar("T")

_pools: dict[Target, BlockingPool] = {}


class BlockingTransport(NativeTransport):
    """Blocks the thread until the answer is there; its coroutines never suspend."""

    async def _aside(self, work: Callable[[], T]) -> T:
        return work()

    async def _by_botocore(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return aws.call(self._settings, operation, request)

    async def _exchange(self, target: Target, request: bytes) -> Answer:
        pool = _pools.get(target) or _pools.setdefault(target, BlockingPool(target))
        return pool.exchange(request, self._settings)


def _close() -> None:
    for pool in [*_pools.values()]:
        pool.close()
    _pools.clear()


atexit.register(_close)
# A child must not write to its parent's connections. Closing them here leaves the parent's open.
after_fork_in_child(_close)
