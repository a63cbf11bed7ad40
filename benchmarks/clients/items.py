"""What every client reads and writes: the same items, keys and conditions.

Clients import this module in environments of their own: it needs the standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

Blocking: TypeAlias = dict[str, Callable[[], object]]
Awaitables: TypeAlias = dict[str, Callable[[], Awaitable[object]]]

REGION = "us-east-1"
KEY_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
AT_ONCE = 256  # the most; pools hold so many connections
SEEDS = 100  # sessions that the services find
SESSIONS, EXECUTIONS = "t-developer-dev-pipeline-sessions", "t-developer-dev-agent-executions"
SESSION_ID = "seed-0"
EXECUTION_ID, AGENT = f"{SESSION_ID}-generation", "generation"
OUTPUT = json.dumps({"files": ["z" * 300]})
METADATA = {"request": "a todo app", "stack": ["react", "node"], "note": "x" * 440}
NOW = 1764000100.654321
_NOW = {"N": str(NOW)}
ITEM = {
    "session_id": {"S": SESSION_ID},
    "user_id": {"S": "user-1"},
    "project_name": {"S": "My Todo App"},
    "pipeline_type": {"S": "PRODUCTION"},
    "status": {"S": "ACTIVE"},
    "current_agent": {"S": AGENT},
    "progress": {"N": "6"},
    "created_at": _NOW,
    "last_updated": _NOW,
    "metadata": {"S": json.dumps(METADATA)},
    "fence": {"N": "3"},
    "lease_owner": {"S": "host:123"},
}

# The same requests for the clients that take DynamoDB's own parameters.
_KEY = {"TableName": SESSIONS, "Key": {"session_id": {"S": SESSION_ID}}}
_MOVED_TO = {"#c": "current_agent", "#p": "progress", "#l": "last_updated", "#t": "lease_token"}
_MOVED = {":c": {"S": AGENT}, ":p": {"N": "6"}, ":l": _NOW}
GET: dict[str, Any] = {**_KEY, "ConsistentRead": True}
UPDATE: dict[str, Any] = {
    **_KEY,
    "UpdateExpression": "SET #s = :s, #c = :c, #p = :p, #l = :l",
    "ConditionExpression": "attribute_not_exists(#t) AND #s IN (:s, :f)",
    "ExpressionAttributeNames": {**_MOVED_TO, "#s": "status"},
    "ExpressionAttributeValues": {**_MOVED, ":s": {"S": "ACTIVE"}, ":f": {"S": "FAILED"}},
    "ReturnValues": "ALL_NEW",
}
QUERY: dict[str, Any] = {
    "TableName": SESSIONS,
    "IndexName": "status-index",
    "KeyConditionExpression": "#k = :k",
    "ExpressionAttributeNames": {"#k": "status"},
    "ExpressionAttributeValues": {":k": {"S": "ACTIVE"}},
    "Limit": 25,
}
MOVE: dict[str, Any] = {
    **_KEY,
    "UpdateExpression": "SET #c = :c, #p = :p, #l = :l",
    "ConditionExpression": "#t = :t",
    "ExpressionAttributeNames": _MOVED_TO,
    "ExpressionAttributeValues": {**_MOVED, ":t": {"S": "token"}},
}
END: dict[str, Any] = {
    "TableName": EXECUTIONS,
    "Key": {"execution_id": {"S": EXECUTION_ID}, "agent_name": {"S": AGENT}},
    "UpdateExpression": "SET #s = :s, #e = :e, #o = :o",
    "ExpressionAttributeNames": {"#s": "status", "#e": "end_time", "#o": "output_data"},
    "ExpressionAttributeValues": {":s": {"S": "COMPLETED"}, ":e": _NOW, ":o": {"S": OUTPUT}},
}
TRANSACTION: dict[str, Any] = {"TransactItems": [{"Update": MOVE}, {"Update": END}]}


def values_of(item: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return an item's values without their types, as the other clients do by themselves."""
    values = {
        name: float(value["N"]) if "N" in value else value["S"] for name, value in item.items()
    }
    return with_metadata(values)


def with_metadata(values: dict[str, Any]) -> dict[str, Any]:
    """Return an item's values with the metadata read, as models do by themselves."""
    if "metadata" in values:
        values["metadata"] = json.loads(values["metadata"])
    return values


def expect(found: int, expected: int) -> None:
    """Fail where a client has not brought what was asked for."""
    if found != expected:
        raise RuntimeError(f"{found} items instead of {expected}")
