"""Where the package meets the simulation: its clocks, its dice, its clients, its threads.

Nothing of the services is replaced. What they get from modules of the standard library (`time`,
`random`, `uuid`) is the world's, and what else runs in threads of its own runs as tasks.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.client import Client
from tdev_models.metrics.recorder import Recorder
from tdev_models.retry import CANCELLED_SECONDS, DICE, STOP_POLL_SECONDS, wait_until
from tdev_models.services import due_queue
from tdev_models.services.signal_handlers import handlers_code
from tdev_models.settings import Settings
from tdev_models.workers.lease import Lease, worker_name
from tdev_models.workers.presence import Presence
from tests.simulation.loop import VirtualLoop
from tests.simulation.processes import Died, Process, current_process

T = TypeVar("T")

_LONGEST_LOOK_SECONDS = 0.5
_POLL_SECONDS = 5.0


class SimulatedClient(AsyncClient):
    """The client of event loops, without its threads."""

    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do the work, and let others run first."""
        await asyncio.sleep(0)
        return work(*arguments)

    async def sleep(self, seconds: float) -> None:
        """Wait; in a process that has died nothing goes on."""
        if current_process().dead:
            raise Died
        await asyncio.sleep(seconds)

    async def acquire(self, lock: threading.Lock, waiters: set[object]) -> None:
        """Take a lock, looking less and less often while it is taken."""
        pause = 0.002
        while not lock.acquire(blocking=False):
            await self.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)


def _beats_as_a_task(presence: Presence) -> None:
    """Let a worker's heartbeat run in its process, in a context of its own, as a thread has one."""
    process = current_process()
    asyncio.get_running_loop().create_task(
        presence.beat(process.client), context=process.new_context()
    )


class _Draining:
    """Whether the process whose step runs is to begin nothing more, as `Presence.draining`."""

    def __bool__(self) -> bool:
        return current_process().draining_since is not None


async def drain(process: Process, grace_seconds: float) -> None:
    """End what a process runs as `handle_sigterm` does, whose thread this task stands for."""
    presence = Presence.of(process.client.settings)

    def held() -> list[Lease]:
        leases = presence._leases.values()
        return [one for one in leases if not (one.over or one.lost or one.lease_expires)]

    await wait_until(lambda: not held(), asyncio.sleep, STOP_POLL_SECONDS, grace_seconds)
    for lease in held():
        if lease.canceller is not None:
            lease.canceller.cancel()
    await wait_until(lambda: not held(), asyncio.sleep, STOP_POLL_SECONDS, CANCELLED_SECONDS)


class SimulatedRecorder(Recorder):
    """The recorder of one process: its writers are tasks."""

    def __init__(self, client: Client) -> None:
        super().__init__(client.settings)
        self._client = client  # type: ignore[assignment]
        self._threads = 1

    def _call_writer(self) -> None:
        context = current_process().new_context()
        asyncio.get_running_loop().create_task(self._served(), context=context)

    async def _served(self) -> None:
        while (taken := self._take()) is not None:
            await self._flush(*taken)


class _World:
    """What the modules of the package see of time and chance."""

    loop: VirtualLoop
    dice: random.Random

    @classmethod
    def monotonic(cls) -> float:
        return cls.loop.now

    @classmethod
    def uuid4(cls) -> SimpleNamespace:
        return SimpleNamespace(hex=f"{cls.dice.getrandbits(128):032x}")

    @classmethod
    def uniform(cls, low: float, high: float) -> float:
        return cls.dice.uniform(low, high)

    @classmethod
    def shuffle(cls, values: list[Any]) -> None:
        cls.dice.shuffle(values)


_TIME = SimpleNamespace(monotonic=_World.monotonic, perf_counter=_World.monotonic)
_REPLACED: dict[int, Any] = {
    id(time): _TIME,
    id(DICE): SimpleNamespace(uniform=_World.uniform, shuffle=_World.shuffle),
    id(uuid): SimpleNamespace(uuid4=_World.uuid4),
    id(worker_name): lambda: current_process().name,
    id(handlers_code): frozenset,  # no signals here, and each look for recovery would ask for all
}


def begin(loop: VirtualLoop, dice: random.Random) -> None:
    """Let the package see another world, and forget the processes of the one before."""
    _World.loop, _World.dice = loop, dice
    Recorder._open.clear()
    Presence._all.clear()


def join(process: Process, settings: Settings) -> SimulatedClient:
    """Return the client of a new process, whose metrics are written on the loop."""
    client = process.client = SimulatedClient(settings)
    Recorder._open[settings] = SimulatedRecorder(client)
    return client


@contextmanager
def simulated() -> Iterator[None]:
    """Let the package run in virtual time inside the block."""
    changed: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, value: Any) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    for module in [one for name, one in sys.modules.items() if name.startswith("tdev_models")]:
        for name, value in list(vars(module).items()):
            if id(value) in _REPLACED:
                put(module, name, _REPLACED[id(value)])
    put(Presence, "_start", _beats_as_a_task)
    put(Presence, "draining", _Draining())
    put(due_queue, "STOP_POLL_SECONDS", _POLL_SECONDS)
    put(due_queue, "LOCK_POLL_SECONDS", _LONGEST_LOOK_SECONDS)
    logger = logging.getLogger("tdev_models")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        gc.collect()  # claims that nobody entered say so when they are forgotten
        logger.setLevel(level)
        Recorder._open.clear()
        Presence._all.clear()
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)
