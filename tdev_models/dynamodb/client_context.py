"""A context manager for `with` and for `async with`, as its client waits.

It is generic in its client, so that a type checker knows which of its methods are awaited: those
that call `waited` have an overload for each client. A bare `Tracker` is that of event loops.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.client import Client

if TYPE_CHECKING:
    import typing_extensions

    C = typing_extensions.TypeVar("C", bound=Client, default=AsyncClient)
    S = typing_extensions.TypeVar("S", bound=bool, default=bool)
else:
    C, S = TypeVar("C", bound=Client), TypeVar("S", bound=bool)


class ClientContext(ABC, Generic[C, S]):
    """Subclasses write `__aenter__` and `__aexit__`; `with` drives the same two.

    `S` is what the latter returns: Literal[False] where no error is ever swallowed.
    """

    def __init__(self, client: C) -> None:
        self._client = client

    def waited(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Return the coroutine for an event loop to await, or what it returns."""
        return work if self._client.in_event_loop else drive(work)

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
