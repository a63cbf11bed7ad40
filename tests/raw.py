"""Items as DynamoDB holds them, beside the package."""

from __future__ import annotations

from typing import Any

from tdev_models import aws
from tdev_models.settings import Settings

KEYS = {
    "pipeline-sessions": ("session_id",),
    "agent-executions": ("execution_id", "agent_name"),
    "user-projects": ("user_id", "project_id"),
    "metrics": ("date", "metric_name"),
}


def item(store: Settings, table: str, *key: str) -> dict[str, Any] | None:
    """Return one item, typed values and all, or None."""
    response = _call(store, "GetItem", table, key, ConsistentRead=True)
    found: dict[str, Any] | None = response.get("Item")
    return found


def put_attribute(store: Settings, table: str, *key: str, **values: dict[str, Any]) -> None:
    """Set attributes of one item, as another release would."""
    names = list(values)
    _call(
        store,
        "UpdateItem",
        table,
        key,
        UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in names),
        ExpressionAttributeNames={f"#{name}": name for name in names},
        ExpressionAttributeValues={f":{name}": values[name] for name in names},
    )


def everything(store: Settings, table: str) -> list[dict[str, Any]]:
    """Return all items of a table, but those of workers, which beat."""
    client = aws.dynamodb(store)
    pages = client.get_paginator("scan").paginate(
        TableName=store.table_name(table), ConsistentRead=True
    )
    with aws.quiet():  # the canary watches the package, and not its tests
        items = [one for page in pages for one in page["Items"]]
    return [one for one in items if one.get("status") not in ({"S": "WORKER"}, {"S": "STOPPED"})]


def _call(
    store: Settings, operation: str, table: str, key: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    request = {
        "TableName": store.table_name(table),
        "Key": {name: {"S": value} for name, value in zip(KEYS[table], key, strict=True)},
        **more,
    }
    return aws.call(store, operation, request)


def delete(store: Settings, table: str, *key: str) -> None:
    """Delete one item, which the package never does."""
    _call(store, "DeleteItem", table, key)
