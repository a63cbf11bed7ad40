from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tdev_models.migrations import declared, environments
from tdev_models.migrations.calls import OPERATIONS, Calls
from tdev_models.migrations.command import main
from tdev_models.migrations.live import Live
from tdev_models.migrations.plan import plan
from tdev_models.migrations.report import Progress
from tdev_models.settings import Settings
from tests.migrations.runs import apply, declare, model, prod, run
from tests.migrations.strict import StrictAws

TOPIC = "arn:aws:sns:eu-west-1:123456789012:alarms"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["paln"],
        ["plan", "--evn", "dev"],
        ["plan", "--env", "prdo"],
        ["plan", "--env", "DEV!"],
        ["plan", "--env", ""],
        ["backfill", "metrics", "os:getcwd", "--table", "pipeline-sessions", "--yes"],
        ["backfill", "metrics", "os:getcwd", "--out", "plan.json"],
        ["backfill", "metrics", "os:getcwd", "--expect", "plan.json"],
        ["backfill", "metrics", "os:getcwd", "--allow", "disable-pitr:metrics"],
        ["export", "--out", "template.json"],
        ["plan", "--table", "metric"],
        ["plan", "--set", "backup_day=7"],
        ["plan", "--set", "backup_days=seven"],
        ["plan", "--set", "backup_days=36"],
        ["plan", "--set", "billing=free"],
        ["plan", "--set", "encryption=alias/mine"],
        ["plan", "--set", "alarm_topic=me"],
        ["plan", "--set", "target_percent=95"],
        ["plan", "--set", "tags={a = 1}"],
        ["plan", "--set", "tags"],
        ["plan", "--allow", "delete-indxe:metrics/x"],
        ["plan", "--allow", "delete-index:metrics"],
        ["plan", "--allow", "disable-pitr:metric"],
        ["plan", "--config", "absent.toml"],
        ["apply", "--timeout", "soon"],
        ["apply", "--timeout", "0"],
    ],
)
def test_a_typo_is_wrong_usage_and_never_reads_as_drift(aws: StrictAws, argv: list[str]) -> None:
    assert main(argv) == 64
    assert aws.calls == []


