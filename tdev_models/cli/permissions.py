"""Tries each permission on each table, and changes nothing: no write's condition is ever met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tdev_models import aws
from tdev_models.errors import ConditionFailed, TdevError
from tdev_models.models import TABLES, BaseModel
from tdev_models.settings import Settings

_ID = {"S": "#doctor"}


def tried(chosen: Settings) -> Mapping[str, Mapping[str, TdevError]]:
    """Return, by table, what each action was answered that did not go through."""
    return {
        model.Meta.table: dict(_refused(chosen, model))  # type: ignore[attr-defined]
        for model in TABLES
    }


def _refused(chosen: Settings, model: type[BaseModel]) -> Iterator[tuple[str, TdevError]]:
    table = chosen.table_name(model.Meta.table)  # type: ignore[attr-defined]
    for action, operation, request in _requests(model):
        try:
            aws.call(chosen, operation, {"TableName": table, **request})
        except ConditionFailed:
            pass  # it would have been allowed
        except TdevError as error:
            yield action, error


def _requests(model: type[BaseModel]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    hash_key, range_key = model.key_attributes()
    names = [key.attr_name for key in (hash_key, range_key) if key is not None]
    key = dict.fromkeys(names, _ID)
    yield "GetItem", "GetItem", {"Key": key}
    yield "Query", "Query", _query(names[0])
    for name, index in model.indexes().items():
        attribute, _ = model.key_attributes(index)
        yield f"Query on {name}", "Query", {"IndexName": name, **_query(attribute.attr_name)}
    yield (
        "UpdateItem",
        "UpdateItem",
        {
            "Key": key,
            "UpdateExpression": "SET #changed = :changed",
            "ConditionExpression": "attribute_exists(#key) AND attribute_not_exists(#key)",
            "ExpressionAttributeNames": {"#key": names[0], "#changed": "changed"},
            "ExpressionAttributeValues": {":changed": _ID},
        },
    )


def _query(name: str) -> dict[str, Any]:
    return {
        "KeyConditionExpression": "#key = :key",
        "ExpressionAttributeNames": {"#key": name},
        "ExpressionAttributeValues": {":key": _ID},
        "Limit": 1,
    }
