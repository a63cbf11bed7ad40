"""The client of event loops: a task that waits is suspended."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from typing import Any, ClassVar, NoReturn, TypeVar
from weakref import WeakSet

from tdev_models.dynamodb.client import WAITED, Client, TaskCanceller, TimeLimit
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.dynamodb.threads import in_thread
from tdev_models.errors import Unavailable
from tdev_models.forks import after_fork_in_child
from tdev_models.retry import CANCELLED_SECONDS
from tdev_models.settings import Transport

T = TypeVar("T")


class AsyncClient(Client):
    """Suspends the task while it waits."""

    in_event_loop = True
    _shielding: ClassVar[WeakSet[Any]] = WeakSet()  # where `shielded` adds nothing

    def _standard_transport(self) -> Transport:
        from tdev_models.dynamodb.transports import loop, pace

        self._turn = pace.turn
        return loop.LoopTransport(self.settings)

    async def turn(self) -> None:
        """Wait until the loop has time."""
        await self._turn()

    def runs(self) -> Callable[[], bool]:
        """Return whether the loop runs."""
        import asyncio

        return asyncio.get_running_loop().is_running

    async def sleep(self, seconds: float) -> None:
        """Wait, letting other tasks run."""
        import asyncio

        await asyncio.sleep(seconds)

    async def gather(
        self,
        jobs: Sequence[Callable[[], Awaitable[T]]],
        concurrency: int,
        end: Callable[[], None] | None = None,
    ) -> list[T]:
        """Run jobs as tasks; the first error cancels the others and is raised."""
        import asyncio

        slots = asyncio.Semaphore(concurrency)

        async def run(job: Callable[[], Awaitable[T]]) -> T:
            async with slots:
                return await job()

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(job)) for job in jobs]
        except BaseExceptionGroup as group_error:
            # The other jobs were cancelled because of the first error, which callers expect bare.
            raise group_error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def start(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Begin the work as a task. Where that is cancelled, it is cut off at once."""
        import asyncio

        task = asyncio.ensure_future(work)
        self._shielding.add(task)
        return task

    async def shielded(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """Finish the work before being cancelled, where that takes no longer than two seconds."""
        import asyncio

        if seconds is None and asyncio.current_task() in self._shielding:
            return await work  # as a part of what is shielded: two seconds are for all of it
        loop = asyncio.get_running_loop()
        task: asyncio.Future[T]
        if inspect.iscoroutine(work):
            task = asyncio.ensure_future(self._in_turn(work))
            self._shielding.add(task)
            task.add_done_callback(lambda _: work.close())  # cancelled before it has begun
        else:
            task = asyncio.ensure_future(work)
        cancelled: asyncio.CancelledError | None = None
        cancelled_at = 0.0
        if seconds is not None:
            loop.call_later(seconds, task.cancel)
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as cancellation:
                if cancelled is None:
                    loop.call_later(CANCELLED_SECONDS, task.cancel)
                    cancelled_at = loop.time()
                cancelled = cancellation
        if cancelled is not None:
            if not task.cancelled():
                task.exception()  # or asyncio would log it as never retrieved
            setattr(cancelled, WAITED, loop.time() - cancelled_at)
            raise cancelled
        if task.cancelled() and seconds is not None:
            raise Unavailable(f"not done within {seconds:.1f} s")
        return task.result()

    async def _in_turn(self, work: Awaitable[T]) -> T:
        await self._turn()
        return await work

    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do the work in a thread: other tasks run on."""
        import asyncio

        # With the settings in force here: they say what becomes JSON.
        return await asyncio.get_running_loop().run_in_executor(
            _compute_executor(), copy_context().run, work, *arguments
        )

    async def call(
        self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float | None = None
    ) -> Any:
        """Await a coroutine function; run another in a thread, and await what it returns."""
        import asyncio

        limit = asyncio.timeout(timeout_seconds)
        try:
            async with limit:
                if inspect.iscoroutinefunction(function):
                    return await function(*arguments)
                result = await asyncio.wrap_future(in_thread(function, *arguments))
                return await result if inspect.isawaitable(result) else result
        except TimeoutError as error:
            if limit.expired():
                late = f"it took longer than {timeout_seconds:g} s"
                raise TimeoutError(late) from error  # whose traceback says where
            raise  # the function's own

    def time_limit(self, seconds: float | None) -> TimeLimit:
        """Return the block that cancels itself."""
        return _LoopTimeLimit(seconds)

    async def interrupt(self) -> NoReturn:
        """Cancel the current task."""
        import asyncio

        if task := asyncio.current_task():
            task.cancel()
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    def task_canceller(self) -> TaskCanceller:
        """Return a canceller of the current task."""
        return _LoopTaskCanceller()

    async def wait_for(self, future: SharedFuture, seconds: float | None = None) -> bool:
        """Wait, letting other tasks run; all that wait in one loop are woken by one call."""
        import asyncio

        loop = asyncio.get_running_loop()
        waiter, settled = loop.create_future(), True
        if future.wake_when_settled(loop, waiter):
            if seconds is None:
                await waiter  # takes less than half of what asyncio.wait does
            else:
                settled = bool((await asyncio.wait([waiter], timeout=seconds))[0])
        if future.error:
            raise future.error.with_traceback(None)
        return settled


class _LoopTimeLimit:
    def __init__(self, seconds: float | None) -> None:
        import asyncio

        self._seconds, self._timeout = seconds, asyncio.Timeout(None)

    async def __aenter__(self) -> None:
        import asyncio

        await self._timeout.__aenter__()
        if self._seconds is not None:  # from now on, and not since the block was made
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)

    async def __aexit__(self, *error: Any) -> None:
        await self._timeout.__aexit__(*error)

    def end_now(self) -> None:
        with suppress(RuntimeError):  # it was left, or its time is over
            self._timeout.reschedule(0)


class _LoopTaskCanceller:
    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._requested_before = self._task.cancelling() if self._task else 0
        self._fired = self._closed = False

    def cancel(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
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
        # The cancellation is raised only where the task next waits: here, and not in its caller.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return self._task.uncancel() <= self._requested_before


@cache
def _compute_executor() -> ThreadPoolExecutor:
    # Python runs one thread at a time: with more of them the event loop would wait longer.
    return ThreadPoolExecutor(2, thread_name_prefix="tdev-compute")


after_fork_in_child(_compute_executor.cache_clear)
