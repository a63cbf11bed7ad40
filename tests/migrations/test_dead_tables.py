"""Tables that nobody can use, that somebody deleted, and that were restored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.migrations.runs import prod
from tests.migrations.strict import StrictAws

SHORT = "pipeline-sessions"
ONLY = ("--table", SHORT)
DEAD = (
    "ARCHIVED",
    "ARCHIVING",
    "INACCESSIBLE_ENCRYPTION_CREDENTIALS",
    "REPLICATION_NOT_AUTHORIZED",
)


@pytest.fixture
def name(aws: StrictAws, environment: str) -> str:
    assert prod("apply", environment, *ONLY) == 0
    aws.forget()
    return f"t-developer-{environment}-{SHORT}"


def delete(aws: StrictAws, name: str) -> None:
    aws.by_hand("dynamodb", "UpdateTable", TableName=name, DeletionProtectionEnabled=False)
    aws.by_hand("dynamodb", "DeleteTable", TableName=name)


@pytest.mark.parametrize("status", DEAD)
def test_a_table_that_nobody_can_use_is_an_error_and_not_as_declared(
    aws: StrictAws,
    environment: str,
    name: str,
    status: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    described = aws._after_DescribeTable

    def after(params: dict[str, Any], answer: Any) -> None:
        described(params, answer)
        answer["Table"]["TableStatus"] = status

    monkeypatch.setattr(aws, "_after_DescribeTable", after)
    for what in ("plan", "status", "apply"):
        assert prod(what, environment, *ONLY) == 1
        shown = capsys.readouterr()
        assert f"! {SHORT}  table  (the table is {status}: " in shown.out
        assert f"the table is {status}: " in shown.err
        assert "No changes" not in shown.out
    assert aws.mutations == []


def test_a_table_that_was_deleted_by_hand_is_made_anew_only_when_that_is_allowed(
    aws: StrictAws, environment: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    delete(aws, name)
    for what in ("plan", "apply"):
        assert prod(what, environment, *ONLY) == 3
        assert "Restore it from its backup first" in capsys.readouterr().err
    assert aws.mutations == []
    allowed = ("--allow", f"recreate-table:{SHORT}")
    assert prod("apply", environment, *ONLY, "--allow", "recreate-table:metrics") == 3
    assert prod("apply", environment, *ONLY, *allowed) == 0
    assert prod("plan", environment, *ONLY) == 0


@pytest.mark.parametrize("left", ["scaling", "alarms"])
def test_one_of_the_two_that_stay_is_enough_to_know_that_a_table_was_deleted(
    aws: StrictAws, environment: str, name: str, left: str
) -> None:
    delete(aws, name)
    if left == "scaling":
        alarms = aws.by_hand("cloudwatch", "DescribeAlarms", AlarmNamePrefix=f"{name}/")
        names = [alarm["AlarmName"] for alarm in alarms["MetricAlarms"]]
        aws.by_hand("cloudwatch", "DeleteAlarms", AlarmNames=names)
        assert prod("plan", environment, *ONLY) == 3
    else:
        without = ("--set", "autoscaling=false")
        assert prod("plan", environment, *ONLY, *without) == 3


def test_a_restored_table_is_brought_back_whole_with_its_rows(
    aws: StrictAws, environment: str, name: str
) -> None:
    item = {"session_id": {"S": "s1"}}
    aws.by_hand("dynamodb", "PutItem", TableName=name, Item=item)
    backup = aws.by_hand("dynamodb", "CreateBackup", TableName=name, BackupName="nightly")
    delete(aws, name)
    assert prod("apply", environment, *ONLY) == 3
    aws.by_hand(
        "dynamodb",
        "RestoreTableFromBackup",
        TargetTableName=name,
        BackupArn=backup["BackupDetails"]["BackupArn"],
        BillingModeOverride="PROVISIONED",
        ProvisionedThroughputOverride={"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
    )
    # A restore brings back rows, keys and indexes; on AWS nothing else, which moto keeps or loses.
    aws.encrypt_by_hand(name, None)
    aws.by_hand("dynamodb", "UpdateTable", TableName=name, DeletionProtectionEnabled=False)
    assert prod("apply", environment, *ONLY) == 0
    assert prod("plan", environment, *ONLY) == 0
    made = {operation for _, operation, params in aws.calls if operation in aws.mutations}
    assert {"UpdateTable", "UpdateTimeToLive", "UpdateContinuousBackups", "TagResource"} <= made
    assert aws.by_hand("dynamodb", "Scan", TableName=name)["Items"] == [item]
