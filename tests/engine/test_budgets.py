"""Which failures count against a session, and which are nobody's or a neighbour's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdev_models import (
    AccessDenied,
    ConfigurationError,
    Resume,
    Settings,
    Throttled,
    Unavailable,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tests import raw
from tests.engine.pipelines import finish
from tests.faults import Fault, injected


@pytest.mark.parametrize("minutes_down", [10, 30])
async def test_a_dependency_that_is_down_abandons_nobody(
    strict_store: Settings, minutes_down: int
) -> None:
    names = [f"s{number:02}" for number in range(40)]
    begun = time.time()
    now = [begun]

    async def runner(session: Resume) -> None:
        async with session.agent("nl_input") as run:
            if now[0] < begun + minutes_down * 60:
                raise ConnectionError("the model does not answer")
            run.output = 1

    completed: list[str] = []
    with settings.use(strict_store, clock=lambda: now[0]):
        for name in names:
            await save_pipeline_session(session_id=name, status="FAILED")
        while now[0] < begun + 3 * 3600 and len(completed) < len(names):
            done = await recover_sessions(runner, concurrency=4)
            assert done.abandoned == []
            completed += done.completed
            now[0] += 60
    assert sorted(completed) == names


async def test_a_resume_that_ends_an_agent_is_none_in_vain(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    now = [time.time()]
    agents = ["nl_input", "ui_selection", "parser", "component_decision"]

    async def one_more(session: Resume) -> None:
        async with session.agent(agents[len(session.outputs)]) as run:
            run.output = 1
        raise RuntimeError("a deploy, say")

    with settings.use(strict_store, clock=lambda: now[0]):
        for _ in agents:
            assert (await recover_sessions(one_more, max_attempts=1)).failed == ["s"]
            now[0] += 60
        session = await get_pipeline_session("s")
        assert (session.resume_count, session.resumes_without_progress) == (4, None)

        async def nothing(session: Resume) -> None:
            raise RuntimeError("broken for good")

        assert (await recover_sessions(nothing, max_attempts=1)).failed == ["s"]
        now[0] += 60
        assert (await recover_sessions(nothing, max_attempts=1)).abandoned == ["s"]


async def test_what_was_handed_back_is_found_by_the_next_poll_and_spends_nothing(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            async with await resume_pipeline("s"):
                raise KeyboardInterrupt
    session = await get_pipeline_session("s")
    assert (session.status, session.resume_count, session.resumes_without_progress) == (
        "ACTIVE",
        1,
        1,
    )
    assert (session.due_at or 0) <= time.time()
    assert (await recover_sessions(finish, max_attempts=1)).completed == ["s"]


@pytest.mark.parametrize(
    "error",
    [
        Throttled("all day"),
        Unavailable("no answer"),
        ExceptionGroup("tasks of a group", [Unavailable("no answer")]),
        AccessDenied("PutItem is not allowed"),
        ConfigurationError("ExpiredTokenException"),
    ],
)
async def test_the_stores_trouble_while_a_session_runs_hands_it_back(
    strict_store: Settings, error: Exception
) -> None:
    for name in "ab":
        await save_pipeline_session(session_id=name, status="FAILED")

    async def runner(session: Resume) -> None:
        if session.session_id == "a":
            raise error

    for _ in range(3):
        done = await recover_sessions(runner, max_attempts=1)
        assert (done.lost, done.failed, done.abandoned) == (["a"], [], [])
    session = await get_pipeline_session("a")
    assert (session.status, session.lease_owner, session.error_message) == ("ACTIVE", None, None)
    assert (await recover_sessions(finish, max_attempts=1)).completed == ["a"]
    assert (await get_pipeline_session("b")).status == "COMPLETED"


async def test_a_worker_without_a_permission_spends_nothing(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", error_message="the real one")
    before = raw.item(strict_store, "pipeline-sessions", "s")
    for _ in range(3):
        with injected(Fault("denied", operation="Query", table="agent-executions")):
            assert (await recover_sessions(finish, max_attempts=1)).lost == ["s"]
    assert raw.item(strict_store, "pipeline-sessions", "s") == before


async def test_a_tracked_session_is_handed_back_where_its_worker_lacks_a_permission(
    strict_store: Settings,
) -> None:
    with pytest.raises(AccessDenied):
        async with track_session("s"):
            raise AccessDenied("UpdateItem is not allowed")
    session_now = await get_pipeline_session("s")
    assert (session_now.status, session_now.lease_owner, session_now.error_message) == (
        "ACTIVE",
        None,
        None,
    )


_WORKER = """
import os, sys, time
from tdev_models import sync

def runner(session):
    if session.session_id == "killer":
        time.sleep(0.3)
        os._exit(9)
    time.sleep(0.6)
    with session.agent("nl_input") as run:
        run.output = 1

print(sync.recover_sessions(runner, concurrency=10, max_attempts=2))
"""


def test_a_session_that_kills_its_worker_takes_no_neighbour_with_it(
    strict_store: Settings,
) -> None:
    neighbours = [f"s{number}" for number in range(9)]
    for name in ("killer", *neighbours):
        sync.save_pipeline_session(session_id=name, status="FAILED")
    environment = {
        **os.environ,
        "TDEV_ENV": strict_store.environment,
        "TDEV_LEASE_SECONDS": "1",
        "TDEV_STALLED_AFTER_SECONDS": "2",
        "TDEV_AUTOMATIC_METRICS": "off",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_DYNAMODB": str(strict_store.endpoint),
    }
    deaths = 0
    for _ in range(8):
        worker = subprocess.run(
            [sys.executable, "-c", _WORKER],
            env=environment,
            cwd=Path(__file__).parents[2],
            timeout=60,
        )
        if worker.returncode == 0:
            break
        deaths += 1
        time.sleep(2)  # until the sessions of the dead worker are due
    states = {name: sync.get_pipeline_session(name).status for name in neighbours}
    assert states == dict.fromkeys(neighbours, "COMPLETED")
    killer = sync.get_pipeline_session("killer")
    assert (killer.status, deaths) == ("ABANDONED", 4)  # two with the others, two alone
