"""A wrong clock, or another program's, neither locks a session nor loses it."""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    LeaseHeld,
    Settings,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    settings,
    track_session,
)
from tests import raw
from tests.dying import worker_of
from tests.engine.pipelines import clock

DAY = 86_400.0


async def begin_elsewhere() -> None:
    """Own the session as another worker would: later blocks here do not join that one."""
    await copy_context().run(track_session("s").__aenter__)


@pytest.mark.parametrize("call", ["track_session", "resume_pipeline"])
async def test_a_lease_of_a_clock_that_was_a_day_ahead_locks_nothing(
    store: Settings, call: str
) -> None:
    with settings.use(store, clock=clock(DAY)):
        await begin_elsewhere()  # and its worker dies
    if call == "track_session":
        async with track_session("s"):
            pass
    else:
        assert await resume_pipeline("s")
    assert (await get_pipeline_session("s")).fence == 2


@pytest.mark.parametrize("units", [1e3, 1e6, 1e9])
async def test_what_a_clock_of_smaller_units_has_saved_can_be_saved_again(
    store: Settings, units: float
) -> None:
    with settings.use(store, clock=lambda: time.time() * units):
        await save_pipeline_session(session_id="s", project_name="wrong")
        await save_user_project(user_id="u", project_id="p", project_name="wrong")
    for name in ("right", "later"):
        assert (await save_pipeline_session(session_id="s", project_name=name)).project_name == name
        project = await save_user_project(user_id="u", project_id="p", project_name=name)
        assert project.project_name == name


@pytest.mark.parametrize("skew", [90.0, -25.0])
async def test_a_clock_that_is_off_a_little_takes_no_session_from_a_living_worker(
    store: Settings, skew: float
) -> None:
    with settings.use(store, clock=clock(skew)):
        await begin_elsewhere()
    assert "owns it" in ((await resume_pipeline("s")).reason or "")
    with pytest.raises(LeaseHeld):
        await track_session("s").__aenter__()
    with settings.use(store, clock=clock(skew + 61)):
        assert await resume_pipeline("s")


async def test_a_session_whose_clock_is_set_back_inside_goes_on(store: Settings) -> None:
    now = [time.time() + DAY]
    with settings.use(replace(store, lease_seconds=0.6, clock=lambda: now[0])):
        async with track_session("s") as session:
            now[0] -= DAY
            for _ in range(100):  # until the next heartbeats have registered it anew
                worker = raw.item(store, "pipeline-sessions", worker_of(store, "s"))
                assert worker is not None
                if now[0] < float(worker["due_at"]["N"]) < now[0] + 10:
                    break
                await asyncio.sleep(0.1)
            else:
                pytest.fail("its worker goes by the former clock")
            assert "owns it" in ((await resume_pipeline("s")).reason or "")
            async with session.agent("parser") as run:
                run.output = 1
            await save_pipeline_session(session_id="s", project_name="p")
    done = await get_pipeline_session("s")
    assert (done.status, done.project_name, done.progress) == ("COMPLETED", "p", 1)


@pytest.mark.parametrize("digits", ["1700000000.123456789", "1700000000.12345678901234567891"])
@pytest.mark.parametrize("leased", [True, False])
async def test_a_session_with_times_of_nanoseconds_can_be_claimed(
    store: Settings, digits: str, leased: bool
) -> None:
    values: dict[str, Any] = {"last_updated": {"N": digits}, "status": {"S": "ACTIVE"}}
    if leased:
        values |= {"lease_expires": {"N": digits}, "lease_token": {"S": "t"}, "fence": {"N": "1"}}
    raw.put_attribute(store, "pipeline-sessions", "s", **values)
    resume = await resume_pipeline("s")
    assert resume
    async with resume:
        pass
    assert (await get_pipeline_session("s")).status == "COMPLETED"
