"""What happens to a run that nobody watches, and what its log says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tdev_models.errors import StoreError
from tdev_models.migrations import declared, environments
from tdev_models.migrations.apply import Run
from tdev_models.migrations.calls import Calls, InProgress
from tdev_models.migrations.plan import plan, undeclared
from tdev_models.settings import Settings
from tests.migrations.runs import apply, declare, model, prod, run
from tests.migrations.strict import StrictAws, _error

SCALED: dict[str, Any] = {"billing": "provisioned", "autoscaling": True}


def targets(aws: StrictAws, table: str) -> set[str]:
    answer = aws.by_hand(
        "application-autoscaling", "DescribeScalableTargets", ServiceNamespace="dynamodb"
    )
    return {t["ResourceId"] for t in answer["ScalableTargets"] if table in t["ResourceId"]}


def test_a_dropped_index_leaves_no_scalable_target_behind(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({"by-a": ["a"], "by-b": ["b"]}), **SCALED))
    small = declare(settings, model({"by-a": ["a"]}), **SCALED)
    name = small[0].name
    assert apply(settings, small, {"delete-index:things/by-b"}) == 3
    assert targets(aws, name) == {f"table/{name}", f"table/{name}/index/by-a"}


def test_the_targets_of_an_index_that_was_dropped_by_hand_are_planned_away(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({"by-a": ["a"], "by-b": ["b"]}), **SCALED))
    small = declare(settings, model({"by-a": ["a"]}), **SCALED)
    delete = [{"Delete": {"IndexName": "by-b"}}]
    aws.by_hand(
        "dynamodb", "UpdateTable", TableName=small[0].name, GlobalSecondaryIndexUpdates=delete
    )
    (planned,) = plan(Calls(settings), small)
    assert [f"{c.symbol} {c.target}" for c in planned.changes] == ["- scaling by-b"]
    assert apply(settings, small) == 2


@pytest.mark.parametrize("rules", [True, False], ids=["as documented", "moto alone"])
def test_tables_whose_name_begins_like_anothers_keep_their_own_targets(
    aws: StrictAws, settings: Settings, rules: bool
) -> None:
    aws.rules = rules
    (things,) = declare(settings, model({}), **SCALED)
    other = declared.Table(things.short, f"{things.name}-more", things.state)
    apply(settings, [other])
    apply(settings, [things])
    on_demand = declare(settings, model({}))
    apply(settings, on_demand)
    assert targets(aws, things.name) == {f"table/{other.name}"}


def test_while_one_table_waits_the_others_go_on(aws: StrictAws, settings: Settings) -> None:
    tables = declared.tables(settings, environments.load("dev"))
    apply(settings, tables[:1])
    aws.by_hand(
        "dynamodb",
        "UpdateTimeToLive",
        TableName=tables[0].name,
        TimeToLiveSpecification={"Enabled": False, "AttributeName": "expires_at"},
    )
    aws.look_creating(tables[0].name, times=10_000)
    aws.forget()
    with pytest.raises(InProgress) as waiting:
        Run(Calls(settings), timeout_seconds=10).apply(plan(Calls(settings), tables))
    assert [table.name in str(waiting.value) for table in tables] == [True, False, False, False]
    assert aws.mutations.count("CreateTable") == 3
    aws.forget()
    assert apply(settings, tables[1:]) == 0
    aws.look_creating(tables[0].name, times=0)
    apply(settings, tables)
    assert apply(settings, tables) == 0


def test_an_error_of_one_table_is_reported_once_the_others_are_as_declared(
    aws: StrictAws, settings: Settings
) -> None:
    tables = declared.tables(settings, environments.load("dev"))

    def before(params: dict[str, Any]) -> None:
        if params["TableName"] == tables[0].name:
            raise _error("CreateTable", "ValidationException", "no such thing")

    aws._before_CreateTable = before  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="no such thing"):
        apply(settings, tables)
    assert apply(settings, tables[1:]) == 0


def test_dynoxide_which_knows_no_units_of_a_new_index_ends_clean(
    dynoxide: str, environment: str
) -> None:
    settings = Settings(environment=environment, region="us-east-1", endpoint=dynoxide)
    apply(settings, declare(settings, model({"by-a": ["a"]}), **SCALED))
    larger = declare(settings, model({"by-a": ["a"], "by-b": ["b"]}), **SCALED)
    assert apply(settings, larger) == 1
    assert apply(settings, larger) == 0
    (planned,) = plan(Calls(settings), larger)
    assert "= capacity by-b" in [f"{c.symbol} {c.target}" for c in planned.changes]


def test_an_error_names_the_operation_and_the_resource_even_where_the_answer_is_empty(
    aws: StrictAws, settings: Settings
) -> None:
    def before(params: Any) -> None:
        answer = {"Error": {"Code": "400"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise ClientError(answer, "DescribeTimeToLive")

    tables = declare(settings, model({}))
    apply(settings, tables)
    aws._before_DescribeTimeToLive = before  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=f"dynamodb:DescribeTimeToLive on {tables[0].name}$"):
        plan(Calls(settings), tables)


def test_a_role_that_may_not_list_tables_gets_its_plan(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.denied = {"ListTables"}
    assert prod("plan", environment) == 2
    shown = capsys.readouterr().out
    assert "= *  table  (tables that are not declared are not looked for: " in shown
    assert "dynamodb:ListTables on * is not allowed" in shown


def test_an_environment_does_not_claim_the_tables_of_one_whose_name_begins_like_its_own(
    aws: StrictAws, settings: Settings
) -> None:
    tables = declared.tables(settings, environments.load("dev"))
    mine = tables[0].name.removesuffix(tables[0].short)
    schema = {
        "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }
    for name in ("eu-metrics", "eu-extra", "extra", "metrics"):
        aws.by_hand("dynamodb", "CreateTable", TableName=f"{mine}{name}", **schema)
    # `eu-metrics` shows that there is an environment of this name and `-eu`; `extra` is ours.
    assert [change.table for change in undeclared(Calls(settings), tables)] == ["extra"]


def test_alarms_of_others_beside_those_of_the_table_are_left(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--table", "metrics")
    assert prod("apply", environment, *only) == 0
    name = f"t-developer-{environment}-metrics"
    for theirs in (f"{name}/latency", f"{name}/index/x/latency"):
        aws.by_hand(
            "cloudwatch",
            "PutMetricAlarm",
            AlarmName=theirs,
            MetricName="SuccessfulRequestLatency",
            Namespace="AWS/DynamoDB",
            Statistic="Average",
            Period=60,
            EvaluationPeriods=1,
            Threshold=50.0,
            ComparisonOperator="GreaterThanThreshold",
        )
    aws.forget()
    capsys.readouterr()
    assert prod("plan", environment, *only) == 0
    assert "= metrics  alarm latency  (not declared, left alone)" in capsys.readouterr().out
    assert prod("apply", environment, *only) == 0
    assert aws.mutations == []


def test_ctrl_c_ends_a_run_with_130_and_a_sentence(dynoxide: str, environment: str) -> None:
    holds = (
        "import sys, time; from tdev_models.migrations import apply, command;"
        "apply.time.sleep = lambda s, sleep=time.sleep: (print('waits', flush=True), sleep(30));"
        "sys.exit(command.main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holds, "apply", "--env", environment, "--set=like=dev", "--yes"],
        env={**os.environ, "AWS_ENDPOINT_URL": dynoxide, "AWS_REGION": "us-east-1"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while process.stdout.readline() != "waits\n":
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors


def test_github_shows_refusals_and_errors_as_annotations(
    aws: StrictAws,
    like_prod: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    capsys.readouterr()
    assert run("plan", like_prod, "--set=like=dev", "--table=metrics") == 3
    lines = capsys.readouterr().err.splitlines()
    assert "::error::metrics  protection: on -> off  (destructive; --allow disable-protection:" in (
        " ".join(lines)
    )
    assert all(line.startswith(("::error::", "::warning::")) for line in lines)
