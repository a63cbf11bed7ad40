"""The base model: PynamoDB's ORM on tables named at run time, with a `save()` that loses nothing.

All use of PynamoDB's private names is in this file (docs/adr/0002).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any, NoReturn, Self

from pynamodb.attributes import Attribute
from pynamodb.connection.base import BOTOCORE_EXCEPTIONS, Connection, MetaTable
from pynamodb.connection.table import TableConnection
from pynamodb.constants import PAY_PER_REQUEST_BILLING_MODE
from pynamodb.exceptions import UpdateError
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index
from pynamodb.models import Model

from tdev_models import aws, settings
from tdev_models.errors import InvalidRequest
from tdev_models.models.attributes import Declared, declared
from tdev_models.retry import Backoff
from tdev_models.validation import Rule

Item = Mapping[str, Mapping[str, Any]]
"""An item as DynamoDB sends it: attribute name to typed value."""


class TableMeta(type):
    """Makes a model's `Meta` follow the settings in force."""

    table: str
    ttl_attribute: str | None = None
    billing_mode = PAY_PER_REQUEST_BILLING_MODE

    @property
    def table_name(cls) -> str:
        """The physical name of the table."""
        return settings.current().table_name(cls.table)

    @property
    def region(cls) -> str | None:
        """The AWS region."""
        return _settings_for_import().region

    @property
    def host(cls) -> str | None:
        """The endpoint's URL; None means AWS."""
        return _settings_for_import().endpoint


def _settings_for_import() -> settings.Settings:
    # PynamoDB asks when a model is made, at import; whoever sends is told by `table_name`.
    try:
        return settings.current()
    except InvalidRequest:
        return settings.Settings()


class BaseModel(Model):
    """A model whose writes touch only what was changed, and never a lease."""

    _stored: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_stored", {})
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.get_attributes() or name in ("attribute_values", "_stored"):
            super().__setattr__(name, value)
        else:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ------------------------------------------------------------------ what the ORM user calls

    def save(
        self, condition: Condition | None = None, *, add_version_condition: bool = True
    ) -> dict[str, Any]:
        """Write what was set since this instance was made or read, with one UpdateItem.

        Attributes that were not read (an index projects only some), that a newer release added, or
        that belong to a lease stay as they are in the table. Setting None removes an attribute.
        Safe to send twice. Returns DynamoDB's response, `{}` when there was nothing to write.

        Raises:
            pynamodb.exceptions.UpdateError: the condition was not met, or the request failed.
        """
        changes = self._changes()
        if not changes and self._stored and condition is None:
            return {}
        actions = [
            attribute.remove() if raw is None else typed(attribute, raw)
            for attribute, raw in changes
        ]
        hash_key, range_key = self._get_serialized_keys()
        connection = self._get_connection()
        request = connection.get_operation_kwargs(
            hash_key, range_key=range_key, actions=actions or None, condition=condition
        )
        try:
            response: dict[str, Any] = connection.connection.dispatch("UpdateItem", request)
        except BOTOCORE_EXCEPTIONS as error:
            raise UpdateError(f"Failed to save: {error}", error) from error
        self._stored = {**self._stored, **{one.attr_name: raw for one, raw in changes}}
        return response

    @classmethod
    def batch_write(cls, auto_commit: bool = True) -> NoReturn:
        """Refuse: a batch puts whole items, and would erase what this release does not know."""
        raise InvalidRequest("batch_write", "puts whole items; call save() on each instance")

    def get_save_kwargs_from_instance(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse, as `batch_write`: `TransactWrite.save` puts whole items."""
        raise InvalidRequest("TransactWrite.save", "puts whole items; use update() or save()")

    @classmethod
    def from_raw_data(cls, data: Any) -> Self:
        """Return the instance of one item of DynamoDB."""
        instance = super().from_raw_data(data)
        instance._stored = data
        return instance

    def deserialize(self, attribute_values: Any) -> None:
        """Take over one item of DynamoDB."""
        super().deserialize(attribute_values)
        self._stored = attribute_values

    def _changes(self) -> list[tuple[Attribute[Any], dict[str, Any] | None]]:
        changes: list[tuple[Attribute[Any], dict[str, Any] | None]] = []
        for name, attribute in self.get_attributes().items():
            leased = isinstance(attribute, Declared) and attribute.lease
            if attribute.is_hash_key or attribute.is_range_key or leased:
                continue
            stored = self._stored.get(attribute.attr_name)
            before = attribute.deserialize(attribute.get_value(stored)) if stored else None
            after = getattr(self, name)
            if repr(after) != repr(before):  # True equals 1, and is another value in JSON
                raw = None if after is None else self._serialize_value(attribute, after)
                changes.append((attribute, raw))
        return changes

    # ------------------------------------------------------------------ what the store calls

    @classmethod
    def meta_table(cls, table_name: str) -> MetaTable:
        """Return what PynamoDB must know to plan a request, and migrations to make the table."""
        schema = cls._get_schema()
        return MetaTable(
            {
                "TableName": table_name,
                "KeySchema": schema["key_schema"],
                "AttributeDefinitions": schema["attribute_definitions"],
                "GlobalSecondaryIndexes": [
                    {
                        "IndexName": index["index_name"],
                        "KeySchema": index["key_schema"],
                        "Projection": index["projection"],
                    }
                    for index in schema["global_secondary_indexes"]
                ],
            }
        )

    @classmethod
    def rules(cls) -> dict[str, Rule]:
        """Return the checks of the fields that callers give."""
        return {name: facts.given for name, facts in declared(cls).items() if facts.given}

    @classmethod
    def serialized_keys(cls, hash_key: Any, range_key: Any = None) -> tuple[Any, Any]:
        """Return a key in DynamoDB's form."""
        return cls._serialize_keys(hash_key, range_key)

    @classmethod
    def key_attributes(
        cls, index: Index[Any] | None = None
    ) -> tuple[Attribute[Any], Attribute[Any] | None]:
        """Return the partition and sort key attributes of an index, or of the table."""
        if index is None:
            return cls._hash_key_attribute(), cls._range_key_attribute()
        keys = index.Meta.attributes.values()
        return (
            next(key for key in keys if key.is_hash_key),
            next((key for key in keys if key.is_range_key), None),
        )

    @classmethod
    def _get_connection(cls) -> TableConnection:
        meta = cls.Meta
        return _connection(cls, meta.host, meta.region, meta.table_name)


def typed(attribute: Attribute[Any], raw: Any) -> Action:
    """Return the SET action of an already serialised, typed value."""
    return Attribute.set(attribute, raw)


class _OrmConnection(Connection):
    """PynamoDB's connection on the shared botocore client: logs no request, retries as services."""

    @property
    def client(self) -> Any:
        return aws.dynamodb(settings.current())

    def dispatch(self, operation_name: str, operation_kwargs: dict[str, Any]) -> Any:
        backoff = Backoff(settings.current().retry_seconds)
        while True:
            try:
                with aws.quiet():
                    return self._make_api_call(operation_name, operation_kwargs)
            except BOTOCORE_EXCEPTIONS as error:
                pause = backoff.pause_after(aws.error_of(error))
                if pause is None:
                    raise
            time.sleep(pause)


@cache
def _connection(
    model: type[BaseModel], endpoint: str | None, region: str | None, table_name: str
) -> TableConnection:
    connection = TableConnection(table_name)
    connection.connection = _OrmConnection(host=endpoint)
    # PynamoDB would put its own default where none is given; the AWS configuration decides.
    connection.connection.region = region  # type: ignore[assignment]
    connection.connection.add_meta_table(model.meta_table(table_name))
    return connection
