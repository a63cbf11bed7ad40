"""The demo, run as a newcomer runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from tdev_models import settings
from tdev_models.cli.demo import show
from tdev_models.cli.demo.checks import Check
from tdev_models.sync import get_pipeline_session, list_user_projects

TICKS = 13
TDEV = [sys.executable, "-c", "import sys; from tdev_models.cli import main; sys.exit(main())"]


def demo(*arguments: str, env: Mapping[str, str] = os.environ) -> str:
    done = subprocess.run(
        [*TDEV, "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=env,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert max(map(len, done.stdout.split("To look further")[0].splitlines())) <= 80
    return done.stdout


def test_it_ticks_every_claim_and_what_it_kept_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = demo("a blog with Vue and a GraphQL API", "--keep")
    exported = dict(re.findall(r"^export (\w+)=(.*)$", printed, re.M))
    ends = re.search(r"^kill (\d+); rm -rf (\S+).*", printed, re.M)
    assert ends is not None
    try:
        assert printed.count("✓") == TICKS
        for name in ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, exported[name])
        assert exported["TDEV_ENV"] == "dev"
        with settings.use(endpoint=exported["AWS_ENDPOINT_URL_DYNAMODB"]):
            (project,) = list_user_projects("demo-user")
            assert get_pipeline_session(project.project_id).status == "COMPLETED"
        assert project.file_path is not None
        assert Path(project.file_path).name == "posts-app.zip"
        assert Path(project.file_path).exists()
    finally:
        subprocess.run(ends[0], shell=True, check=True)
        assert not Path(ends[2]).exists()


def test_without_npm_it_runs_on_moto_and_leaves_nothing(tmp_path: Path) -> None:
    places = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    printed = demo("a todo app", env={**os.environ, **places})
    assert "nothing is kept" in printed
    assert printed.count("✓") == TICKS
    assert list(tmp_path.iterdir()) == []


def test_it_tells_its_story_whatever_the_shell_has_set() -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000"
    set_here = {
        "TDEV_AGENTS": "one,two",
        "TDEV_AUTOMATIC_METRICS": "off",
        "TDEV_KMS_KEY": key,
        "TDEV_KMS_STRICT": "on",
        "TDEV_RETENTION_DAYS": "0.00001",
    }
    assert demo("a todo app", env={**os.environ, **set_here}).count("✓") == TICKS


def test_ended_in_the_middle_it_ends_what_it_started(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*TDEV, "demo", "a todo app"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().split()[-1]
        for line in process.stdout:
            if line.startswith("Worker 1 runs"):
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(endpoint, timeout=5)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_does_not_hold_is_shown_and_fails() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        assert show.checked(console, [Check("one", 1, 1), Check("two", ["[b]"], 2)]) is False
    printed = captured.get()
    assert "✓ one" in printed
    assert "✗ two\n  found    ['[b]']\n  expected 2" in printed
