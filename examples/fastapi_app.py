"""T-Developer's endpoints, kept through crashes: start, progress, history, download, pages."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

import tdev_models as tdev
from examples.orchestrator import Agent, Orchestrator
from tdev_models import web


def current_user(request: Request) -> str:
    """Return who is signed in, as the proxy in front says; put your own sign-in here."""
    if user_id := request.headers.get("x-user"):
        return user_id
    raise HTTPException(401, "sign in first")


User = Annotated[str, Depends(current_user)]


def application(agents: Mapping[str, Agent], poll_seconds: float = 5) -> FastAPI:
    """Return the application; its processes take over the work of one that dies."""
    orchestrator, running = Orchestrator(agents), set[asyncio.Task[None]]()

    async def run(session: tdev.Session | tdev.Resume) -> None:
        stored = await tdev.get_pipeline_session(session.session_id)
        request, user_id = stored.metadata["request"], stored.user_id or ""
        if (await orchestrator.execute(request, user_id, stored.session_id)).success:
            await tdev.save_user_project(user_id=user_id, project_id=stored.session_id)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tdev.handle_sigterm()  # running agents end, the rest is left to other processes
        recovery = asyncio.create_task(tdev.recover_sessions(run, poll_seconds=poll_seconds))
        yield
        recovery.cancel()
        await asyncio.gather(recovery, *running, return_exceptions=True)
        await tdev.flush_metrics()  # uvicorn's process dies of the signal, without exit functions

    app = FastAPI(lifespan=lifespan)
    # Progress: /runs/api/session, live: /runs/api/events, history: /runs/api/projects; and pages.
    app.mount("/runs", web.app(user_id=current_user))

    @app.post("/projects", status_code=202)
    async def start(user_id: User, request: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        about = {"session_id": uuid.uuid4().hex, "user_id": user_id}
        session = await tdev.save_pipeline_session(about, metadata={"request": request})
        running.add(task := asyncio.create_task(run(session)))  # stored: it outlives this process
        task.add_done_callback(running.discard)
        return session.to_dict()

    @app.post("/projects/{project_id}/download")
    async def download(user_id: User, project_id: str) -> Any:
        await tdev.record_download(user_id, project_id)
        made = await tdev.get_agent_execution(f"{project_id}-download", user_id=user_id)
        return made.output_data

    @app.exception_handler(tdev.NotFound)
    async def not_found(_: Request, error: tdev.NotFound) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    return app
