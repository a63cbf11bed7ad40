"""PynamoDB as a maker of requests: each method returns the request that PynamoDB would send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pynamodb.connection.base import Connection
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index

from tdev_models.models.base import BaseModel

Request: TypeAlias = tuple[str, dict[str, Any]]
"""An operation of DynamoDB and its parameters."""


class Requests(Connection):
    """Makes the requests of one table; sends none."""

    def __init__(self, model: type[BaseModel], table_name: str) -> None:
        super().__init__(region="planned")
        self.model, self.table_name = model, table_name
        self.add_meta_table(model.meta_table(table_name))

    def dispatch(self, operation_name: str, operation_kwargs: dict[str, Any]) -> Any:
        """Return the request instead of sending it."""
        return operation_name, {**operation_kwargs, "ReturnConsumedCapacity": "TOTAL"}

    def get(self, hash_key: Any, range_key: Any = None) -> Request:
        """Return the strongly consistent read of one item."""
        hash_key, range_key = self.model.serialized_keys(hash_key, range_key)
        return self.dispatch(  # type: ignore[no-any-return]
            "GetItem",
            self.get_operation_kwargs(
                self.table_name, hash_key, range_key=range_key, consistent_read=True
            ),
        )

    def get_part(self, hash_key: Any, range_key: Any = None) -> dict[str, Any]:
        """Return one read of a transaction."""
        hash_key, range_key = self.model.serialized_keys(hash_key, range_key)
        return {"Get": self.get_operation_kwargs(self.table_name, hash_key, range_key=range_key)}

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
        hash_key, range_key = self.model.serialized_keys(hash_key, range_key)
        return {
            "Update": self.get_operation_kwargs(
                self.table_name,
                hash_key,
                range_key=range_key,
                actions=actions,
                condition=condition,
                return_values_on_condition_failure=None if condition is None else "ALL_OLD",
            )
        }

    def page(
        self,
        hash_key: Any,
        *,
        index: Index[Any] | None = None,
        range_condition: Condition | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        start: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Request:
        """Return one page of a query: eventually consistent on an index, else consistent.

        Args:
            hash_key: the partition.
            index: which index to ask; None asks the table.
            range_condition: a condition on the sort key.
            limit: how many items to read at most.
            newest_first: from the end of the partition.
            start: after which key to begin.
            more: what PynamoDB's `query` takes besides.
        """
        partition_key, _ = self.model.key_attributes(index)
        return self.query(  # type: ignore[return-value]
            self.table_name,
            partition_key.serialize(hash_key),
            range_key_condition=range_condition,
            consistent_read=index is None,
            exclusive_start_key=start,
            index_name=index.Meta.index_name if index else None,
            limit=limit,
            scan_index_forward=not newest_first,
            **more,
        )
