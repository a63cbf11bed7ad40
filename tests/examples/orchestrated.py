"""A process that runs the example: `python -m tests.examples.orchestrated LOG ID KILLED`.

Each call of an agent is a line in the file LOG; the agent KILLED kills the process once inside it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.orchestrator import Agent, Orchestrator
from tdev_models import AGENTS, configure


def agents(log: Path, killed: str = "") -> dict[str, Agent]:
    """Return nine agents that say what they did; `search` fails, as it may."""

    def agent(name: str) -> Agent:
        async def run(data: Mapping[str, Any]) -> Any:
            with log.open("a") as lines:
                lines.write(f"{name}\n")
            await asyncio.sleep(0)
            if name == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "search":
                raise ConnectionError("no network")
            return {"by": name, "after": sorted(data), "text": "x" * 6000}

        return run

    return {name: agent(name) for name in AGENTS}


if __name__ == "__main__":
    log, project_id, killed = sys.argv[1:]
    configure(lease_seconds=1, stalled_after_seconds=2)
    orchestrator = Orchestrator(agents(Path(log), killed))
    asyncio.run(orchestrator.execute("a todo app", "u1", project_id))
