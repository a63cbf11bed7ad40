"""A process that serves the example: `python -m tests.examples.served PORT LOG HANGS`.

Each call of an agent is a line in the file LOG; the agent HANGS goes on once the file LOG.go is
there.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from examples.fastapi_app import application
from examples.orchestrator import Agent
from tdev_models import AGENTS, configure


def wait_for(file: Path) -> None:
    """Return once a file is there."""
    while not file.exists():
        time.sleep(0.02)


def agents(log: Path, hangs: str) -> dict[str, Agent]:
    """Return nine agents that say what they did."""

    def agent(name: str) -> Agent:
        async def run(data: Mapping[str, Any]) -> Any:
            with log.open("a") as lines:
                lines.write(f"{name}\n")
            if name == hangs:
                await asyncio.to_thread(wait_for, log.with_suffix(".go"))
            return {"by": name, "after": sorted(data)}

        return run

    return {name: agent(name) for name in AGENTS}


if __name__ == "__main__":
    port, log, hangs = sys.argv[1:]
    configure(lease_seconds=1, stalled_after_seconds=2)
    uvicorn.run(
        application(agents(Path(log), hangs), poll_seconds=0.3),
        port=int(port),
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
