"""The example's orchestrator, under what befalls a real one."""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from examples import orchestrator as example
from tdev_models import (
    AGENTS,
    Settings,
    Unavailable,
    get_agent_execution,
    get_pipeline_session,
    list_pipeline_sessions,
    recover_sessions,
    settings,
)
from tests.examples.orchestrated import agents

ROOT = Path(__file__).parents[2]
MOST_CHANGED_LINES = 25


def test_wrapping_an_orchestrator_changes_few_lines() -> None:
    before, after = (
        (ROOT / "examples" / name).read_text().splitlines()
        for name in ("orchestrator_before.py", "orchestrator.py")
    )
    old, new = ([line.strip() for line in text] for text in (before, after))
    changed = [line for line in difflib.ndiff(old, new) if line.startswith("+ ") and line[2:]]
    assert len(changed) <= MOST_CHANGED_LINES, changed


def made(data: Mapping[str, Any]) -> list[str]:
    return [name for name in AGENTS if name in data]


ALL_BUT_SEARCH = [name for name in AGENTS if name != "search"]


@pytest.mark.parametrize("killed", AGENTS)
async def test_killed_inside_any_agent_the_rest_runs_and_nothing_twice(
    strict_store: Settings, tmp_path: Path, killed: str
) -> None:
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TDEV_ENV": strict_store.environment,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_DYNAMODB": strict_store.endpoint or "",
        "TDEV_AUTOMATIC_METRICS": "off",
    }
    died = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.examples.orchestrated", str(log), "project_1", killed],
        env=environment,
        timeout=60,
    )
    assert died.returncode == -signal.SIGKILL
    before = Counter(log.read_text().split())
    with settings.use(strict_store, clock=lambda: time.time() + 4000):
        done = await recover_sessions(example.Orchestrator(agents(log)).resume)
        session = await get_pipeline_session("project_1")
    assert done.completed == ["project_1"]
    assert (session.status, session.progress, session.user_id) == ("COMPLETED", 9, "u1")
    ran = Counter(log.read_text().split())
    assert ran - before == Counter(
        {name: 3 if name == "search" else 1 for name in AGENTS[AGENTS.index(killed) :]}
    )
    for name in ALL_BUT_SEARCH:
        output = (await get_agent_execution(f"project_1-{name}")).output_data
        assert output["by"] == name
        assert set(output["after"]) == {"request", *AGENTS[: AGENTS.index(name)]} - {"search"}


class Outages:
    """A store that is away for some seconds, twice, when the next agent is at work.

    Not for each of the users: those who wait for the end of one outage would begin the next, and
    20 of 120 s, with less than a second between them, are longer than `owner_retry_seconds`.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.until, self.left = seconds, 0.0, 2

    def wrap(self, send: settings.Transport) -> settings.Transport:
        async def away(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if time.monotonic() < self.until:
                raise Unavailable("injected: away")
            return await send(operation, request)

        return away

    def during(self, name: str, agent: example.Agent) -> example.Agent:
        async def run(data: Mapping[str, Any]) -> Any:
            if name == "generation" and self.left and time.monotonic() > self.until:
                self.left -= 1
                self.until = time.monotonic() + self.seconds
            return await agent(data)

        return run


SECONDS = [0.5, 3.0, *map(float, os.environ.get("TDEV_TEST_OUTAGES", "").split())]


@pytest.mark.parametrize("seconds", SECONDS)
async def test_twenty_users_live_through_an_outage(
    strict_store: Settings, tmp_path: Path, seconds: float
) -> None:
    outages, log = Outages(seconds), tmp_path / "log"
    with settings.use(strict_store, transport=outages.wrap):
        plain = agents(log)
        run = example.Orchestrator({name: outages.during(name, plain[name]) for name in plain})
        results = await asyncio.gather(
            *(run.execute(f"app {user}", f"u{user}", f"project_{user}") for user in range(20))
        )
    for user, result in enumerate(results):
        assert (result.success, result.project_id) == (True, f"project_{user}")
        assert result.data["request"] == f"app {user}"
        assert made(result.data) == ALL_BUT_SEARCH
        (own,) = await list_pipeline_sessions(user_id=f"u{user}")
        assert own.session_id == f"project_{user}"
        session = await get_pipeline_session(own.session_id)
        assert (session.status, session.progress) == ("COMPLETED", 9)
    ran = Counter(log.read_text().split())
    assert ran == Counter({name: 60 if name == "search" else 20 for name in AGENTS})


async def test_what_fails_for_good_is_found_where_it_failed(
    strict_store: Settings, tmp_path: Path
) -> None:
    async def broken(data: Mapping[str, Any]) -> Any:
        raise ValueError("no template")

    run = example.Orchestrator({**agents(tmp_path / "log"), "assembly": broken})
    result = await run.execute("an app", "u1", "project_1")
    assert not result.success
    session = await get_pipeline_session("project_1")
    assert (session.status, session.failed_agent) == ("FAILED", "assembly")
    assert session.error_message == "assembly: ValueError: no template"
