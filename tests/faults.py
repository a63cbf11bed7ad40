"""Faults between the package and DynamoDB, injected where a request leaves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import settings
from tdev_models.errors import Conflict, StoreError, Throttled, Unavailable
from tdev_models.settings import Transport


class Fault:
    """One fault at the n-th request that matches.

    Kinds: `lost` the request never arrives; `unanswered` it is carried out, its reply is lost and
    nobody sends it again; `resent` its reply is lost, and the same request is sent again, as
    botocore does; in both, `between` runs after the first; `throttled`, `conflict` it is refused.
    """

    def __init__(
        self,
        kind: str,
        *,
        nth: int = 1,
        operation: str | None = None,
        table: str | None = None,
        between: Callable[[], Any] | None = None,
    ) -> None:
        self.kind, self.nth, self.operation, self.table = kind, nth, operation, table
        self.between, self.hit, self._seen = between, False, 0

    def wrap(self, send: Transport) -> Transport:
        async def faulty(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if self.hit or not self._matches(operation, request):
                return await send(operation, request)
            self._seen += 1
            if self._seen < self.nth:
                return await send(operation, request)
            self.hit = True
            if self.kind == "lost":
                raise Unavailable("injected: never arrived")
            if self.kind == "broken":
                raise StoreError("Injected", 400, "broken")
            if self.kind == "throttled":
                raise Throttled("injected")
            if self.kind == "conflict":
                raise Conflict("injected")
            if self.kind == "before":
                await self._run_between()
                return await send(operation, request)
            await send(operation, request)
            await self._run_between()
            if self.kind == "unanswered":
                raise Unavailable("injected: the reply was lost")
            assert self.kind == "resent", self.kind
            return await send(operation, request)

        return faulty

    async def _run_between(self) -> None:
        result = self.between() if self.between else None
        if inspect.isawaitable(result):
            await result

    def _matches(self, operation: str, request: Mapping[str, Any]) -> bool:
        if self.operation not in (None, operation):
            return False
        tables = [request.get("TableName", "")]
        tables += [
            one["TableName"] for part in request.get("TransactItems", ()) for one in part.values()
        ]
        return self.table is None or any(name.endswith(self.table) for name in tables)


@contextmanager
def injected(fault: Fault) -> Iterator[Fault]:
    """Let calls inside the block meet the fault; fail if none did."""
    calm = settings.current()

    def transport(send: Transport) -> Transport:
        return fault.wrap(calm.transport(send) if calm.transport else send)

    # A copy, so that the block has a client of its own.
    with settings.use(replace(calm, transport=transport)):
        yield fault
    if not fault.hit:
        pytest.fail(f"no request met the fault {fault.kind}")
