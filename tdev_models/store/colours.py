"""The two ways to wait: blocking the thread, or suspending in an event loop."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

from tdev_models import aws
from tdev_models.settings import Transport
from tdev_models.store.client import Client, Interrupter
from tdev_models.store.receipts import Receipt

T = TypeVar("T")

_THREADS = 32


class BlockingClient(Client):
    """Never suspends: `drive` runs its coroutines without an event loop."""

    def _standard_transport(self) -> Transport:
        region, endpoint = self.settings.region, self.settings.endpoint

        async def send(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            return aws.call(region, endpoint, operation, request)

        return send

    async def sleep(self, seconds: float) -> None:
        """Wait, blocking the thread."""
        time.sleep(seconds)  # noqa: ASYNC251

    async def gather(self, jobs: Sequence[Callable[[], Awaitable[T]]], concurrency: int) -> list[T]:
        """Run jobs in threads, or one after the other."""
        if concurrency == 1 or len(jobs) < 2:
            return [await job() for job in jobs]
        with ThreadPoolExecutor(concurrency, thread_name_prefix="tdev-job") as threads:
            # Each thread sees the settings and leases that are in force here.
            runs = [
                threads.submit(copy_context().run, lambda job=job: drive(job())) for job in jobs
            ]
            try:
                return [run.result() for run in runs]
            except BaseException:  # Ctrl-C, too: what has not begun shall not
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    async def uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work: nothing cancels a thread."""
        return await work

    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do the work here."""
        return work(*arguments)

    def interrupter(self) -> Interrupter:
        """Return one that does nothing: blocking code learns of a lost lease at its next write."""
        return _NoInterrupter()

    async def settled(self, receipt: Receipt) -> None:
        """Wait, blocking the thread."""
        receipt.wait()
        if receipt.error:
            raise receipt.error.with_traceback(None)


class AsyncClient(Client):
    """Suspends while a thread of the package's own sends, at most 32 requests at once."""

    def _standard_transport(self) -> Transport:
        import asyncio

        region, endpoint = self.settings.region, self.settings.endpoint

        async def send(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            return await asyncio.get_running_loop().run_in_executor(
                _executor(), aws.call, region, endpoint, operation, request
            )

        return send

    async def sleep(self, seconds: float) -> None:
        """Wait, letting other tasks run."""
        import asyncio

        await asyncio.sleep(seconds)

    async def gather(self, jobs: Sequence[Callable[[], Awaitable[T]]], concurrency: int) -> list[T]:
        """Run jobs as tasks; the first error cancels the others and is raised."""
        import asyncio

        turns = asyncio.Semaphore(concurrency)

        async def run(job: Callable[[], Awaitable[T]]) -> T:
            async with turns:
                return await job()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(job)) for job in jobs]
        except BaseExceptionGroup as several:
            # The others were cancelled for it. Callers expect the error, as of one call.
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish the work, and only then be cancelled."""
        import asyncio

        task = asyncio.ensure_future(work)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as asked:
                cancelled = asked
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # seen; the cancellation goes first
            raise cancelled
        return task.result()

    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do the work in a thread: other tasks run on."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(_executor(), work, *arguments)

    def is_stray(self, error: BaseException) -> bool:
        """Return whether an error is a cancellation that nobody asked of the current task."""
        import asyncio

        task = asyncio.current_task()
        return isinstance(error, asyncio.CancelledError) and not (task and task.cancelling())

    def interrupter(self) -> Interrupter:
        """Return one that cancels the task that runs now."""
        return _TaskInterrupter()

    async def settled(self, receipt: Receipt) -> None:
        """Wait, letting other tasks run; all that wait in one loop are woken by one call."""
        import asyncio

        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        if receipt.join(loop, waiter):
            await waiter
        if receipt.error:
            raise receipt.error.with_traceback(None)


class _NoInterrupter:
    def fire(self) -> None: ...

    async def close(self) -> bool:
        return False


class _TaskInterrupter:
    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._asked_before = self._task.cancelling() if self._task else 0
        self._fired = self._closed = False

    def fire(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task and not (self._closed or self._fired):
            self._fired = True
            self._task.cancel()

    async def close(self) -> bool:
        import asyncio

        self._closed = True
        if not self._fired or self._task is None:
            return False
        # Not thrown yet if the task did not wait since: it would hit whoever waits next.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return self._task.uncancel() <= self._asked_before


def drive(coroutine: Awaitable[T]) -> T:
    """Run a coroutine that never suspends, without an event loop.

    Raises:
        RuntimeError: it suspended: a blocking call met an awaitable one.
    """
    steps = coroutine.__await__()
    try:
        next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a blocking call suspended; use the awaitable functions in an event loop")


class EitherColour(ABC):
    """`with` for the blocking functions, `async with` for the awaitable ones."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool: ...

    def __enter__(self) -> Self:
        if isinstance(self._client, AsyncClient):
            raise TypeError("use `async with`; the block for `with` is made by tdev_models.sync")
        return drive(self.__aenter__())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return drive(self.__aexit__(kind, error, traceback))


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="tdev")


# Threads do not follow into a child process.
os.register_at_fork(after_in_child=_executor.cache_clear)
