"""A context manager for `with` and for `async with`, as its client waits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.client import Client


class ClientContext(ABC):
    """Subclasses write `__aenter__` and `__aexit__`; `with` drives the same two."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @abstractmethod
    def __aenter__(self) -> Coroutine[Any, Any, Self]: ...

    @abstractmethod
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool: ...

    def __enter__(self) -> Self:
        if self._client.in_event_loop:
            raise TypeError("use `async with`; the block for `with` is made by tdev_models.sync")
        return drive(self.__aenter__())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return drive(self.__aexit__(kind, error, traceback))
