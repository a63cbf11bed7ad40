"""`tdev recover`: a worker with a runner of the user's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdev_models import Settings, sync

TDEV = [sys.executable, "-c", "import sys; from tdev_models.cli import main; sys.exit(main())"]
RUNNERS = """
import asyncio, contextlib, time

def blocking(session):
    if session.session_id == "bad":
        raise RuntimeError("still bad")
    if session.session_id == "caught":
        with contextlib.suppress(ValueError), session.agent("nl_input"):
            raise ValueError("secret")
        return
    with session.agent("nl_input") as run:
        run.output = 1

async def awaitable(session):
    async with session.agent("nl_input") as run:
        await asyncio.sleep(0.3)
        run.output = 1
"""


@pytest.fixture
def place(tmp_path: Path, strict_store: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runners.py").write_text(RUNNERS)
    monkeypatch.setenv("TDEV_ENV", strict_store.environment)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", str(strict_store.endpoint))
    return tmp_path


def recover(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TDEV, "recover", *arguments], cwd=place, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("runner", ["blocking", "awaitable"])
def test_it_resumes_what_it_finds_once(place: Path, runner: str) -> None:
    for name in ("good", "fine"):
        sync.save_pipeline_session(session_id=name, status="FAILED")
    done = recover(place, f"runners:{runner}", "--concurrency", "2")
    *sessions, summary = done.stdout.splitlines()
    assert sorted(sessions) == ["session fine: completed", "session good: completed"]
    assert (summary, done.stderr) == ("2 completed, 0 failed, 0 abandoned, 0 lost", "")
    assert done.returncode == 0
    assert sync.get_agent_execution("good-nl_input").output_data == 1


def test_a_session_s_id_writes_no_line_of_its_own(place: Path) -> None:
    sync.save_pipeline_session(session_id="s\nsession t: completed\x1b[2J", status="FAILED")
    assert recover(place, "runners:blocking").stdout.splitlines() == [
        "session s session t: completed\ufffd[2J: completed",
        "1 completed, 0 failed, 0 abandoned, 0 lost",
    ]


def test_it_says_which_agents_a_runner_left_failed(place: Path) -> None:
    sync.save_pipeline_session(session_id="caught", status="FAILED")
    assert recover(place, "runners:blocking").stdout.splitlines() == [
        "session caught failed: its runner returned, and left failed: nl_input",
        "session caught: failed",
        "0 completed, 1 failed, 0 abandoned, 0 lost",
    ]


def test_it_counts_what_fails_and_gives_up(place: Path) -> None:
    sync.save_pipeline_session(session_id="bad", status="FAILED")
    once = recover(place, "runners:blocking", "--max-attempts", "1", "--backoff", "0.001")
    assert once.stdout.splitlines() == [
        "session bad failed: RuntimeError",
        "session bad: failed",
        "0 completed, 1 failed, 0 abandoned, 0 lost",
    ]
    assert once.returncode == 1
    time.sleep(0.01)
    given_up = recover(place, "runners:blocking", "--max-attempts", "1")
    assert "1 abandoned" in given_up.stdout
    assert given_up.returncode == 1
    assert sync.get_pipeline_session("bad").status == "ABANDONED"


@pytest.mark.parametrize(
    "runner",
    [
        *("runners", "runners:nothing", "nowhere:run", ":", "./runners.py:blocking", "broken:run"),
        "script:run",
    ],
)
def test_a_runner_that_is_none_is_an_error(place: Path, runner: str) -> None:
    (place / "broken.py").write_text("def run(:")
    (place / "script.py").write_text("raise SystemExit(0)")
    done = recover(place, runner)
    assert done.returncode == 64
    assert done.stderr.startswith("error: runner: ")


@pytest.mark.parametrize(
    ("option", "seconds"),
    [("--older-than", "nan"), ("--older-than", "inf"), ("--older-than", "1e20"), ("--poll", "-1")],
)
def test_an_age_that_is_none_is_an_error(place: Path, option: str, seconds: str) -> None:
    done = recover(place, "runners:blocking", option, seconds)
    assert done.returncode == 64
    assert done.stderr.startswith(f"error: {option}: ")


def test_watching_it_finishes_what_is_under_way_at_sigterm(place: Path) -> None:
    with subprocess.Popen(
        [*TDEV, "recover", "runners:awaitable", "--watch", "--poll", "0.1"],
        cwd=place,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    ) as worker:
        try:
            sync.save_pipeline_session(session_id="s", status="FAILED")
            deadline = time.monotonic() + 30
            while sync.get_pipeline_session("s").current_agent is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0
            assert worker.stdout
            printed = worker.stdout.read()
            assert printed.endswith("1 completed, 0 failed, 0 abandoned, 0 lost\n")
        finally:
            worker.kill()
    assert sync.get_pipeline_session("s").status == "COMPLETED"
