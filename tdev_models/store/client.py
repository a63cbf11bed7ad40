"""The client: settings, transport, tables, and all that knows of time and concurrency."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, Self, TypeVar

from tdev_models import settings as settings_module
from tdev_models.aws import tables_of
from tdev_models.errors import Conflict, TdevError
from tdev_models.models import AgentExecution, Metric, PipelineSession, UserProject
from tdev_models.settings import Settings, Transport
from tdev_models.store.receipts import Receipt
from tdev_models.store.table import Table
from tdev_models.types import RequestEvent

T = TypeVar("T")

_log = logging.getLogger(__name__)

_CONFLICT_SECONDS = 5.0
_LONGEST_PAUSE = 1.0
_MOST_CLIENTS = 256


class Interrupter(Protocol):
    """Cancels the task that made it, on behalf of another thread."""

    def fire(self) -> None:
        """Cancel the task; called from any thread, any number of times."""

    async def close(self) -> bool:
        """End the watch; called by the task. Returns whether a cancellation was this one's."""


class Client(ABC):
    """What services need of the world; subclasses say how it waits."""

    _open: dict[Settings, Self]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        standard = self._standard_transport()
        self._transport = settings.transport(standard) if settings.transport else standard

    def __init_subclass__(cls) -> None:
        cls._open = {}
        # A child process opens its own.
        os.register_at_fork(after_in_child=cls._open.clear)

    @classmethod
    def of(cls, settings: Settings | None = None) -> Self:
        """Return the client of these settings, or of those in force."""
        chosen = settings or settings_module.current()
        client = cls._open.get(chosen)
        if client is None:
            if len(cls._open) >= _MOST_CLIENTS:
                cls._open.clear()  # a client holds no connection: those are in `aws`
            client = cls._open.setdefault(chosen, cls(chosen))
        return client

    @abstractmethod
    def _standard_transport(self) -> Transport: ...

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def gather(self, jobs: Sequence[Callable[[], Awaitable[T]]], concurrency: int) -> list[T]:
        """Run jobs, at most so many at once, and return their results in order."""

    @abstractmethod
    async def uninterrupted(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of work that a cancellation must not cut in two."""

    @abstractmethod
    async def compute(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of work that takes the processor for long."""

    def is_stray(self, error: BaseException) -> bool:
        """Return whether an error is a cancellation that nobody asked of the current task."""
        return False

    @abstractmethod
    def interrupter(self) -> Interrupter:
        """Return what cancels the current task."""

    @abstractmethod
    async def settled(self, receipt: Receipt) -> None:
        """Wait until a receipt is settled, and raise the error that it was settled with."""

    async def acquire(self, lock: threading.Lock) -> None:
        """Take a lock that a thread may hold for the time of a request."""
        while not lock.acquire(blocking=False):
            await self.sleep(0.005)

    @cached_property
    def sessions(self) -> Table[PipelineSession]:
        """The table of pipeline sessions."""
        return Table(self, PipelineSession)

    @cached_property
    def executions(self) -> Table[AgentExecution]:
        """The table of agent executions."""
        return Table(self, AgentExecution)

    @cached_property
    def projects(self) -> Table[UserProject]:
        """The table of user projects."""
        return Table(self, UserProject)

    @cached_property
    def metrics(self) -> Table[Metric]:
        """The table of metrics."""
        return Table(self, Metric)

    def now(self) -> float:
        """Return the time in epoch seconds, to the microsecond."""
        return round(self.settings.clock(), 6)

    def expiry(self, created_at: float) -> int | None:
        """Return when a session of this creation, and all of it, expires; epoch seconds."""
        days = self.settings.retention_days
        return None if days is None else int(created_at + days * 86400)

    async def send(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return the response.

        A refusal for a transaction on the same item changed nothing: it is sent again with growing
        pauses for five seconds.

        Raises:
            ConditionFailed: a condition was not met.
            TdevError: the error that any other failure means.
        """
        deadline = time.monotonic() + _CONFLICT_SECONDS
        pause = 0.02
        while True:
            try:
                return await self._observed(operation, request)
            except Conflict:
                if time.monotonic() + pause > deadline:
                    raise
            await self.sleep(pause * random.random())
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def transact_write(self, parts: Sequence[Mapping[str, Any]], token: str) -> None:
        """Write all parts or none; a resend with the same token does nothing twice.

        Raises:
            ConditionFailed: a condition was not met; `position` says whose.
        """
        request = {
            "TransactItems": parts,
            "ClientRequestToken": token,
            "ReturnConsumedCapacity": "TOTAL",
        }
        await self.send("TransactWriteItems", request)

    async def transact_get(self, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return up to 100 items as they were at one moment, `{}` for those that do not exist."""
        if not parts:
            return []
        request = {"TransactItems": parts, "ReturnConsumedCapacity": "TOTAL"}
        response = await self.send("TransactGetItems", request)
        return [answer.get("Item", {}) for answer in response["Responses"]]

    async def _observed(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        hook = self.settings.on_request
        if hook is None:
            return await self._transport(operation, request)
        start = time.perf_counter()
        response: Mapping[str, Any] = {}
        error: str | None = None
        try:
            response = result = await self._transport(operation, request)
            return result
        except TdevError as raised:
            response = getattr(raised.__cause__, "response", {})
            error = response.get("Error", {}).get("Code") or type(raised).__name__
            raise
        finally:
            seconds = time.perf_counter() - start
            try:
                hook(_event(operation, request, response, seconds, error))
            except Exception:  # what was sent is done, whatever its watcher makes of it
                _log.warning("the on_request hook failed", exc_info=True)


def _event(
    operation: str,
    request: Mapping[str, Any],
    response: Mapping[str, Any],
    seconds: float,
    error: str | None,
) -> RequestEvent:
    consumed = response.get("ConsumedCapacity", ())
    each = consumed if isinstance(consumed, (list, tuple)) else [consumed]
    return RequestEvent(
        operation=operation,
        table=tables_of(request),
        units=sum(one["CapacityUnits"] for one in each if one),
        seconds=seconds,
        attempts=1 + response.get("ResponseMetadata", {}).get("RetryAttempts", 0),
        error=error,
    )
