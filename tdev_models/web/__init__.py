"""The page: every run in the browser, and as JSON; an ASGI application (extra `web`)."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route

from tdev_models.errors import ConfigurationError, TdevError
from tdev_models.web import actions, api, openapi, pages
from tdev_models.web.access import Site, UserOf
from tdev_models.web.failing import failed, refused
from tdev_models.web.headers import StrictHeaders
from tdev_models.web.live import Watches

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def app(
    *,
    hosts: Iterable[str] = LOOPBACK,
    user_id: UserOf | None = None,
    action_token: str | None = None,
) -> Starlette:
    """Return an application that shows sessions, failures, agents, usage and workers.

    Serve it on loopback (`tdev ui` does), or mount it where requests are signed in:
    `application.mount("/runs", tdev_models.web.app(hosts=["example.com"], user_id=current_user))`.
    It reads by the public calls, on the settings in force where it is served. Without JavaScript
    its pages are complete, but stand still. `/api/openapi.json` describes its JSON.

    Args:
        hosts: the names under which it may be called; a request with another Host is refused.
        user_id: given a request, returns the id of its user, awaited where it must be, or raises
            `starlette.exceptions.HTTPException` (FastAPI's is one). A user sees his sessions,
            executions and projects, without workers and tracebacks; nothing of others, and no
            page that is about all. None: whoever reaches the application sees everything.
        action_token: lets who sends this secret, at least 16 characters, release and abandon
            sessions by the forms of the page. None: it only reads.

    Raises:
        ConfigurationError: a short token, or one where users are told apart.
    """
    if action_token is not None and len(action_token) < 16:
        raise ConfigurationError("action_token must have at least 16 characters")
    if action_token is not None and user_id is not None:
        raise ConfigurationError("action_token is for operators: it goes without user_id")
    made = Starlette(
        routes=_ROUTES,
        middleware=[
            Middleware(StrictHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={TdevError: failed, HTTPException: refused},
    )
    made.state.site = Site(user_id, action_token, Watches())
    return made


_ROUTES = [
    Route("/", pages.sessions),
    Route("/sessions/live", pages.sessions_live),
    Route("/session", pages.session),
    Route("/session/live", pages.session_live),
    Route("/execution", pages.execution),
    Route("/failures", pages.failures),
    Route("/agents", pages.agents),
    Route("/usage", pages.usage),
    Route("/comparison", pages.comparison),
    Route("/workers", pages.workers),
    Route("/projects", pages.projects),
    Route("/abandon", actions.abandon, methods=["POST"]),
    Route("/release", actions.release, methods=["POST"]),
    Route("/static/{name}", pages.static),
    Route("/api/openapi.json", openapi.openapi),
    Route("/api/events", api.events),
    *(Route(f"/api/{name}", api.endpoint(call)) for name, call in api.CALLS.items()),
]
