"""What tests share: pipelines that fail or are finished, a clock that is off, large payloads."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from typing import Any

import pytest

from tdev_models import AGENTS, Resume, track_session


async def fail(session_id: str, at: str = "search") -> None:
    with pytest.raises(ValueError, match="broke"):
        async with track_session(session_id) as session:
            for name in AGENTS:
                async with session.agent(name) as run:
                    if name == at:
                        raise ValueError("broke")
                    run.output = name


async def finish(session: Resume) -> None:
    for name in AGENTS:
        async with session.agent(name) as run:
            if not run.done:
                run.output = f"{name} again"


async def cancel_an_agent(session_id: str) -> None:
    """Cancel the task of a session while one of its agents runs."""
    begun = asyncio.Event()

    async def pipeline() -> None:
        async with track_session(session_id) as session, session.agent("parser"):
            begun.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(pipeline())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def clock(seconds: float) -> Any:
    return lambda: time.time() + seconds


def files(size: int) -> dict[str, str]:
    """Source code of about so many bytes, that compresses as source code does."""
    words = random.Random(7)
    lines = [
        f"def f{words.randrange(10**6)}(x):\n    return x + {words.randrange(99)}\n"
        for _ in range(size // 34)
    ]
    return {f"app/{n}.py": "".join(lines[n::20]) for n in range(20)}


def incompressible(name: str, size: int) -> str:
    """Return a text whose chunks take about so many bytes."""
    return base64.b64encode(random.Random(name).randbytes(size)).decode()
