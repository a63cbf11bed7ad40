"""The client of plain threads: it never suspends, so `drive` runs its coroutines without a loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from typing import Any, NoReturn, TypeVar

from tdev_models.dynamodb.client import Client, TaskCanceller, TimeLimit
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.dynamodb.threads import in_thread
from tdev_models.dynamodb.transports.blocking import BlockingTransport
from tdev_models.errors import ConfigurationError
from tdev_models.retry import STOP_POLL_SECONDS
from tdev_models.settings import Transport

T = TypeVar("T")

_SUSPENDED = (
    "the transport (Settings.transport) must not suspend in calls of tdev_models.sync, heartbeats "
    "and writes of metrics; let it block there, or await only the transport that it wraps"
)

_caller: ContextVar[int | None] = ContextVar("tdev_caller", default=None)
# Of a job, and of the jobs that it is a part of: set once nobody waits for its result.
_stopped: ContextVar[tuple[threading.Event, ...]] = ContextVar("tdev_stopped", default=())


class BlockingClient(Client):
    """Blocks the thread while it waits."""

    in_event_loop = False

    def _standard_transport(self) -> Transport:
        return BlockingTransport(self.settings)

    def _checked(self, transport: Transport) -> Transport:
        """Let a request fail by itself where the transport suspends: a heartbeat has others."""

        async def checked(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            return drive(transport(operation, request))

        return checked

    @property
    def thread(self) -> int:
        """The thread that waits: of the job of a call, whichever thread runs it, the call's."""
        return _caller.get() or super().thread

    async def turn(self) -> None:
        """Go on: other threads run meanwhile."""

    async def sleep(self, seconds: float) -> None:
        """Wait, blocking the thread.

        Raises:
            CancelledError: in a job whose result nobody waits for any more.
        """
        stopped = _stopped.get()
        if not stopped:
            time.sleep(seconds)  # noqa: ASYNC251
            return
        end = time.monotonic() + seconds
        while not any(one.is_set() for one in stopped):
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, STOP_POLL_SECONDS))  # noqa: ASYNC251
        raise CancelledError

    async def gather(
        self,
        jobs: Sequence[Callable[[], Awaitable[T]]],
        concurrency: int,
        end: Callable[[], None] | None = None,
    ) -> list[T]:
        """Run jobs in threads, or one after the other.

        Where one fails, or all are to stop, those without an `end` stop at their next pause.
        """
        if concurrency == 1 or len(jobs) < 2:
            return [copy_context().run(drive, job()) for job in jobs]
        caller, stop = self.thread, threading.Event()

        def run_job(job: Callable[[], Awaitable[T]]) -> T:
            _caller.set(caller)
            if end is None:
                _stopped.set((*_stopped.get(), stop))
            return drive(job())

        with ThreadPoolExecutor(concurrency, thread_name_prefix="tdev-job") as threads:
            # Each thread sees the settings and leases that are in force here.
            runs = [threads.submit(copy_context().run, run_job, job) for job in jobs]
            try:
                done, _ = wait(runs, return_when=FIRST_EXCEPTION)
                for run in done:
                    run.result()  # raises, though those before it go on
                return [run.result() for run in runs]
            except BaseException:  # Ctrl-C, too: no further job may begin
                (end or stop.set)()  # else throttled ones would be tried for minutes
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    async def start(self, work: Coroutine[Any, Any, T]) -> None:
        """Do the work: a thread for it would cost more than it takes."""
        await work

    async def shielded(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """Do the work: nothing cancels a thread."""
        return await work

    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do the work here."""
        return work(*arguments)

    async def call(
        self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float | None = None
    ) -> Any:
        """Call the function here, or with a timeout in a thread."""
        if timeout_seconds is None:
            return function(*arguments)
        call = in_thread(function, *arguments)
        try:
            return call.result(min(timeout_seconds, threading.TIMEOUT_MAX))
        except TimeoutError:
            if not call.done():
                raise TimeoutError(f"it took longer than {timeout_seconds:g} s") from None
            raise  # the function's own

    def time_limit(self, seconds: float | None) -> TimeLimit:
        """Return a block that does nothing: no code can be stopped from outside its thread."""
        return _NoTimeLimit()

    async def interrupt(self) -> NoReturn:
        """Raise SystemExit; whichever task awaits this thread (`to_thread`) is cancelled by it.

        A bare one would stop that task's event loop, and with it all that still runs there.
        """
        from asyncio import CancelledError

        class Interrupted(SystemExit, CancelledError): ...

        raise Interrupted

    def task_canceller(self) -> TaskCanceller:
        """Return a canceller that does nothing: only its next write stops blocking code."""
        return _NoCanceller()

    async def wait_for(self, future: SharedFuture, seconds: float | None = None) -> bool:
        """Wait, blocking the thread."""
        settled = future.wait(seconds)
        if future.error:
            raise future.error.with_traceback(None)
        return settled


class _NoTimeLimit(nullcontext[None]):
    def end_now(self) -> None: ...


class _NoCanceller:
    def cancel(self) -> None: ...

    async def close(self) -> bool:
        return False


def drive(coroutine: Awaitable[T]) -> T:
    """Run a coroutine that never suspends, without an event loop.

    Raises:
        ConfigurationError: it suspended; raised in it first, and it ended with this or suspended
            again.
    """
    steps = coroutine.__await__()
    try:
        next(steps)
        steps.throw(ConfigurationError(_SUSPENDED))
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()
    raise ConfigurationError(_SUSPENDED)