def test_what_is_missing_is_named_without_what_only_a_backfill_takes(
    aws: StrictAws, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 64
    assert capsys.readouterr().err.endswith("the following arguments are required: what\n")


def test_apply_without_a_terminal_requires_yes_and_changes_nothing_without_it(
    aws: StrictAws, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert main(["apply", "--env", environment, "--set", "like=dev"]) == 64
    assert aws.mutations == []


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("y\n", 2), ("\n", 2), ("", 2)])
def test_a_person_agrees_with_yes_and_nothing_else(
    aws: StrictAws,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    chosen = ["--env", environment, "--set", "like=dev", "--table=metrics"]
    assert main(["apply", *chosen, "--json"]) == code
    assert bool(aws.mutations) == (code == 0)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["exit_code"] == code
    assert shown.err.startswith("Apply? Only 'yes' is accepted: ")


def test_a_dry_run_checks_every_row_and_changes_nothing(aws: StrictAws, environment: str) -> None:
    assert run("apply", environment, "--set", "like=dev", "--dry-run") == 2
    assert aws.mutations == []
    assert run("apply", environment, "--set", "like=dev") == 0
    name = f"t-developer-{environment}-pipeline-sessions"
    off = {"Enabled": False, "AttributeName": "expires_at"}
    aws.by_hand("dynamodb", "UpdateTimeToLive", TableName=name, TimeToLiveSpecification=off)
    aws.forget()
    assert run("apply", environment, "--set", "like=dev", "--dry-run") == 2
    assert {params["TotalSegments"] for _, op, params in aws.calls if op == "Scan"} == {1}
    assert aws.mutations == []


def test_an_environment_is_a_few_lines_of_a_file(
    aws: StrictAws, environment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "environments.toml"
    file.write_text(
        f'[{environment}]\nlike = "prod"\nmax_units = 20\nbackup_days = 7\n'
        f'alarm_topic = "{TOPIC}"\ntags = {{ team = "x" }}\n'
    )
    chosen = ["--env", environment, "--config", str(file), "--table", "metrics"]
    assert main(["apply", *chosen, "--yes"]) == 0
    assert "notify nobody" not in capsys.readouterr().err
    assert main(["plan", *chosen]) == 0
    assert main(["plan", *chosen, "--set", "max_units=21"]) == 2
    assert "~ metrics  scaling: 5-20 at 70 % -> 5-21 at 70 %" in capsys.readouterr().out
    ours = f"t-developer-{environment}-metrics/"
    alarms = aws.by_hand("cloudwatch", "DescribeAlarms", AlarmNamePrefix=ours)["MetricAlarms"]
    assert {tuple(alarm["AlarmActions"]) for alarm in alarms} == {(TOPIC,)}


def test_alarms_without_a_topic_are_warned_about(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prod("plan", environment) == 2
    assert "the alarms notify nobody" in capsys.readouterr().err


def test_json_holds_the_plan_and_the_exit_code(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prod("plan", environment, "--table", "metrics", "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 2
    assert document["summary"] == "Plan: 8 to add, 0 to change, 0 to remove, 0 refused."
    targets = [change["target"] for change in document["changes"]]
    assert targets[:4] == ["keys", "pitr", "scaling", "alarm throttled-reads"]
    assert prod("apply", environment, "--table", "metrics", "--json", "--timeout", "60") == 0
    json.loads(capsys.readouterr().out)


def test_the_summary_is_the_last_line(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prod("plan", environment, "--table", "metrics")  # the one without an index
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("about 5 USD a month at rest, 30 at most: ")
    assert out[2] == (
        "+ metrics  table: (date S, metric_name S)  (provisioned, deletion protection, key kms)"
    )
    assert "+ metrics  5 alarms" in out
    assert out[-1] == "Plan: 8 to add, 0 to change, 0 to remove, 0 refused."


def test_the_environment_variables_choose_the_environment(
    aws: StrictAws, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDEV_ENV", environment)
    assert main(["plan", "--set", "like=dev"]) == 2
    assert main(["plan"]) == 64


def test_python_m_migrations_is_the_command() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "migrations", "plan", "--env", "prdo"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 64
    known = ", ".join(sorted(environments.BUILT_IN))
    assert f"'prdo' is not declared (known: {known})" in done.stderr


@pytest.mark.parametrize("errors", [subprocess.PIPE, subprocess.STDOUT], ids=["output", "both"])
@pytest.mark.parametrize("more", [["--json"], []])
def test_an_error_of_which_nobody_reads_is_the_end_without_a_traceback(
    errors: int, more: list[str]
) -> None:
    command = [sys.executable, "-m", "migrations", "plan", "--env", "nope", *more]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=errors, env=environ
    ) as process:
        assert process.stdout
        process.stdout.close()
        text = process.stderr.read() if process.stderr else b""
        assert process.wait(30) == (64 if process.stderr and not more else 141)
        assert b"Traceback" not in text
        assert b"ignored" not in text


def test_missing_credentials_are_an_error_that_says_so(
    environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert run("plan", environment, "--set", "like=dev", "--set", "tags={}") in (1,)
    assert "credentials" in capsys.readouterr().err


# ------------------------------------------------------------------------ progress


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def test_ci_gets_a_line_every_15_seconds_with_the_percentage_of_an_index(
    aws: StrictAws, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = declare(settings, model({"by-a": ["a"]}))
    apply(settings, tables)
    (planned,) = plan(Calls(settings), tables)
    planned.live.description["GlobalSecondaryIndexes"][0]["IndexStatus"] = "CREATING"
    now = time.time()
    aws.by_hand(
        "cloudwatch",
        "PutMetricData",
        Namespace="AWS/DynamoDB",
        MetricData=[
            {
                "MetricName": "OnlineIndexPercentageProgress",
                "Timestamp": now - 90,
                "Value": 42.0,
                "Dimensions": [
                    {"Name": "TableName", "Value": tables[0].name},
                    {"Name": "GlobalSecondaryIndexName", "Value": "by-a"},
                ],
            }
        ],
    )
    screen = Screen(terminal=False)
    progress = Progress(screen, Calls(settings), total=1)
    start = time.monotonic()
    for second in range(59):
        monkeypatch.setattr("time.monotonic", lambda second=second: start + second)
        progress.wait(tables[0], planned.live, "index by-a CREATING")
    lines = screen.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("index by-a CREATING, 42 %")


def test_the_percentage_of_an_index_is_not_shown_of_another_table(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = declared.tables(settings, environments.load("dev"))[:2]
    screen = Screen(terminal=True)
    progress = Progress(screen, Calls(settings), total=1)
    monkeypatch.setattr(Progress, "_backfill", lambda *given: ", 42 %")
    later = time.monotonic() + 16
    monkeypatch.setattr("time.monotonic", lambda: later)
    progress.wait(one, Live(), "index by-a CREATING")
    progress.wait(other, Live(), "table UPDATING")
    assert screen.getvalue().endswith(f"{other.short}: table UPDATING")
    progress.wait(one, Live(), "index by-a CREATING")
    assert screen.getvalue().endswith("index by-a CREATING, 42 %")


def test_a_terminal_gets_one_line_that_is_overwritten(settings: Settings) -> None:
    (table,) = declared.tables(settings, environments.load("dev"))[-1:]
    screen = Screen(terminal=True)
    progress = Progress(screen, Calls(settings), total=4)
    for _ in range(5):
        progress.wait(table, Live(), "table CREATING")
    assert "\n" not in screen.getvalue()
    assert screen.getvalue().count("\r") == 5


# ------------------------------------------------------------------------ what can be sent


def test_nothing_but_the_listed_operations_can_be_sent(settings: Settings) -> None:
    assert "DeleteTable" not in OPERATIONS
    with pytest.raises(KeyError):
        Calls(settings)("DeleteTable", TableName="t")
