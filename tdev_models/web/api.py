"""The public calls that read, as JSON: the same names, arguments, orders and bounds."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

import tdev_models
from tdev_models.errors import InvalidRequest, NotFound, TdevError, shown
from tdev_models.json_form import is_small
from tdev_models.results import Execution, Page
from tdev_models.views.watched import Watched
from tdev_models.web.access import check_sees_all, reader, shown_to, site
from tdev_models.web.live import Watch, event, session_polls
from tdev_models.web.parameters import Endpoint, Parameter, arguments, parameters, takes

CALLS: Mapping[str, Callable[..., Awaitable[Any]]] = {
    "session": tdev_models.get_pipeline_session,
    "sessions": tdev_models.list_pipeline_sessions,
    "due": tdev_models.get_failed_sessions,
    "executions": tdev_models.get_agent_executions,
    "execution": tdev_models.get_agent_execution,
    "failures": tdev_models.get_failed_executions,
    "projects": tdev_models.list_user_projects,
    "project": tdev_models.get_user_project,
    "workers": tdev_models.list_workers,
    "usage": tdev_models.usage_report,
    "agents": tdev_models.agent_performance,
    "metrics": tdev_models.query_metrics,
    "comparison": tdev_models.compare_variants,
}
"""Each path below `/api`, and the call behind it."""

_ENCODER = json.JSONEncoder(default=dict, separators=(",", ":"))  # mappings are objects


def of_user(known: Mapping[str, Parameter]) -> dict[str, Parameter] | None:
    """Return what a request of one user may give; None where the call is not for users."""
    if "user_id" not in known:
        return None
    # Sessions are listed by user or by status; here the user is given.
    return {name: one for name, one in known.items() if name not in ("user_id", "status")}


def endpoint(call: Callable[..., Awaitable[Any]]) -> Endpoint:
    """Return the endpoint of a call."""
    known = parameters(call)
    for_users = of_user(known)

    async def respond(request: Request) -> Response:
        user_id = await reader(request)
        given = request.query_params.multi_items()
        if user_id is None:
            return await answer(request, await call(**arguments(known, given)))
        if for_users is None:
            await check_sees_all(request)
        found = await call(**arguments(for_users or {}, given), user_id=user_id)
        if isinstance(found, Page):
            found = Page((shown_to(user_id, one) for one in found), found.cursor)
            return await answer(request, found)
        return await answer(request, shown_to(user_id, found))

    return respond


async def answer(request: Request, found: Any) -> Response:
    """Return a result as JSON, or 304 where the reader has the same already."""
    if isinstance(found, list) and not isinstance(found, Page):
        found = Page(found)
    if isinstance(found, Execution) and not is_small([found.input_data, found.output_data]):
        return await asyncio.to_thread(_answer, request, found, _in_pieces)
    return _answer(request, found, _ENCODER.encode)


def _answer(request: Request, found: Any, write: Callable[[Any], str]) -> Response:
    return tagged(request, Response(write(found.to_dict()), media_type="application/json"))


def _in_pieces(value: Any) -> str:
    """Return the JSON of a large value; between its pieces other threads run, and so the loop."""
    text = io.StringIO()
    text.writelines(_ENCODER.iterencode(value))
    return text.getvalue()


def tagged(request: Request, response: Response) -> Response:
    """Return a response with its ETag, or 304 where the reader has the same already."""
    tag = f'"{hashlib.blake2b(response.body, digest_size=12).hexdigest()}"'
    kept = {"ETag": tag, "Cache-Control": "private, no-cache"}
    seen = request.headers.get("if-none-match", "")
    if tag in [one.strip().removeprefix("W/") for one in seen.split(",")]:
        return Response(status_code=304, headers=kept)
    response.headers.update(kept)
    return response


@takes("session_id")
async def events(request: Request) -> Response:
    """Send a session and its executions at each poll, until it has ended."""
    user_id = await reader(request)

    def text(watched: Watched) -> str:
        executions = [shown_to(user_id, one).to_dict() for one in watched.executions]
        session = shown_to(user_id, watched.session).to_dict()
        return json.dumps({"session": session, "executions": executions})

    return await stream(request, user_id, text, "json", user_id is None)


async def stream(
    request: Request, user_id: str | None, text: Callable[[Watched], str], *form: Any
) -> Response:
    """Send what is watched of a session at each poll, and `end` at its end.

    Raises:
        InvalidRequest: no session is given.
        NotFound: there is none, or it is another user's.
    """
    session_id = request.query_params.get("session_id", "")
    if not session_id:
        raise InvalidRequest("session_id", "is required")

    def check(watched: Watched) -> None:
        if user_id not in (None, watched.session.user_id):
            raise NotFound(f"there is no session {shown(session_id)}")

    found = site(request).watches.follow(session_id, lambda: session_polls(session_id))
    return await following(request, found, form, text, check)


async def following(
    request: Request,
    found: AsyncGenerator[Watch],
    form: tuple[Any, ...],
    text: Callable[[Any], str],
    check: Callable[[Any], None] = lambda state: None,
) -> Response:
    """Return a response that sends what is watched at each poll, and `end` at its end.

    Raises:
        TdevError: what the first poll, or the check of what it read, raised.
    """
    first = await anext(found)
    try:
        check(first.state)
    except NotFound:
        await found.aclose()
        raise

    async def sent() -> AsyncIterator[str]:
        async with aclosing(found):
            yield event(first.text(form, text))
            try:
                async for watch in found:
                    yield event(watch.text(form, text))
            except TdevError:
                return  # who follows tries again, and is answered the error
        if not first.task.cancelled():  # else the server ends, not what is watched
            yield event("", "end")

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    media_type = "text/event-stream"
    if request.method == "HEAD":  # or its connection would be held for what it is not sent
        await found.aclose()
        return Response(media_type=media_type, headers=headers)
    return StreamingResponse(sent(), media_type=media_type, headers=headers)
