"""What goes wrong around a worker's presence, and holds no session for ever for it."""

from __future__ import annotations

import asyncio

import pytest

from tdev_models import (
    Settings,
    get_pipeline_session,
    recover_sessions,
    track_session,
)
from tdev_models.workers.presence import Presence
from tests.engine.pipelines import finish


async def test_what_drains_in_a_group_of_tasks_is_not_completed(strict_store: Settings) -> None:
    ended: list[str] = []

    async def run() -> None:
        async with track_session("s") as session, asyncio.TaskGroup() as group:

            async def agent(name: str, after: float) -> None:
                await asyncio.sleep(after)
                async with session.agent(name) as run:
                    Presence.draining = True
                    await asyncio.sleep(0.3)
                    run.output = 1
                    ended.append(name)

            group.create_task(agent("parser", 0))
            group.create_task(agent("search", 0.2))
        pytest.fail("the task goes on")

    try:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(run())
    finally:
        Presence.draining = False
    assert ended == ["parser"]
    assert (await get_pipeline_session("s")).status == "ACTIVE"
    assert (await recover_sessions(finish)).completed == ["s"]
