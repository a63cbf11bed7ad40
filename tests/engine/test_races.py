"""Real processes on dynoxide: races, and workers that wake too late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tdev_models import Settings, settings, sync
from tests import raw

PROCESSES, SESSIONS = 16, 50


@contextmanager
def worker(store: Settings, *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "TDEV_ENV": store.environment,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_DYNAMODB": str(store.endpoint),
        **more,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.workers", *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout
    answer: dict[str, object] = json.loads(process.stdout.readline())
    return answer


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_sixteen_processes_race_for_fifty_sessions_and_each_has_one_winner(
    strict_store: Settings,
) -> None:
    names = [f"s{number}" for number in range(SESSIONS)]
    for name in names:
        sync.save_pipeline_session(session_id=name, status="FAILED")
    from contextlib import ExitStack

    with ExitStack() as stack:
        racers = [
            stack.enter_context(worker(strict_store, "race", *names)) for _ in range(PROCESSES)
        ]
        for racer in racers:
            assert line(racer) == {"ready": True}
        begin = time.time() + 0.3
        for racer in racers:
            assert racer.stdin
            racer.stdin.write(f"{begin}\n")
            racer.stdin.flush()
        wins = [name for racer in racers for name in line(racer)["won"]]  # type: ignore[attr-defined]
    assert sorted(wins) == sorted(names)
    for name in names:
        session = sync.get_pipeline_session(name)
        assert (session.fence, session.resume_count, session.status) == (1, 1, "ACTIVE")


@pytest.mark.parametrize(
    "write", ["session", "end", "progress", "execution", "other-execution", "leave", "heartbeat"]
)
def test_a_worker_frozen_until_its_lease_was_taken_over_changes_nothing(
    strict_store: Settings, write: str
) -> None:
    short = {"TDEV_LEASE_SECONDS": "0.6", "TDEV_STALLED_AFTER_SECONDS": "1.2"}
    with worker(strict_store, "freeze", "s", write, **short) as late:
        assert line(late) == {"inside": "parser"}
        os.kill(late.pid, signal.SIGSTOP)
        with settings.use(strict_store, lease_seconds=30, stalled_after_seconds=60):
            deadline = time.monotonic() + 20
            while not (resume := sync.resume_pipeline("s")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert (resume.start_agent, resume.owned.fence) == ("parser", 2)
            before = {
                table: raw.everything(strict_store, table)
                for table in ("pipeline-sessions", "agent-executions")
            }
            say(late)  # it will write as soon as it wakes
            os.kill(late.pid, signal.SIGCONT)
            assert line(late) == {"raised": "LeaseLost"}
            for table, items in before.items():
                assert raw.everything(strict_store, table) == items
            with resume, resume.agent("parser") as run:
                run.output = "the new owner's"
    assert sync.get_pipeline_session("s").status == "COMPLETED"
    assert sync.get_agent_execution("s-parser").output_data == "the new owner's"


def test_a_killed_worker_is_resumed_where_it_died(strict_store: Settings) -> None:
    short = {"TDEV_LEASE_SECONDS": "0.6", "TDEV_STALLED_AFTER_SECONDS": "1.2"}
    with worker(strict_store, "freeze", "s", "session", **short) as doomed:
        assert line(doomed) == {"inside": "parser"}
        doomed.kill()
        doomed.wait()
    with settings.use(strict_store, lease_seconds=0.6, stalled_after_seconds=1.2):
        deadline = time.monotonic() + 20
        while not (found := sync.get_failed_sessions()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [session.session_id for session in found] == ["s"]
        resume = sync.resume_pipeline("s")
        assert resume
        assert resume.outputs == {"nl_input": 1, "ui_selection": 1}
