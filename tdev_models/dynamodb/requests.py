"""PynamoDB as a maker of requests: each method returns the request that PynamoDB would send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pynamodb.attributes import Attribute
from pynamodb.connection.base import Connection
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index

from tdev_models.dynamodb.prepared import prepared
from tdev_models.models.base import BaseModel

Request: TypeAlias = tuple[str, dict[str, Any]]
"""An operation of DynamoDB and its parameters."""


class Requests(Connection):
    """Makes the requests of one table; sends none."""

    def __init__(self, model: type[BaseModel], table_name: str) -> None:
        super().__init__(region="planned")
        self.model, self.table_name = model, table_name
        self._keys = model.key_attributes()
        self.add_meta_table(model.meta_table(table_name))

    def dispatch(self, operation_name: str, operation_kwargs: dict[str, Any]) -> Any:
        """Return the request instead of sending it."""
        return operation_name, {**operation_kwargs, "ReturnConsumedCapacity": "TOTAL"}

    def get(self, hash_key: Any, range_key: Any = None) -> Request:
        """Return the strongly consistent read of one item."""
        return self.dispatch(  # type: ignore[no-any-return]
            "GetItem", self._of_item(hash_key, range_key, consistent_read=True)
        )

    def get_parts(
        self, keys: Sequence[tuple[Any, ...]], *, only: Sequence[Attribute[Any]] = ()
    ) -> list[dict[str, Any]]:
        """Return the reads of a transaction: of whole items, or of some attributes `only`."""
        if not keys:
            return []
        hash_key, range_key = (*keys[0], None)[:2]
        first = self._of_item(hash_key, range_key, only=only)  # they differ in their keys alone
        return [{"Get": {**first, "Key": self._key(*key)}} for key in keys]

    def update(
        self,
        hash_key: Any,
        range_key: Any = None,
        *,
        actions: Sequence[Action],
        condition: Condition | None = None,
        return_new: bool = False,
    ) -> Request:
        """Return the update of one item; a failed condition hands back the stored item."""
        part = self.update_part(hash_key, range_key, actions=actions, condition=condition)
        request: dict[str, Any] = part["Update"]
        if return_new:
            request["ReturnValues"] = "ALL_NEW"
        return self.dispatch("UpdateItem", request)  # type: ignore[no-any-return]

    def update_part(
        self,
        hash_key: Any,
        range_key: Any = None,
        *,
        actions: Sequence[Action],
        condition: Condition | None = None,
    ) -> dict[str, Any]:
        """Return one update of a transaction; a failed condition hands back the stored item."""
        returned = None if condition is None else "ALL_OLD"
        return {
            "Update": self._of_item(
                hash_key,
                range_key,
                condition,
                actions,
                return_values_on_condition_failure=returned,
            )
        }

    def _key(self, hash_key: Any, range_key: Any = None) -> dict[str, dict[str, Any]]:
        partition_key, sort_key = self._keys
        key = {
            partition_key.attr_name: {partition_key.attr_type: partition_key.serialize(hash_key)}
        }
        if range_key is not None and sort_key is not None:
            key[sort_key.attr_name] = {sort_key.attr_type: sort_key.serialize(range_key)}
        return key

    def _of_item(
        self,
        hash_key: Any,
        range_key: Any = None,
        condition: Condition | None = None,
        actions: Sequence[Action] | None = None,
        only: Sequence[Attribute[Any]] = (),
        **options: Any,
    ) -> dict[str, Any]:
        key = self._key(hash_key, range_key)
        raw = [raw for one in key.values() for raw in one.values()]
        return prepared(
            (self.model, *key, *options.items(), *(attribute.attr_name for attribute in only)),
            lambda: self.get_operation_kwargs(
                self.table_name,
                raw[0],
                range_key=raw[1] if raw[1:] else None,
                attributes_to_get=[*only] or None,
                actions=actions,
                condition=condition,
                **options,
            ),
            {"TableName": self.table_name, "Key": key},
            condition,
            actions=actions or (),
        )

    def page(
        self,
        hash_key: Any,
        *,
        index: Index[Any] | None = None,
        range_condition: Condition | None = None,
        filter_condition: Condition | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        start: Mapping[str, Any] | None = None,
        select: str | None = None,
        only: Sequence[Attribute[Any]] = (),
    ) -> Request:
        """Return one page of a query: eventually consistent on an index, else consistent.

        Args:
            hash_key: the partition.
            index: which index to ask; None asks the table.
            range_condition: a condition on the sort key.
            filter_condition: a condition on what was found.
            limit: how many items to read at most.
            newest_first: from the end of the partition.
            start: after which key to begin.
            select: what to return instead of items: COUNT.
            only: which attributes to return; all where none are given.
        """
        partition_key, _ = self.model.key_attributes(index)
        raw_key = partition_key.serialize(hash_key)
        index_name = index.Meta.index_name if index else None
        parameters: dict[str, Any] = {"TableName": self.table_name}
        if start:
            parameters["ExclusiveStartKey"] = start
        if limit is not None:
            parameters["Limit"] = limit
        names = tuple(attribute.attr_name for attribute in only)
        request = prepared(
            (self.model, index_name, *parameters, newest_first, select, names),
            lambda: self.query(
                self.table_name,
                raw_key,
                range_key_condition=range_condition,
                filter_condition=filter_condition,
                attributes_to_get=[*only],
                consistent_read=index is None,
                exclusive_start_key=start,
                index_name=index_name,
                limit=limit,
                scan_index_forward=not newest_first,
                select=select,
            )[1],
            parameters,
            range_condition,
            filter_condition,
            first_values=[{partition_key.attr_type: raw_key}],
        )
        return "Query", request
