"""Reads and writes of one model in one physical table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index

from tdev_models.dynamodb.requests import Requests
from tdev_models.dynamodb.sender import Sender
from tdev_models.errors import expired_error
from tdev_models.models.base import BaseModel

M = TypeVar("M", bound=BaseModel)


class Table(Generic[M]):
    """One table under its physical name.

    Attributes:
        requests: makes its requests, for transactions.
    """

    def __init__(self, model: type[M], name: str, sender: Sender, now: Callable[[], float]) -> None:
        self.name, self.requests = name, Requests(model, name)
        self._model, self._sender, self._now = model, sender, now

    async def get(self, hash_key: Any, range_key: Any = None) -> M | None:
        """Return one item, read consistently, or None."""
        response = await self._sender.send(*self.requests.get(hash_key, range_key))
        return self.live(response.get("Item"))

    async def update(
        self,
        hash_key: Any,
        range_key: Any = None,
        *,
        actions: Sequence[Action],
        condition: Condition | None = None,
        retry_seconds: float | None = None,
    ) -> M:
        """Change one item, or make it, and return it as it is now.

        Args:
            hash_key: the partition key.
            range_key: the sort key, where the table has one.
            actions: what to change.
            condition: what the stored item must be for the change to happen.
            retry_seconds: for how long it may be tried again; the setting's when not given.

        Raises:
            ConditionFailed: the condition was not met; `item` is the stored item.
        """
        response = await self._sender.send(
            *self.requests.update(
                hash_key, range_key, actions=actions, condition=condition, return_new=True
            ),
            retry_seconds,
        )
        return self._model.from_raw_data(response["Attributes"])

    async def page(
        self, hash_key: Any, *, retry_seconds: float | None = None, **query: Any
    ) -> tuple[list[M], dict[str, Mapping[str, Any]] | None]:
        """Return one page of a query, and where the next begins (None at the end)."""
        response = await self._sender.send(*self.requests.page(hash_key, **query), retry_seconds)
        items = [item for raw in response["Items"] if (item := self.live(raw)) is not None]
        return items, response.get("LastEvaluatedKey")

    async def get_many(self, keys: Sequence[tuple[Any, ...]]) -> list[M | None]:
        """Return up to 100 items as they were at one moment, in the order of their keys."""
        responses = await self._sender.transact_get([self.requests.get_part(*key) for key in keys])
        return [self.live(item) for item in responses]

    def load(self, item: Mapping[str, Any] | None) -> M | None:
        """Return the model of an item that a failed condition handed back."""
        return self._model.from_raw_data(item) if item else None

    def refused(self, item: Mapping[str, Any] | None) -> M | None:
        """Return the model of an item that refused a write without a lease.

        Raises:
            InvalidTransition: the item has expired: what is written to it is never seen.
        """
        if item and self._expired(item):
            raise expired_error(
                next(iter(item[self._model.key_attributes()[0].attr_name].values()))
            )
        return self.load(item)

    def position(self, item: M, index: Index[Any]) -> dict[str, Mapping[str, Any]]:
        """Return where a query of the index goes on after this item."""
        keys = [*self._model.key_attributes(), *self._model.key_attributes(index)]
        raw = item.serialize(null_check=False)
        return {key.attr_name: raw[key.attr_name] for key in keys if key is not None}

    def live(self, item: Mapping[str, Any] | None) -> M | None:
        """Return the model of an item that was read, or None if it is missing or expired."""
        return None if not item or self._expired(item) else self.load(item)

    def _expired(self, item: Mapping[str, Any]) -> bool:
        # DynamoDB deletes what has expired within days, not at once.
        expires = item.get("expires_at")
        return expires is not None and float(expires["N"]) <= self._now()
