"""The client: the tables of one settings, and how its calls wait.

Services import no event loop. The abstract methods here are all that differs between waiting in a
thread and in an event loop; `blocking_client` and `async_client` implement them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import cached_property
from typing import Any, ClassVar, NoReturn, Protocol, Self, TypeVar

from tdev_models import settings as settings_module
from tdev_models.dynamodb.sender import Sender
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.dynamodb.table import Table
from tdev_models.forks import after_fork_in_child
from tdev_models.models import (
    AgentExecution,
    BaseModel,
    Metric,
    PipelineSession,
    UserProject,
    WorkerItem,
)
from tdev_models.retry import wait_among
from tdev_models.security.fields import check_installed
from tdev_models.settings import Settings, Transport

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_MOST_CLIENTS = 256

WAITED = "tdev_waited_seconds"
"""The attribute of a cancellation that says how long it waited for what it must not interrupt."""


class TaskCanceller(Protocol):
    """Cancels the task that made it, on behalf of another thread."""

    def cancel(self) -> None:
        """Cancel the task; called from any thread, any number of times."""

    async def close(self) -> bool:
        """Stop cancelling; called by the task. Return whether this object has cancelled it."""


class TimeLimit(AbstractAsyncContextManager[object], Protocol):
    """A block that may take so long."""

    def end_now(self) -> None:
        """Let its time be over; called by a task of its event loop, any number of times."""


class Client(ABC):
    """What services need besides their arguments: tables, time, and ways to wait.

    Attributes:
        in_event_loop: whether its coroutines suspend, and so need an event loop.
        sender: sends requests that reach several tables: transactions.
    """

    in_event_loop: ClassVar[bool]
    _open: dict[Settings, Self]

    def __init__(self, settings: Settings) -> None:
        check_installed(settings)
        self.settings = settings
        transport = self._standard_transport()
        if callable(settings.transport):
            transport = self._checked(settings.transport(transport))
        self.sender = Sender(transport, settings, self.sleep)

    def __init_subclass__(cls) -> None:
        cls._open = {}
        after_fork_in_child(cls._open.clear)

    @classmethod
    def for_settings(cls, settings: Settings | None = None) -> Self:
        """Return the process's client of these settings, or of those in force."""
        chosen = settings or settings_module.current()
        client = cls._open.get(chosen)
        if client is None:
            if len(cls._open) >= _MOST_CLIENTS:
                cls._open.clear()  # it holds no connection: those are in pools of the process
            client = cls._open.setdefault(chosen, cls(chosen))
        return client

    @property
    def thread(self) -> int:
        """The thread that waits for what is called here: for a job, that of the call."""
        return threading.get_ident()

    def runs(self) -> Callable[[], bool]:
        """Return what tells, from any thread, whether what waits here can go on."""
        return lambda: True

    @abstractmethod
    def _standard_transport(self) -> Transport: ...

    def _checked(self, transport: Transport) -> Transport:
        """Return a caller's transport as this client sends by it."""
        return transport

    @abstractmethod
    async def turn(self) -> None:
        """Wait at the beginning of a call, so that many at once do not stop what else runs."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def gather(
        self,
        jobs: Sequence[Callable[[], Awaitable[T]]],
        concurrency: int,
        end: Callable[[], None] | None = None,
    ) -> list[T]:
        """Run jobs, at most so many at once, each in a context of its own; return their results.

        Where one fails, or all are to stop, `end` is called: jobs in threads cannot be cancelled.
        Those without it end at their next pause.
        """

    @abstractmethod
    async def shielded(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """Return the result of work that a cancellation must not interrupt half-way.

        Raises:
            Unavailable: in an event loop, it took longer than `seconds`, if they are given.
        """

    @abstractmethod
    async def start(self, work: Coroutine[Any, Any, T]) -> Awaitable[T] | None:
        """Begin work beside what the task does next; None where it is done: in a thread."""

    @abstractmethod
    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of work that takes the processor for long."""

    @abstractmethod
    async def call(
        self, function: Callable[..., Any], *arguments: Any, timeout_seconds: float | None = None
    ) -> Any:
        """Return what a caller's function returns, awaited where it can be.

        In an event loop a plain function runs in a thread, so that the loop goes on. After
        `timeout_seconds` a coroutine is cancelled. A function in a thread cannot be killed: it is
        abandoned, and its result discarded.

        Raises:
            TimeoutError: it took longer.
        """

    @abstractmethod
    def time_limit(self, seconds: float | None) -> TimeLimit:
        """Return the block that is cancelled, and raises TimeoutError, after so many seconds.

        In a thread it does nothing.
        """

    @abstractmethod
    async def interrupt(self) -> NoReturn:
        """Stop the current task, or thread, as whoever ends a process does: it is no failure.

        Raises:
            CancelledError: in an event loop.
            SystemExit: in a thread.
        """

    @abstractmethod
    def task_canceller(self) -> TaskCanceller:
        """Return what cancels the current task."""

    @abstractmethod
    async def wait_for(self, future: SharedFuture, seconds: float | None = None) -> bool:
        """Wait until a future is settled, and raise the error that it was settled with.

        Return False where the time is over first.
        """

    def is_stray_cancellation(self, error: BaseException) -> bool:
        """Return whether an error is a cancellation that nobody requested of this task.

        In a plain thread each is: of an event loop that ran in it.
        """
        import asyncio

        if not isinstance(error, asyncio.CancelledError) or isinstance(error, SystemExit):
            return False
        with suppress(RuntimeError):  # no event loop runs in this thread
            task = asyncio.current_task()
            return not (task and task.cancelling())
        return True

    async def acquire(self, lock: threading.Lock, waiters: set[object]) -> None:
        """Take a lock that a thread may hold for the time of a request, and others wait for."""
        await wait_among(waiters, lambda: lock.acquire(blocking=False), self.sleep)

    @cached_property
    def sessions(self) -> Table[PipelineSession]:
        """The table of pipeline sessions."""
        return self._table(PipelineSession)

    @cached_property
    def workers(self) -> Table[WorkerItem]:
        """The workers' own items, in the table of pipeline sessions."""
        return self._table(WorkerItem)

    @cached_property
    def executions(self) -> Table[AgentExecution]:
        """The table of agent executions."""
        return self._table(AgentExecution)

    @cached_property
    def projects(self) -> Table[UserProject]:
        """The table of user projects."""
        return self._table(UserProject)

    @cached_property
    def metrics(self) -> Table[Metric]:
        """The table of metrics."""
        return self._table(Metric)

    def _table(self, model: type[M]) -> Table[M]:
        name = self.settings.table_name(model.Meta.table)  # type: ignore[attr-defined]
        return Table(model, name, self.sender, self.now)

    def now(self) -> float:
        """Return the time in epoch seconds, to the microsecond."""
        return round(self.settings.clock(), 6)

    def expiry(self, created_at: float) -> int | None:
        """Return when a session expires that was created then, in epoch seconds; None: never."""
        days = self.settings.retention_days
        return None if days is None else int(created_at + days * 86400)
