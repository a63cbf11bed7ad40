"""What a person reads: on a terminal, in a log, and in the summary of a pull request."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tdev_models.migrations import report
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.command import main
from tdev_models.migrations.declared import Index, Key, Property, Scaling
from tdev_models.migrations.diff import ALLOWABLE, Change
from tdev_models.migrations.plan import plan
from tdev_models.settings import Settings
from tests.migrations.runs import declare, model, prod, run
from tests.migrations.strict import StrictAws

ROOT = Path(__file__).parents[2]
KEY = (Key("status", "HASH", "S"), Key("due_at", "RANGE", "N"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def index(*names: str) -> Index:
    return Index(KEY, "INCLUDE", frozenset(names))


def alarm(**more: Any) -> dict[str, Any]:
    return {"Threshold": 40.0, "AlarmActions": ["arn:a"], "EvaluationPeriods": 5, **more}


BOTH = {"Read": Scaling(5, 50, 70.0), "Write": Scaling(5, 50, 70.0)}
# What differs, and how the line says so.
DIFFERENCES = {
    "one attribute for another": (
        "index",
        index("a", "b"),
        index("a", "c"),
        "(status S, due_at N) INCLUDE: +c -b",
    ),
    "another projection": (
        "index",
        Index(KEY, "ALL", frozenset()),
        index("a"),
        "(status S, due_at N) ALL -> INCLUDE of 1",
    ),
    "other keys": (
        "index",
        Index(KEY[:1], "ALL", frozenset()),
        Index(KEY, "ALL", frozenset()),
        "(status S) ALL -> (status S, due_at N) ALL",
    ),
    "no description": (
        "alarm",
        alarm(AlarmDescription=None),
        alarm(AlarmDescription="errors"),
        "AlarmDescription none -> errors",
    ),
    "another action": (
        "alarm",
        alarm(),
        alarm(AlarmActions=["arn:b"]),
        "AlarmActions arn:a -> arn:b",
    ),
    "another number of periods": (
        "alarm",
        alarm(EvaluationPeriods=9),
        alarm(),
        "EvaluationPeriods 9 -> 5",
    ),
    "another expression": ("alarm", alarm(Metrics=[1]), alarm(Metrics=[2]), "another expression"),
    "suspended": (
        "scaling",
        {**BOTH, "Read": Scaling(0, 0, None)},
        BOTH,
        "Read suspended -> Read 5-50 at 70 %",
    ),
    "no policy": (
        "scaling",
        {**BOTH, "Write": Scaling(5, 50, None)},
        BOTH,
        "Write 5-50 without a policy -> Write 5-50 at 70 %",
    ),
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_a_line_says_what_differs(case: str) -> None:
    kind, before, after, expected = DIFFERENCES[case]
    shown = report.line(Change("~", "metrics", Property(kind), before, after))
    assert shown == f"~ metrics  {kind}: {expected}"


PLAN = """\
prod: account 123456789012, region eu-west-1, https://dynamodb.eu-west-1.amazonaws.com
+ metrics  pitr: 35 days
~ metrics  scaling: 5-20 at 70 % -> 5-50 at 70 %
- metrics  alarm index/old-index/read-capacity-near-maximum
! metrics  capacity: 300 read, 300 write -> 50 read, 50 write  (destructive; --allow lower-capacity:metrics)
= user-projects  index old-index  (not declared; --allow delete-index:user-projects/old-index drops it)
Plan: 1 to add, 1 to change, 1 to remove, 1 refused.
error: metrics  capacity
warning: the alarms notify nobody"""  # noqa: E501


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_shows_colours_and_breaks_lines_between_words(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = report.for_screen(PLAN, Terminal())
    colours = re.findall(r"\033\[([\d;]+)m[-+~!=ew]", shown)
    assert colours == ["32", "33", "31", "1;31", "2", "1;31", "33"]
    plain = re.sub(r"\033\[[\d;]*m", "", shown)
    assert plain.split() == PLAN.split()
    longest = max(len(word) for word in PLAN.split()) + 4
    assert all(len(line) <= max(columns, longest) for line in plain.splitlines())
    assert (len(plain.splitlines()) == len(PLAN.splitlines())) == (columns == 160)
    monkeypatch.setenv("NO_COLOR", "1")
    assert report.for_screen(PLAN, Terminal()) == plain
    assert report.for_screen(PLAN, io.StringIO()) == PLAN


def test_a_number_and_its_unit_and_an_allowance_stay_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "x" * 70 + " takes 3 days; --allow delete-index:things/by-a"
    for columns in range(80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = report.for_screen(text, Terminal())
        assert "3 days" in shown
        assert "--allow delete-index:things/by-a" in shown


def test_progress_on_a_terminal_cuts_no_word(
    aws: StrictAws, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (planned,) = plan(Calls(settings), declare(settings, model({})))
    screen = Terminal()
    progress = report.Progress(screen, Calls(settings), total=1)
    change = Change("+", "things", Property("index", "by-a"), after=index(), note="words " * 30)
    progress.step(change)
    progress.wait(planned.table, planned.live, "words " * 30)
    lines = re.split(r"[\n\r]+", screen.getvalue().replace("\033[K", ""))
    assert all(len(line) < 80 for line in lines)
    assert "".join(lines).replace("words", "").count("w") == 0
    assert lines[-1].endswith("words ...")


def test_a_terminal_shows_a_refusal_once_and_a_log_again_as_an_error(
    aws: StrictAws,
    like_prod: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    screen = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", screen)
        assert run("plan", like_prod, "--set=like=dev", "--table=metrics") == 3
    assert "! metrics  protection: on -> off" in screen.getvalue()
    assert "error: " not in capsys.readouterr().err
    assert run("plan", like_prod, "--set=like=dev", "--table=metrics") == 3
    assert "error: metrics  protection: on -> off" in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_what_could_not_be_read_or_is_not_finished_is_not_said_to_be_as_declared(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    more = ("--table=metrics", *["--json"] * as_json)
    assert prod("apply", environment, "--table=metrics") == 0
    capsys.readouterr()
    aws.denied = {"DescribeTimeToLive"}
    assert prod("plan", environment, *more) == 1
    assert "No changes in what could be read; the rest is unknown." in capsys.readouterr().out
    aws.denied = set()
    aws.look_creating(f"t-developer-{environment}-metrics", times=1)
    assert prod("plan", environment, *more) == 5
    assert "No changes so far; DynamoDB is still at work" in capsys.readouterr().out


def test_status_is_a_line_for_each_table_in_columns(
    aws: StrictAws,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert prod("apply", environment, "--table=user-projects", "--table=metrics") == 0
    capsys.readouterr()
    assert prod("status", environment) == 2
    lines = capsys.readouterr().out.splitlines()[1:5]
    assert lines[:4] == [
        "pipeline-sessions  absent",
        "agent-executions   absent",
        "user-projects      ACTIVE  provisioned  ~0 rows  1 index    as declared",
        "metrics            ACTIVE  provisioned  ~0 rows  0 indexes  as declared",
    ]
    only = "--table=metrics"
    assert prod("status", environment, only, "--set=max_units=60", "--set=backup_days=7") == 3
    assert "0 indexes  3 pending, 1 refused" in capsys.readouterr().out
    aws.denied = {"DescribeTimeToLive"}
    assert prod("status", environment, only) == 1
    assert "0 indexes  partly unknown" in capsys.readouterr().out


def test_help_fits_80_columns_and_says_what_each_command_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    commands = re.findall(r"^  ([a-z]+) +\w", shown, re.MULTILINE)
    assert commands == ["plan", "apply", "status", "backfill", "export"]
    assert all(f" {kind}" in shown for kind in ALLOWABLE)
    for command in commands:
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert [line for line in shown.splitlines() if len(line) > 80] == []


def workflow_step(name: str) -> str:
    """Return the commands of a step of the documented workflow."""
    text = (ROOT / "docs/migrations.md").read_text()
    step = (
        text.partition(f"- name: {name}\n")[2].partition("      - name")[0].partition("```\n\n")[0]
    )
    return textwrap.dedent(step.partition("run: |\n")[2] or step.partition("run: ")[2])


@pytest.mark.parametrize(("code", "fails"), [(0, 0), (2, 0), (5, 0), (3, 3), (1, 1), (64, 64)])
def test_the_documented_workflow_shows_a_diff_and_fails_as_it_should(
    tmp_path: Path, code: int, fails: int
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\ncat <<'E'\n{PLAN}\nE\necho '::error::refused' >&2\nexit {code}\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-e", "-c", workflow_step("Plan")],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "RUNNER_TEMP": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == fails
    summary = (tmp_path / "summary.md").read_text()
    # In a fence of the language `diff`, `+` and `-` differ; as Markdown, both are bullets.
    assert summary == f"```diff\n{PLAN}\n```\n"
    assert PLAN in done.stdout
    assert "::error::refused" in done.stderr


def test_the_documented_workflow_runs_the_real_command(
    dynoxide: str, environment: str, tmp_path: Path
) -> None:
    steps = [workflow_step("Plan"), workflow_step("Apply"), workflow_step("Plan")]
    for number, step in enumerate(steps):
        done = subprocess.run(
            ["bash", "-e", "-c", step.replace("--env prod", f"--env {environment} --set like=dev")],
            cwd=ROOT,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
                "RUNNER_TEMP": str(tmp_path),
                "AWS_ENDPOINT_URL": dynoxide,
                "AWS_REGION": "us-east-1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("Plan: 6 to add" in done.stdout) == (number < 2)
    assert (
        (tmp_path / "summary.md")
        .read_text()
        .endswith("No changes. The tables are as declared.\n```\n")
    )
