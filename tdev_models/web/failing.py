"""What a request is answered when something fails."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from tdev_models.errors import (
    Conflict,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    NotFound,
    TdevError,
    Throttled,
    Unavailable,
)
from tdev_models.web.access import site
from tdev_models.web.pages import html

_STATUSES: dict[type[TdevError], int] = {
    InvalidRequest: 400,
    NotFound: 404,
    LeaseHeld: 409,
    LeaseLost: 409,
    InvalidTransition: 409,
    Conflict: 409,
    Throttled: 503,
    Unavailable: 503,
}


async def failed(request: Request, error: Exception) -> Response:
    """Answer an error of the package."""
    status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 502)
    message = str(error)
    if status > 500 and site(request).user_id is not None:
        message = "The store does not answer now; call again."  # the rest is the operator's
    return await _answer(request, error, status, message)


async def refused(request: Request, error: Exception) -> Response:
    """Answer what is not there, or not allowed."""
    if not isinstance(error, HTTPException):
        raise error
    answered = await _answer(request, error, error.status_code, error.detail)
    answered.headers.update(error.headers or {})
    return answered


async def _answer(request: Request, error: Exception, status: int, message: str) -> Response:
    kept = {"Cache-Control": "no-store"}
    if status == 503:
        kept["Retry-After"] = "5"
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    if path.startswith("/api/"):
        field = {"field": error.field} if isinstance(error, InvalidRequest) else {}
        body = {"error": {"type": type(error).__name__, "message": message, **field}}
        return JSONResponse(body, status, kept)
    values = {"status": status, "message": message, "is_user": site(request).user_id is not None}
    return HTMLResponse(html(request, "error.html", values), status, kept)
