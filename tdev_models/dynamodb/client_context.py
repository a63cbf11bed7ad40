"""A context manager for `with` and for `async with`, as its client waits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.client import Client

S = TypeVar("S", bound=bool)


class ClientContext(ABC, Generic[S]):
    """Subclasses write `__aenter__` and `__aexit__`; `with` drives the same two.

    `S` is what the latter returns: Literal[False] where no error is ever swallowed.
    """

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
    ) -> S: ...

    def __enter__(self) -> Self:
        if self._client.in_event_loop:
            raise TypeError("use `async with`; the block for `with` is made by tdev_models.sync")
        return drive(self.__aenter__())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> S:
        return drive(self.__aexit__(kind, error, traceback))
