"""Gives service functions their client: the module that exports a call decides how it waits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.client import Client

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Client)


def awaitable(
    service: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
    *,
    at_once: bool = False,
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return the service for an event loop, on the client of the settings in force.

    Args:
        service: what is called.
        at_once: it begins where it is awaited, also while other calls wait for their turn.
    """

    async def paced(client: AsyncClient, *args: P.args, **kwargs: P.kwargs) -> T:
        await client.turn()
        return await service(client, *args, **kwargs)

    begin = service if at_once else paced

    @wraps(service)
    def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return begin(AsyncClient.for_settings(), *args, **kwargs)

    return _without_client(call)


def blocking(
    service: Callable[Concatenate[BlockingClient, P], Coroutine[Any, Any, T]],
) -> Callable[P, T]:
    """Return the service for a plain thread, on the client of the settings in force."""

    @wraps(service)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return drive(service(BlockingClient.for_settings(), *args, **kwargs))

    return _without_client(call)


def context(client: type[C], make: Callable[Concatenate[C, P], T]) -> Callable[P, T]:
    """Return what makes a block (`with`, `async with`), on the client of the settings in force."""

    @wraps(make)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return make(client.for_settings(), *args, **kwargs)

    return _without_client(call)


F = TypeVar("F", bound=Callable[..., Any])


def _without_client(call: F) -> F:
    signature = inspect.signature(call)
    _, *parameters = signature.parameters.values()
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call
