"""The base model: PynamoDB's ORM on tables named at run time, with a `save()` that loses nothing.

All use of PynamoDB's private names is in this file (docs/adr/0002).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NoReturn, Self

from botocore.exceptions import BotoCoreError
from pynamodb.attributes import Attribute
from pynamodb.connection.base import BOTOCORE_EXCEPTIONS, Connection, MetaTable
from pynamodb.connection.table import TableConnection
from pynamodb.constants import PAY_PER_REQUEST_BILLING_MODE
from pynamodb.exceptions import UpdateError
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.operand import Value
from pynamodb.expressions.update import Action, RemoveAction, SetAction
from pynamodb.indexes import Index
from pynamodb.models import Model

from tdev_models import aws, settings
from tdev_models.errors import ConditionFailed, ConfigurationError, InvalidRequest, Unavailable
from tdev_models.models.attributes import Declared, declared
from tdev_models.models.loading import loader_of
from tdev_models.retry import Backoff
from tdev_models.security.fields import ENVELOPES, SUFFIX, encrypts
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
    # PynamoDB reads region and host when a model is defined, at import. A wrong setting must not
    # fail there: it is reported by `table_name`, at the first request.
    try:
        return settings.current()
    except InvalidRequest:
        return settings.Settings()


class BaseModel(Model):
    """A model whose writes touch only what was changed, and never a lease."""

    _stored: dict[str, Any]
    # The table of the stored item; None for a new instance, which may be saved anywhere.
    _place: tuple[str | None, ...] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_stored", {})
        object.__setattr__(self, "_place", None)
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.get_attributes() or name in ("attribute_values", "_stored", "_place"):
            super().__setattr__(name, value)
        else:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # ------------------------------------------------------------------ for users of the ORM

    def save(
        self, condition: Condition | None = None, *, add_version_condition: bool = True
    ) -> dict[str, Any]:
        """Write what was set since this instance was made or read, with one UpdateItem.

        Attributes that were not read (an index projects only some), that a newer release added, or
        that belong to a lease stay as they are in the table. None removes one that was read. A new
        instance makes its item or is merged into it; after `delete()` an instance is new.
        Returns DynamoDB's response, `{}` when there was nothing to write.

        Sent again where its answer is lost, which without a condition changes nothing. With one,
        an UpdateError may then mean that it was written: read the item again.

        Raises:
            InvalidRequest: the instance was read or saved under another key, or in another table
                (`settings.use`), or an attribute was set that is encrypted; nothing was sent.
            DoesNotExist: the item was deleted meanwhile; nothing was written.
            pynamodb.exceptions.UpdateError: the condition was not met (or, where there is one, the
                item was deleted), or the request failed.
            Unavailable: the AWS credentials could not be renewed.
        """
        self._check_place()
        changes, is_stored = self._changes(), self._place is not None
        if not changes and is_stored and condition is None:
            return {}
        exists: Condition = self.key_attributes()[0].exists()
        needed = condition
        if is_stored:
            needed = exists if condition is None else condition & exists
        actions = [
            attribute.remove() if raw is None else typed(attribute, raw)
            for attribute, raw in changes
        ]
        actions += self._removes_other_forms(actions)
        hash_key, range_key = self._get_serialized_keys()
        connection = self._get_connection()
        request = connection.get_operation_kwargs(
            hash_key, range_key=range_key, actions=actions or None, condition=needed
        )
        try:
            response: dict[str, Any] = connection.connection.dispatch("UpdateItem", request)
        except BOTOCORE_EXCEPTIONS as error:
            if condition is None and isinstance(aws.error_of(error), ConditionFailed):
                raise self.DoesNotExist(
                    f"{self._name()} was deleted since it was read, and was not made anew; "
                    "to store it again, save a new instance"
                ) from None
            raise UpdateError(f"Failed to save: {error}", error) from error
        self._stored = {
            **self._stored,
            **self._key(),
            **{attribute.attr_name: raw for attribute, raw in changes},
        }
        self._place = self._table()
        return response

    def update(
        self,
        actions: list[Action],
        condition: Condition | None = None,
        *,
        add_version_condition: bool = True,
    ) -> Any:
        """Change the item by actions, or make it, and take over what is stored then.

        Sent again where its answer is lost: what an action adds then counts twice, unless the
        condition refuses that, by an UpdateError.

        Raises:
            InvalidRequest: as `save()`.
            pynamodb.exceptions.UpdateError: the condition was not met, or the request failed.
        """
        self._check_actions(actions)
        actions = [*actions, *self._removes_other_forms(actions)]
        return super().update(actions, condition, add_version_condition=add_version_condition)

    def get_update_kwargs_from_instance(
        self, actions: list[Action], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return what `TransactWrite.update` sends; it raises as `update` does."""
        self._check_actions(actions)
        actions = [*actions, *self._removes_other_forms(actions)]
        return super().get_update_kwargs_from_instance(actions, *args, **kwargs)

    def delete(
        self, condition: Condition | None = None, *, add_version_condition: bool = True
    ) -> Any:
        """Delete the item; the instance is then a new one, which `save()` stores whole.

        Raises:
            InvalidRequest: as `save()`.
            pynamodb.exceptions.DeleteError: the condition was not met, or the request failed.
        """
        self._check_place()
        response = super().delete(condition, add_version_condition=add_version_condition)
        self._stored, self._place = {}, None
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
        instance._stored, instance._place = data, cls._table()
        return instance

    @classmethod
    def loaded(cls, data: Item) -> Self:
        """Return the instance of one item for the services, which never call its `save()`."""
        return cls.having(loader_of(cls)(data), data)

    @classmethod
    def having(cls, values: dict[str, Any], stored: Item = MappingProxyType({})) -> Self:
        """Return the instance for the services that has these values; quicker than a call."""
        instance = cls.__new__(cls)
        instance.__dict__.update(attribute_values=values, _stored=stored, _place=None)
        return instance

    def deserialize(self, attribute_values: Any) -> None:
        """Take over one item of DynamoDB."""
        super().deserialize(attribute_values)
        self._stored, self._place = attribute_values, self._table()

    @classmethod
    def _table(cls) -> tuple[str | None, ...]:
        """Return where the settings in force have the table."""
        chosen = _settings_for_import()
        return chosen.endpoint, chosen.region, chosen.table_name(cls.Meta.table)  # type: ignore[attr-defined]

    def _key(self) -> dict[str, Any]:
        pairs = zip(self.key_attributes(), self._get_serialized_keys(), strict=True)
        return {key.attr_name: {key.attr_type: raw} for key, raw in pairs if key is not None}

    def __repr__(self) -> str:
        # Neither payloads nor tokens: it is in logs and in errors of others.
        keys = [key.attr_name for key in self.key_attributes() if key is not None]
        values = {name: self.attribute_values.get(name) for name in (*keys, "status")}
        shown = (f"{name}={value!r}" for name, value in values.items() if value is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    def _name(self) -> str:
        keys = [repr(raw) for typed_key in self._key().values() for raw in typed_key.values()]
        return f"{type(self).__name__} {', '.join(keys)}"

    def _check_place(self) -> None:
        """Raise InvalidRequest if key or settings now lead to another item than the stored one."""
        if self._place is None:
            return
        for name, value in self._key().items():
            if self._stored.get(name, value) != value:
                raise InvalidRequest(
                    name,
                    f"was changed since {type(self).__name__} was read, and names another item; "
                    "make a new instance for that",
                )
        if self._place != self._table():
            raise InvalidRequest(
                "settings",
                f"{self._name()} is of the table {self._place[-1]}, the settings in force lead to "
                f"{self._table()[-1]}; make a new instance to store it there, too",
            )

    def _check_actions(self, actions: list[Action]) -> None:
        self._check_place()
        for action in actions:
            if not isinstance(action, RemoveAction):
                _check_clear(_name_in(action), "update()")

    def _removes_other_forms(self, actions: list[Action]) -> list[Action]:
        """Return what removes encrypted, or from chunks, what actions change in clear.

        Beside these it would be unseen.
        """
        named = {_name_in(action) for action in actions}
        names = named | {ref for ref, field in ENVELOPES.items() if field in named}
        forms = names | {f"{name}{SUFFIX}" for name in names}
        attributes = self.get_attributes()
        return [attributes[form].remove() for form in sorted(forms - named) if form in attributes]

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
                refs = [ref for ref, field in ENVELOPES.items() if field == name]
                if any({ref, f"{ref}{SUFFIX}"} & self._stored.keys() for ref in refs):
                    raise InvalidRequest(
                        name, "is stored in chunks, which were not read; use a call"
                    )
                if after is not None:
                    _check_clear(name, "save()")
                raw = None if after is None else self._serialize_value(attribute, after)
                if raw != stored:  # else it was saved in another form: a datetime, JSON text
                    changes.append((attribute, raw))
        return changes

    # ------------------------------------------------------------------ for the rest of the package

    def is_as_read(self, attribute: Attribute[Any]) -> Condition:
        """Return the condition that an attribute is as it was read, digit for digit.

        Other programs store times that have more digits than a float.
        """
        stored = self._stored.get(attribute.attr_name)
        same: Condition = attribute.does_not_exist() if stored is None else attribute == stored
        return same

    def raw(self, *names: str) -> dict[str, Mapping[str, Any]]:
        """Return attributes as they were read, typed values digit for digit."""
        return {name: self._stored[name] for name in names}

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
    def indexes(cls) -> Mapping[str, Index[Any]]:
        """Return the indexes by their names."""
        return cls._indexes

    @classmethod
    def _get_connection(cls) -> TableConnection:
        meta = cls.Meta
        return _connection(cls, meta.host, meta.region, meta.table_name)


def _name_in(action: Action) -> str:
    """Return the attribute that an action changes, as a whole or in a part."""
    return str(action.values[0].path[0])  # type: ignore[attr-defined]


def _check_clear(name: str, write: str) -> None:
    """Raise InvalidRequest if an attribute is to be encrypted, which the ORM does not do."""
    if encrypts(settings.current(), ENVELOPES.get(name, name)):
        raise InvalidRequest(
            name, f"is encrypted, and {write} would store it in clear; use a call for it"
        )


def operand(raw: Mapping[str, Any]) -> Value:
    """Return the operand of an already serialised, typed value, as PynamoDB makes it but sooner."""
    value = Value.__new__(Value)
    (value.attr_type,), value.values = raw, (raw,)
    return value


def typed(attribute: Attribute[Any], raw: Mapping[str, Any]) -> Action:
    """Return the SET action of an already serialised, typed value."""
    if None in raw.values() or not isinstance(attribute, Declared):
        return Attribute.set(attribute, raw)
    return SetAction(attribute.path, operand(raw))


class _OrmConnection(Connection):
    """PynamoDB's connection, on the shared botocore client: it retries as the services do."""

    @property
    def client(self) -> Any:
        return aws.dynamodb(settings.current())

    def dispatch(self, operation_name: str, operation_kwargs: dict[str, Any]) -> Any:
        backoff = Backoff(settings.current().retry_seconds)
        while True:
            try:
                with aws.renewing():  # a value of a wrong type is the caller's error
                    return self._make_api_call(operation_name, operation_kwargs)
            except (Unavailable, *BOTOCORE_EXCEPTIONS) as error:
                meaning = error if isinstance(error, Unavailable) else aws.error_of(error)
                if isinstance(error, BotoCoreError) and isinstance(meaning, ConfigurationError):
                    raise meaning from error  # nothing was sent, and the remedy is in its text
                pause = backoff.pause_after(meaning)
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
