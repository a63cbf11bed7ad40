"""What the page may do to a session, where acting is switched on."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

import tdev_models
from tdev_models.results import SessionStatus
from tdev_models.web.access import check_acts
from tdev_models.web.rendering import address

_MOST_BYTES = 16 * 1024


async def abandon(request: Request) -> Response:
    """End a session for good, whoever owns it."""
    form = await _form(request)
    await tdev_models.abandon_session(form.get("session_id", ""), form.get("reason", ""))
    return _back(request, form)


async def release(request: Request) -> Response:
    """Hand a session to the next worker that looks: claim it, and give the claim back."""
    form = await _form(request)
    session_id, force = form.get("session_id", ""), form.get("force") == "true"
    session = await tdev_models.get_pipeline_session(session_id)
    if session.status == SessionStatus.ABANDONED:  # `force` would take that back, too
        raise HTTPException(409, f"refused: it is {session.status}")
    resume = await tdev_models.resume_pipeline(session_id, force=force)
    if not resume:
        raise HTTPException(409, f"refused: {resume.reason}")
    async with resume:
        await resume.release()
    return _back(request, form)


async def _form(request: Request) -> dict[str, str]:
    """Return the form that a request sends, once it may act."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"a form has at most {_MOST_BYTES} bytes")
    form = dict(parse_qsl(body.decode(errors="replace")))
    check_acts(request, form.get("token", ""))
    return form


def _back(request: Request, form: dict[str, str]) -> Response:
    url = address(request.scope.get("root_path", ""))
    return RedirectResponse(url("session", session_id=form["session_id"]), 303)
