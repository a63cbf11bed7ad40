"""Faults between the package and DynamoDB, injected where a request leaves."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import settings
from tdev_models.errors import AccessDenied, Conflict, StoreError, Throttled, Unavailable
from tdev_models.settings import Transport


class Died(BaseException):
    """The process is gone: nothing that it does after this reaches DynamoDB."""


REFUSALS = {
    "lost": Unavailable("injected: never arrived"),
    "missed": Unavailable("injected: never arrived"),
    "throttled": Throttled("injected"),
    "slowed": Throttled("injected"),
    "conflict": Conflict("injected"),
    "broken": StoreError("Injected", 400, "broken"),
    "denied": AccessDenied("injected: not allowed"),
    "dies": Died(),
}


# After these the package itself sends the request again, and its caller notices nothing.
RETRIED_KINDS = ("missed", "resent", "slowed", "conflict")


class Fault:
    """One fault at the n-th request that matches.

    Kinds: `lost` the request never arrives; `unanswered` it is carried out and its reply is lost;
    `throttled`, `broken`, `denied` it is refused; after these nothing is tried again. `missed`,
    `resent`, `slowed`: the same, and the package sends it again; `conflict` it is refused, and sent
    again.
    In `unanswered` and `resent`, `between` runs after the first; in `before` and `after` it runs
    then, and nothing else is wrong; `short` a query returns one item a page; `delayed` it leaves
    late; `stale` an index shows nothing yet; `dies` and `dies-after` the process ends there. A
    worker's own item is left alone, except `of_workers`.
    """

    def __init__(
        self,
        kind: str,
        *,
        nth: int = 1,
        operation: str | None = None,
        table: str | None = None,
        between: Callable[[], Any] | None = None,
        of_workers: bool = False,
    ) -> None:
        self.of_workers = of_workers
        self.kind, self.nth, self.operation, self.table = kind, nth, operation, table
        self.between, self.hit, self._seen = between, False, 0

    def wrap(self, send: Transport) -> Transport:
        async def faulty(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if self.hit and self.kind.startswith("dies"):
                # Its threads are gone, too.
                raise SystemExit if threading.current_thread().name == "tdev-worker" else Died
            if self.hit or not self._matches(operation, request):
                return await send(operation, request)
            self._seen += 1
            if self._seen < self.nth:
                return await send(operation, request)
            self.hit = True
            return await self._strike(send, operation, request)

        return faulty

    async def _strike(
        self, send: Transport, operation: str, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self.kind in REFUSALS:
            raise REFUSALS[self.kind]
        if self.kind == "short":
            short = {"Limit": 1} if operation == "Query" else {}
            return await send(operation, {**request, **short})
        if self.kind == "stale" and "IndexName" in request:
            return {"Items": [], "Count": 0}
        if self.kind == "delayed":
            time.sleep(0.03)  # noqa: ASYNC251 (of both colours; others may overtake in threads)
            return await send(operation, request)
        if self.kind in ("before", "stale"):
            await self._run_between()
            return await send(operation, request)
        answer = await send(operation, request)
        await self._run_between()
        if self.kind == "after":
            return answer
        if self.kind == "dies-after":
            raise Died
        assert self.kind in ("unanswered", "resent"), self.kind
        raise Unavailable("injected: the reply was lost")

    async def _run_between(self) -> None:
        result = self.between() if self.between else None
        if inspect.isawaitable(result):
            await result

    def _matches(self, operation: str, request: Mapping[str, Any]) -> bool:
        if self.operation not in (None, operation):
            return False
        if not self.of_workers and "#worker:" in str(request.get("Key")):
            return False
        tables = [request.get("TableName", "")]
        tables += [
            one["TableName"] for part in request.get("TransactItems", ()) for one in part.values()
        ]
        return self.table is None or any(name.endswith(self.table) for name in tables)


class Outage:
    """A store that answers nothing while it is away."""

    def __init__(self, seconds: float, error: type[Exception] = Unavailable) -> None:
        self.seconds, self.error, self.begun = seconds, error, 0.0

    def begin(self) -> None:
        self.begun = time.monotonic()

    def wrap(self, send: Transport) -> Transport:
        async def away(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if self.begun and time.monotonic() < self.begun + self.seconds:
                raise self.error("injected: away")
            return await send(operation, request)

        return away


@contextmanager
def injected(fault: Fault, *, needed: bool = True) -> Iterator[Fault]:
    """Let calls inside the block meet the fault; fail if none did, unless it is not needed."""
    calm = settings.current()

    def transport(send: Transport) -> Transport:
        return fault.wrap(calm.transport(send) if callable(calm.transport) else send)

    retry_seconds = calm.retry_seconds if fault.kind in RETRIED_KINDS else 0
    # A copy, so that the block has a client of its own.
    with settings.use(replace(calm, transport=transport, retry_seconds=retry_seconds)):
        yield fault
    if needed and not fault.hit:
        pytest.fail(f"no request met the fault {fault.kind}")
