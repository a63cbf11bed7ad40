"""The plan's production capacity, injected where a request leaves: 5 read and 5 write units."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal

from tdev_models.errors import from_response
from tdev_models.settings import Transport

_EXCEEDED = "ProvisionedThroughputExceeded"
_BURST_SECONDS = 300

Kind = Literal["ReadCapacityUnits", "WriteCapacityUnits"]


class Capacity:
    """A token bucket for each table, of reads and of writes, empty at first.

    What is not used is kept for 300 s, as DynamoDB keeps it. A request is admitted where units are
    left, and may overdraw them: the next ones wait longer. With `whole` all of its units must be
    there. Which of the two DynamoDB does it does not say. A refused transaction has used up what
    its other tables granted.
    """

    def __init__(self, units_per_second: float, *, whole: bool) -> None:
        self.rate, self.whole, self.refused = units_per_second, whole, 0
        self._left: dict[tuple[str, Kind], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wrap(self, send: Transport) -> Transport:
        async def limited(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            kind, needed = _needed(operation, request)
            with self._lock:
                granted = [self._granted(table, kind, units) for table, units in needed]
                if not all(granted):
                    for (table, units), got in zip(needed, granted, strict=True):
                        if got:
                            self._use(table, kind, units)
                    self.refused += 1
                    raise _refusal(granted)
                for table, units in needed:
                    self._use(table, kind, units)
            response = await send(operation, request)
            consumed = response["ConsumedCapacity"]
            with self._lock:
                for part in consumed if isinstance(consumed, list) else [consumed]:
                    expected = sum(units for table, units in needed if table == part["TableName"])
                    self._use(part["TableName"], kind, part["CapacityUnits"] - expected)
            return response

        return limited

    def _granted(self, table: str, kind: Kind, units: float) -> bool:
        now = time.monotonic()
        left, since = self._left.setdefault((table, kind), (0.0, now))
        left = min(left + (now - since) * self.rate, self.rate * _BURST_SECONDS)
        self._left[table, kind] = left, now
        return left >= units if self.whole else left > 0

    def _use(self, table: str, kind: Kind, units: float) -> None:
        left, since = self._left[table, kind]
        self._left[table, kind] = left - units, since


def _needed(operation: str, request: Mapping[str, Any]) -> tuple[Kind, list[tuple[str, float]]]:
    """Return the kind of units that a request needs, and how many at least of each table."""
    kind: Kind = "ReadCapacityUnits"
    if operation in ("PutItem", "UpdateItem", "TransactWriteItems"):
        kind = "WriteCapacityUnits"
    parts = [one for part in request.get("TransactItems", ()) for one in part.values()]
    if not parts:
        return kind, [(request["TableName"], _units(request, kind))]
    return kind, [(part["TableName"], 2 * _units(part, kind)) for part in parts]


def _units(part: Mapping[str, Any], kind: Kind) -> float:
    if kind == "ReadCapacityUnits":
        return 1.0
    values = part.get("ExpressionAttributeValues", {}).values()
    size = sum(len(value.get("B") or json.dumps(value)) for value in values)
    return float(math.ceil(max(1, size) / 1024))


def _refusal(granted: list[bool]) -> Exception:
    if len(granted) == 1:
        error = {"Code": f"{_EXCEEDED}Exception", "Message": "injected: no capacity is left"}
        return from_response({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 400}})
    reasons = [{"Code": "None" if got else _EXCEEDED} for got in granted]
    return from_response(
        {
            "Error": {"Code": "TransactionCanceledException", "Message": f"injected: {_EXCEEDED}"},
            "CancellationReasons": reasons,
            "ResponseMetadata": {"HTTPStatusCode": 400},
        }
    )
