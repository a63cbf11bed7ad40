"""A DynamoDB in memory that evaluates what the package sends, many thousand requests a second.

It has no faults of its own but index lag; `network` adds the others. What it does not know raises
`UnknownRequest` or `UnknownExpression`, which no code of the package catches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from tdev_models.errors import TdevError, from_response
from tdev_models.models import TABLES
from tdev_models.settings import Settings
from tests.simulation import expressions
from tests.simulation.capacity import read_units, write_units
from tests.simulation.tables import Index, Key, Table, table_of
from tests.simulation.values import Item

TOKEN_SECONDS = 600.0
Request: TypeAlias = Mapping[str, Any]

_KNOWN = {
    "GetItem": {"Key", "ConsistentRead"},
    "UpdateItem": {"Key", "UpdateExpression", "ConditionExpression", "ReturnValues"},
    "Query": {
        "KeyConditionExpression",
        "FilterExpression",
        "ProjectionExpression",
        "IndexName",
        "Limit",
        "ScanIndexForward",
        "ExclusiveStartKey",
        "ConsistentRead",
        "Select",
    },
    "TransactGetItems": {"TransactItems"},
    "TransactWriteItems": {"TransactItems", "ClientRequestToken"},
}
_OF_A_GET = {"Key", "TableName", "ProjectionExpression", "ExpressionAttributeNames"}
_EVERYWHERE = {
    "TableName",
    "ExpressionAttributeNames",
    "ExpressionAttributeValues",
    "ReturnConsumedCapacity",
    "ReturnValuesOnConditionCheckFailure",
}


class UnknownRequest(BaseException):
    """A request that the engine cannot carry out: teach it, or the simulation proves nothing."""


class Change(NamedTuple):
    """What one accepted write changed.

    Attributes:
        table: the table's name behind the prefix and the environment.
        key: the item's key.
        old: the item before; empty where there was none.
        new: the item from now on.
    """

    table: str
    key: Key
    old: Item
    new: Item


class Engine:
    """The four tables of some settings.

    Attributes:
        requests: how many were carried out.
        lag: returns for how long the indexes do not show a write that is made now.
        watch: called with what a write changed, after it was accepted.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = lambda: 0.0,
        *,
        counts_capacity: bool = False,
    ) -> None:
        self._clock, self._counts = clock, counts_capacity
        self.requests = 0
        self.lag: Callable[[], float] = lambda: 0.0
        self.watch: Callable[[Sequence[Change]], None] = lambda changes: None
        self._short: dict[str, str] = {}
        self.tables: dict[str, Table] = {}
        for model in TABLES:
            short = model.Meta.table  # type: ignore[attr-defined]
            name = settings.table_name(short)
            self.tables[name], self._short[name] = table_of(model, name), short
        self._tokens: dict[str, tuple[float, Any]] = {}
        self._operations: Mapping[str, Callable[[Request], dict[str, Any]]] = {
            "GetItem": self._get_item,
            "UpdateItem": self._update_item,
            "Query": self._query,
            "TransactGetItems": self._transact_get,
            "TransactWriteItems": self._transact_write,
        }

    def items(self, table: str) -> dict[Key, Item]:
        """Return the items of a table, by the name behind prefix and environment."""
        return next(
            self.tables[name].items for name, short in self._short.items() if short == table
        )

    def execute(self, operation: str, request: Request) -> dict[str, Any]:
        """Carry out one request at once and return its response.

        Raises:
            TdevError: as `Settings.transport` says.
        """
        if (operation, *request) not in _checked:
            _check(operation, request)
        self.requests += 1
        return self._operations[operation](request)

    # ------------------------------------------------------------------ reads

    def _get_item(self, request: Request) -> dict[str, Any]:
        table = self.tables[request["TableName"]]
        item = table.items.get(table.key_of(request["Key"]))
        answer: dict[str, Any] = {} if item is None else {"Item": item}
        if self._counts:
            answer["ConsumedCapacity"] = _consumed(table, read_units([item or {}], consistent=True))
        return answer

    def _transact_get(self, request: Request) -> dict[str, Any]:
        answers = []
        for part in request["TransactItems"]:
            get = part["Get"]
            if len(part) > 1 or get.keys() - _OF_A_GET:
                raise UnknownRequest(str(part))
            table = self.tables[get["TableName"]]
            item = table.items.get(table.key_of(get["Key"]))
            answers.append({} if item is None else {"Item": _projected(get, [item])[0]})
        return {"Responses": answers}

    def _query(self, request: Request) -> dict[str, Any]:
        table = self.tables[request["TableName"]]
        names = request.get("ExpressionAttributeNames", {})
        given = request.get("ExpressionAttributeValues", {})
        index = table.indexes[request["IndexName"]] if "IndexName" in request else table.whole
        text = request["KeyConditionExpression"]
        key = _cached(expressions.condition, text, names)
        found = [
            (table.position(index, item), item)
            for item in self._partition(table, index, text, names, given)
            if key(item, given) and index.keys[-1] in item
        ]
        found.sort(key=lambda one: one[0], reverse=not request.get("ScanIndexForward", True))
        found = _after(table, index, found, request)
        limit = request.get("Limit")
        answer: dict[str, Any] = {}
        if limit is not None and len(found) >= limit:
            found = found[:limit]
            answer["LastEvaluatedKey"] = table.start_key(index, found[-1][1])
        shown = [index.shown(item) for _, item in found]
        if "FilterExpression" in request:
            wanted = _cached(expressions.condition, request["FilterExpression"], names)
            shown = [item for item in shown if wanted(item, given)]
        shown = _projected(request, shown)
        answer |= {"Count": len(shown), "ScannedCount": len(found)}
        if request.get("Select") != "COUNT":
            answer["Items"] = shown
        if self._counts:
            read = [index.shown(item) for _, item in found]
            units = read_units(read, consistent=request.get("ConsistentRead", False))
            answer["ConsumedCapacity"] = _consumed(table, units)
        return answer

    def _partition(
        self, table: Table, index: Index, text: str, names: Mapping[str, str], given: Request
    ) -> list[Item]:
        if index is not table.whole:
            return list(index.current(self._clock()).values())
        ((_, wanted),) = given[_equals(text, names)[table.keys[0]]].items()
        return list(table.partitions.get(wanted, {}).values())

    # ------------------------------------------------------------------ writes

    def _update_item(self, request: Request) -> dict[str, Any]:
        change, table = self._changed(request), self.tables[request["TableName"]]
        if change is None:
            stored = table.items.get(table.key_of(request["Key"]))
            shown = request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
            raise _error(
                "ConditionalCheckFailedException",
                "The conditional request failed",
                **({"Item": stored} if stored and shown else {}),
            )
        self._store([(table, change)])
        answer: dict[str, Any] = {}
        if (returned := request.get("ReturnValues", "NONE")) == "ALL_NEW":
            answer["Attributes"] = change.new
        elif returned != "NONE":
            raise UnknownRequest(returned)
        if self._counts:
            answer["ConsumedCapacity"] = _consumed(
                table, write_units(table, change.old, change.new)
            )
        return answer

    def _transact_write(self, request: Request) -> dict[str, Any]:
        parts, token = request["TransactItems"], request.get("ClientRequestToken")
        now = self._clock()
        if token in self._tokens and now - self._tokens[token][0] < TOKEN_SECONDS:
            if self._tokens[token][1] != parts:
                raise _error("IdempotentParameterMismatchException", "other parameters")
            return {}
        changes: list[tuple[Table, Change]] = []
        reasons: list[dict[str, Any]] = []
        for part in parts:
            update = part.get("Update")
            if update is None or len(part) > 1:
                raise UnknownRequest(str(part))
            table = self.tables[update["TableName"]]
            change = self._changed(update)
            if change is not None:
                changes.append((table, change))
                reasons.append({"Code": "None"})
                continue
            stored = table.items.get(table.key_of(update["Key"]))
            shown = update.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
            reason = {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed"}
            reasons.append(reason | ({"Item": stored} if stored and shown else {}))
        if len(changes) < len(parts):
            raise _error("TransactionCanceledException", "cancelled", CancellationReasons=reasons)
        if len({(change.table, change.key) for _, change in changes}) < len(parts):
            raise _error("ValidationException", "Transaction request cannot include one item twice")
        if token is not None:
            self._tokens[token] = (now, parts)
        self._store(changes)
        return {}

    def _changed(self, request: Request) -> Change | None:
        """Return what an update makes of its item, or None where its condition is not met."""
        table = self.tables[request["TableName"]]
        names = request.get("ExpressionAttributeNames", {})
        given = request.get("ExpressionAttributeValues", {})
        key = table.key_of(request["Key"])
        old = table.items.get(key, {})
        text = request.get("ConditionExpression")
        if text is not None and not _cached(expressions.condition, text, names)(old, given):
            return None
        new: Item = old or request["Key"]
        if (text := request.get("UpdateExpression")) is not None:
            try:
                new = _cached(expressions.update, text, names)(new, given)
            except expressions.InvalidPath:
                raise _error(
                    "ValidationException",
                    "The document path provided in the update expression is invalid for update",
                ) from None
        return Change(self._short[table.name], key, old, new)

    def _store(self, changes: Sequence[tuple[Table, Change]]) -> None:
        now, lag = self._clock(), self.lag()
        for table, change in changes:
            table.store(change.key, change.new, now, lag)
        self.watch([change for _, change in changes])


_checked: set[tuple[str, ...]] = set()


def _check(operation: str, request: Request) -> None:
    known = _KNOWN.get(operation, set())
    if not known or not request.keys() - _EVERYWHERE <= known:
        raise UnknownRequest(f"{operation} with {sorted(request)}")
    _checked.add((operation, *request))


_functions: dict[Any, Any] = {}


def _cached(make: Callable[..., Any], text: str, names: Mapping[str, str]) -> Any:
    """Return what is made of an expression, which is made once for each text and its names."""
    key = (make, text, *names, *names.values())
    function = _functions.get(key)
    if function is None:
        function = _functions[key] = make(text, names)
    return function


def _projected(request: Request, items: list[Item]) -> list[Item]:
    """Return what a request asks for of its items."""
    if "ProjectionExpression" not in request:
        return items
    names = request.get("ExpressionAttributeNames", {})
    only = expressions.paths(request["ProjectionExpression"], names)
    return [{name: item[name] for name in only if name in item} for item in items]


def _equals(text: str, names: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = _cached(expressions.equals, text, names)
    return found


def _after(
    table: Table, index: Index, found: list[tuple[Any, Item]], request: Request
) -> list[tuple[Any, Item]]:
    """Return the items that come after the request's start key, in the order of its query."""
    if (start := request.get("ExclusiveStartKey")) is None:
        return found
    place = table.position(index, start)
    if request.get("ScanIndexForward", True):
        return [one for one in found if one[0] > place]
    return [one for one in found if one[0] < place]


def _consumed(table: Table, units: float) -> dict[str, Any]:
    return {"TableName": table.name, "CapacityUnits": units}


def _error(code: str, message: str, **more: Any) -> TdevError:
    meta = {"HTTPStatusCode": 400}
    error = {"Code": code, "Message": message}
    return from_response({"Error": error, "ResponseMetadata": meta, **more})
