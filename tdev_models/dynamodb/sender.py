"""Sends requests over a transport, retries them, and reports each to the request hook."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tdev_models import telemetry
from tdev_models.aws import tables_of
from tdev_models.errors import TdevError, Unavailable, logged, shown
from tdev_models.results import RequestEvent
from tdev_models.retry import Backoff, retry
from tdev_models.settings import Settings, Transport

_log = logging.getLogger(__name__)


class Sender:
    """Sends the requests of one client.

    Attributes:
        long_silence_ended: when, by the monotonic clock, the store answered again that had answered
            nothing for so long that other workers' leases may seem over.
    """

    def __init__(
        self, transport: Transport, settings: Settings, sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._transport, self._sleep = transport, sleep
        self._hook, self._retry_seconds = settings.on_request, settings.retry_seconds
        self._silent_since, self._was_answered = math.inf, False
        self._long_silence, self.long_silence_ended = settings.long_silence_seconds, -math.inf

    async def send(
        self, operation: str, request: Mapping[str, Any], retry_seconds: float | None = None
    ) -> dict[str, Any]:
        """Send one request, again while `retry` allows it, and return the response.

        Args:
            operation: its name, as DynamoDB's API has it.
            request: its parameters; sent unchanged each time.
            retry_seconds: for how long it may be tried again; the setting's when not given.

        Raises:
            ConditionFailed: a condition was not met.
            TdevError: the error that any other failure means.
        """
        budget = self._retry_seconds if retry_seconds is None else retry_seconds
        backoff, begun = Backoff(budget), time.perf_counter()
        response: dict[str, Any] = {}
        error: BaseException | None = None
        try:
            response = await retry(lambda: self._attempt(operation, request), self._sleep, backoff)
            return response
        except BaseException as raised:
            error = raised
            raise
        finally:
            watching = telemetry.active
            if self._hook is not None or watching.watches:
                seconds = time.perf_counter() - begun
                event = RequestEvent(
                    operation=operation,
                    table=tables_of(request),
                    units=_units(response),
                    seconds=seconds,
                    attempts=backoff.attempts,
                    error=None if error is None else _name(error),
                )
                watching.request(event, error)
                try:
                    if self._hook is not None:
                        self._hook(event)
                except Exception as raised:  # the request is done, whatever the hook does
                    _log.warning("the on_request hook failed: %s", logged(raised))

    async def _attempt(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = await self._transport(operation, request)
            _check_members(operation, request, response)
        except Unavailable:
            # How long it had been silent before is not known to a process that has just begun.
            since = time.monotonic() if self._was_answered else -math.inf
            self._silent_since = min(self._silent_since, since)
            raise
        except TdevError:
            self._is_answered()
            raise
        self._is_answered()
        return response

    def _is_answered(self) -> None:
        self._was_answered = True
        if self._silent_since < math.inf:
            now = time.monotonic()
            if now - self._silent_since > self._long_silence:
                self.long_silence_ended = now
            self._silent_since = math.inf

    async def transact_write(
        self,
        parts: Sequence[Mapping[str, Any]],
        token: str,
        retry_seconds: float | None = None,
    ) -> None:
        """Write all parts or none; sent again with the same token it changes nothing more.

        Raises:
            ConditionFailed: a condition was not met; `position` is the number of its part.
        """
        request = {
            "TransactItems": parts,
            "ClientRequestToken": token,
            "ReturnConsumedCapacity": "TOTAL",
        }
        await self.send("TransactWriteItems", request, retry_seconds)

    async def transact_get(self, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return up to 100 items as they were at one moment, `{}` for those that do not exist."""
        if not parts:
            return []
        request = {"TransactItems": parts, "ReturnConsumedCapacity": "TOTAL"}
        response = await self.send("TransactGetItems", request)
        return [answer.get("Item", {}) for answer in response["Responses"]]


def _check_members(operation: str, request: Mapping[str, Any], response: Mapping[str, Any]) -> None:
    """Raise Unavailable where an answer lacks what DynamoDB never leaves out: it is not its own."""
    if operation == "Query":
        member = "Count" if request.get("Select") == "COUNT" else "Items"
    elif operation == "TransactGetItems":
        member = "Responses"
    elif request.get("ReturnValues") == "ALL_NEW":
        member = "Attributes"
    else:
        return
    if member not in response:
        raise Unavailable(
            f"the answer to {operation} lacks {member}, so it is not DynamoDB's; "
            f"it has {shown([*response])}"
        )
    if member == "Responses" and len(response[member]) != len(request["TransactItems"]):
        raise Unavailable(f"the answer to {operation} is not of as many items as were asked for")


def _name(error: BaseException) -> str:
    code = error.code if isinstance(error, TdevError) else None
    return code or type(error).__name__


def _units(response: Mapping[str, Any]) -> float:
    consumed = response.get("ConsumedCapacity", ())
    tables = consumed if isinstance(consumed, list | tuple) else [consumed]
    return float(sum(table.get("CapacityUnits", 0) for table in tables if table))
