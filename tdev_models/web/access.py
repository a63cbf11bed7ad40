"""Who reads, and who may act."""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from tdev_models.results import Execution, Project, Record, Session
from tdev_models.web.live import Watches

UserOf: TypeAlias = Callable[[Request], str | Awaitable[str]]
"""Given a request, returns the id of the user who makes it, or raises HTTPException."""


@dataclass(frozen=True)
class Site:
    """What one application was made with.

    Attributes:
        user_id: whose sessions a request sees; None: everybody's.
        action_token: who sends it may act; None: nobody may.
        watches: the polls under way.
    """

    user_id: UserOf | None
    action_token: str | None
    watches: Watches


def site(request: Request) -> Site:
    """Return what the application was made with."""
    found: Site = request.app.state.site
    return found


async def reader(request: Request) -> str | None:
    """Return the user whose sessions alone the request may see; None where it may see all.

    Raises:
        HTTPException: the application names no user for it.
    """
    if (user_of := site(request).user_id) is None:
        return None
    found = user_of(request)
    user_id = await found if inspect.isawaitable(found) else found
    if not isinstance(user_id, str) or not user_id:
        raise HTTPException(403, "no user is signed in")
    return user_id


async def check_sees_all(request: Request) -> None:
    """Raise HTTPException where the request may see the sessions of one user alone."""
    if await reader(request) is not None:
        raise HTTPException(404, "there is no such page")


R = TypeVar("R", bound=Record)


def shown_to(user_id: str | None, record: R) -> R:
    """Return a record without what is the operator's: the names of workers."""
    if user_id is None or isinstance(record, Project):
        return record
    if isinstance(record, Session):
        return replace(record, lease_owner=None)
    if isinstance(record, Execution):
        tries = tuple(replace(attempt, worker=None) for attempt in record.attempts)
        return replace(record, attempts=tries)
    raise TypeError(f"{type(record).__name__} is not shown to users")


def check_acts(request: Request, token: str) -> None:
    """Raise HTTPException unless the request was sent by the page, by somebody with the token."""
    wanted = site(request).action_token
    if wanted is None:
        raise HTTPException(404, "there is no such page")
    host = request.headers.get("host", "")
    if request.headers.get("origin", "").partition("://")[2] != host:
        raise HTTPException(403, "the form belongs to another site")
    if not hmac.compare_digest(token.encode(errors="replace"), wanted.encode()):
        raise HTTPException(403, "that is not the token, which 'tdev ui --act' prints")
