"""The plan's production capacity: 5 read and 5 write units a second for each table.

Time runs twenty times as fast: 100 units a second, and everything that is given in seconds a
twentieth of what it is in production.
"""

from __future__ import annotations

import asyncio

import pytest

from tdev_models import (
    Settings,
    get_agent_execution,
    get_pipeline_session,
    retry,
    settings,
    track_session,
)
from tdev_models.dynamodb import chunks
from tdev_models.workers import leased_writes
from tests.capacity import Capacity
from tests.conftest import make_tables
from tests.engine.pipelines import incompressible

FASTER = 20
OUTPUT_BYTES = 250 * 1024


@pytest.fixture
def fast(strict_store: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings and budgets of production, for time that runs faster."""
    budgets = {name: value for name, value in vars(retry).items() if name.endswith("_SECONDS")}
    for name, seconds in budgets.items():
        for module in (retry, chunks, leased_writes):
            if isinstance(seconds, float) and hasattr(module, name):
                monkeypatch.setattr(module, name, seconds / FASTER)
    init = retry.Backoff.__init__
    first_pauses, longest_pause, *more = init.__defaults__ or ()
    first_pauses = {kind: pause and pause / FASTER for kind, pause in first_pauses.items()}
    defaults = (first_pauses, longest_pause / FASTER, *more)
    monkeypatch.setattr(init, "__defaults__", defaults)
    return strict_store


def faster_settings() -> dict[str, float]:
    names = ("lease_seconds", "stalled_after_seconds", "retry_seconds", "owner_retry_seconds")
    return {name: getattr(Settings(), name) / FASTER for name in names}


async def test_large_outputs_are_slow_and_whole(fast: Settings) -> None:
    """Both readings of what DynamoDB admits, each with tables of its own, side by side."""
    other = make_tables(fast.endpoint or "")
    await asyncio.gather(four_sessions(fast, whole=False), four_sessions(other, whole=True))


async def four_sessions(store: Settings, *, whole: bool) -> None:
    capacity, names = Capacity(5 * FASTER, whole=whole), [f"s{number}" for number in range(4)]

    async def pipeline(name: str) -> None:
        async with track_session(name) as session:
            async with session.agent("parser", {"of": name}) as run:
                run.output = "small"
            async with session.agent("generation") as run:
                run.output = incompressible(name, OUTPUT_BYTES)

    with settings.use(store, transport=capacity.wrap, **faster_settings()):
        await asyncio.gather(*map(pipeline, names))
        for name in names:
            session = await get_pipeline_session(name)
            assert (session.status, session.fence) == ("COMPLETED", 1)
            output = (await get_agent_execution(f"{name}-generation")).output_data
            assert output == incompressible(name, OUTPUT_BYTES)
    assert capacity.refused > 20
