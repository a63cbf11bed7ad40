"""An orchestrator that remembers nothing: nine agents, results, not errors, retries inside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tdev_models import AGENTS

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
        data: dict[str, Any] = {"request": request}
        errors: list[str] = []
        for name in AGENTS:
            result = await self.run_agent(name, data)
            if result.success:
                data[name] = result.output
            else:
                errors.append(f"{name}: {result.error}")
            if errors and ((name in CRITICAL and not result.success) or len(errors) >= MOST_ERRORS):
                return PipelineResult(project_id, False, data, errors)
        return PipelineResult(project_id, True, data, errors)

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
