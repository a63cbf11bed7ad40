"""The same orchestrator, remembered: kill it anywhere, run it again, and it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tdev_models import AGENTS, Resume, get_pipeline_session, track_session

Agent = Callable[[Mapping[str, Any]], Awaitable[Any]]
CRITICAL = {"nl_input", "parser", "generation", "assembly", "download"}
MOST_ERRORS = 3


@dataclass
class AgentResult:
    """What an agent returns; it never raises."""

    success: bool
    output: Any = None
    error: str = ""


@dataclass
class PipelineResult:
    """What a run returns."""

    project_id: str
    success: bool
    data: dict[str, Any]
    errors: list[str] = field(default_factory=list)


class Orchestrator:
    """Runs the nine agents, each on all that those before it have made."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self.agents = agents

    async def execute(self, request: str, user_id: str, project_id: str) -> PipelineResult:
        """Run a pipeline: it succeeds unless a critical agent or three others fail."""
        about = {"user_id": user_id, "metadata": {"request": request}}
        async with track_session(project_id, **about) as session:
            data: dict[str, Any] = {"request": request}
            errors: list[str] = []
            for name in AGENTS:
                async with session.agent(name, data, critical=name in CRITICAL) as run:
                    if not run.done:
                        result = await self.run_agent(name, data)
                        run.output = result.output
                        if not result.success:
                            run.fail(result.error)
                if run.status == "COMPLETED":
                    data[name] = run.output
                else:
                    errors.append(f"{name}: {run.error}")
                if errors and ((name in CRITICAL and run.error) or len(errors) >= MOST_ERRORS):
                    session.fail(errors[-1])
                    return PipelineResult(project_id, False, data, errors)
            return PipelineResult(project_id, True, data, errors)

    async def resume(self, session: Resume) -> PipelineResult:
        """Go on with what another worker left: the runner of `recover_sessions`."""
        stored = await get_pipeline_session(session.session_id)
        user_id = stored.user_id or ""
        return await self.execute(stored.metadata["request"], user_id, stored.session_id)

    async def run_agent(self, name: str, data: Mapping[str, Any]) -> AgentResult:
        """Run one agent, three times at most."""
        error = ""
        for attempt in range(3):
            try:
                return AgentResult(True, await self.agents[name](data))
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
                await asyncio.sleep(0.01 * 2**attempt)
        return AgentResult(False, error=error)
