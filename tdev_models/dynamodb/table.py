"""Reads and writes of one model in one physical table."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from pynamodb.attributes import Attribute
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action
from pynamodb.indexes import Index

from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.requests import Requests
from tdev_models.dynamodb.sender import Sender
from tdev_models.errors import ConfigurationError, PayloadDamaged, StoreError, expired_error
from tdev_models.models.base import BaseModel
from tdev_models.models.indexes import KeyIndex
from tdev_models.validation import PARTITION_KEY_BYTES

_NUMBER = re.compile(r"-?\d{1,128}(\.\d{1,128})?([eE][-+]?\d{1,3})?", re.ASCII)

# Of a Query where the index is missing, or is being built.
_NO_INDEX = ("ValidationException", "ResourceNotFoundException")

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class Table(Generic[M]):
    """One table under its physical name.

    Attributes:
        model: whose items it holds.
        requests: makes its requests, for transactions.
    """

    def __init__(self, model: type[M], name: str, sender: Sender, now: Callable[[], float]) -> None:
        self.name, self.requests = name, Requests(model, name)
        self.model, self._sender, self._now = model, sender, now

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
        return self._loaded(response["Attributes"])

    async def page(
        self,
        hash_key: Any,
        *,
        retry_seconds: float | None = None,
        unreadable: list[str] | None = None,
        **query: Any,
    ) -> tuple[list[M], dict[str, Mapping[str, Any]] | None]:
        """Return one page of a query, and where the next begins (None at the end).

        Items that cannot be read are logged and left out where `unreadable` takes their ids.
        """
        page, start = await self.raw_page(hash_key, retry_seconds=retry_seconds, **query)
        items = [self.live(raw, unreadable) for raw in page]
        return [item for item in items if item is not None], start

    async def raw_page(
        self, hash_key: Any, *, retry_seconds: float | None = None, **query: Any
    ) -> tuple[list[dict[str, Any]], dict[str, Mapping[str, Any]] | None]:
        """Return one page of a query as DynamoDB sends it, and where the next begins."""
        response = await self._query(hash_key, retry_seconds, **query)
        return response["Items"], response.get("LastEvaluatedKey")

    async def count(self, hash_key: Any, most: int, **query: Any) -> int:
        """Return how many items a query finds, at most so many. One Query for each MB it reads."""
        counted, start = 0, None
        while counted < most:
            response = await self._query(hash_key, start=start, select="COUNT", **query)
            counted, start = counted + response["Count"], response.get("LastEvaluatedKey")
            if start is None:
                break
        return min(counted, most)

    async def _query(
        self,
        hash_key: Any,
        retry_seconds: float | None = None,
        index: KeyIndex[M] | None = None,
        **query: Any,
    ) -> dict[str, Any]:
        operation, request = self.requests.page(hash_key, index=index, **query)
        try:
            return await self._sender.send(operation, request, retry_seconds)
        except (StoreError, ConfigurationError) as error:
            if index is None or not index.former or error.code not in _NO_INDEX:
                raise
            former = {**request, "IndexName": index.former}
            try:
                return await self._sender.send(operation, former, retry_seconds)
            except type(error):
                raise error from None

    async def get_many(
        self,
        keys: Sequence[tuple[Any, ...]],
        *,
        unreadable: list[str] | None = None,
        only: Sequence[Attribute[Any]] = (),
    ) -> list[M | None]:
        """Return up to 100 items as they were at one moment, in the order of their keys.

        With `only` some attributes of them: name the key, and when they expire, where they do.
        Items that cannot be read are logged, and None, where `unreadable` takes their ids.
        """
        responses = await self._sender.transact_get(self.requests.get_parts(keys, only=only))
        return [self.live(item, unreadable) for item in responses]

    def load(self, item: Mapping[str, Any] | None) -> M | None:
        """Return the model of an item that a failed condition handed back."""
        return self._loaded(item) if item else None

    def refused(self, item: Mapping[str, Any] | None) -> M | None:
        """Return the model of an item that refused a write without a lease.

        Raises:
            InvalidTransition: the item has expired: what is written to it is never seen.
        """
        if item and self._expired(item):
            raise expired_error(self._id_of(item))
        return self.load(item)

    def position(self, item: M, index: Index[Any]) -> dict[str, Mapping[str, Any]]:
        """Return where a query of the index goes on after this item."""
        keys = [*self.model.key_attributes(), *self.model.key_attributes(index)]
        return item.raw(*(key.attr_name for key in keys if key is not None))

    def is_start(self, hash_key: Any, index: Index[Any] | None = None) -> Callable[[Any], bool]:
        """Return what tells whether a value says where a query of a partition can go on.

        None stands for any partition.
        """

        def is_start(value: Any) -> bool:  # most calls come without a cursor
            partition, sort = self.model.key_attributes(index)
            keys = [*self.model.key_attributes(), partition, sort]
            shape = {
                key.attr_name: partial(_is_key, kind=key.attr_type)
                for key in keys
                if key is not None
            }
            if hash_key is not None:
                shape[partition.attr_name] = partial(
                    operator.eq, {partition.attr_type: partition.serialize(hash_key)}
                )
            return cursors.has_shape(value, shape)

        return is_start

    def live(self, item: Mapping[str, Any] | None, unreadable: list[str] | None = None) -> M | None:
        """Return the model of an item that was read, or None if it is missing or expired."""
        if not item or self._expired(item):
            return None
        try:
            return self._loaded(item)
        except PayloadDamaged as damaged:
            if unreadable is None:
                raise
            if self._id_of(item) not in unreadable:
                unreadable.append(self._id_of(item))
                _log.warning("%s; it is left out", damaged)
            return None

    def _loaded(self, item: Mapping[str, Any]) -> M:
        try:
            return self.model.loaded(item)
        except Exception as error:  # whatever another program or release wrote
            what = f"{type(error).__name__}: {error}"[:200]
            raise PayloadDamaged(
                f"{self.name}: {self._id_of(item)} cannot be read: {what}"
            ) from error

    def _id_of(self, item: Mapping[str, Any]) -> str:
        keys = [key.attr_name for key in self.model.key_attributes() if key is not None]
        return " ".join(str(next(iter(item[key].values()))) for key in keys)

    def _expired(self, item: Mapping[str, Any]) -> bool:
        # DynamoDB deletes what has expired within days, not at once.
        expires = item.get("expires_at", {}).get("N")
        return expires is not None and float(expires) <= self._now()


def _is_key(value: Any, kind: str) -> bool:
    """Return whether a value is a typed one of a key."""
    if not (isinstance(value, dict) and [*value] == [kind] and isinstance(value[kind], str)):
        return False
    text = value[kind]
    if kind == "N":
        return _NUMBER.fullmatch(text) is not None
    try:
        return 0 < len(text.encode()) <= PARTITION_KEY_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False
