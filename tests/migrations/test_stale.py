"""Plans that are old when applied, live state that lags, and runs that interfere."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.exceptions import (
    CredentialRetrievalError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from tdev_models.errors import TdevError
from tdev_models.migrations import calls, declared, environments
from tdev_models.migrations.apply import Run
from tdev_models.migrations.calls import OPERATIONS, Calls, InProgress
from tdev_models.migrations.command import main
from tdev_models.migrations.declared import Table
from tdev_models.migrations.plan import Refused, plan
from tdev_models.settings import Settings
from tests.migrations.conftest import ENDPOINT
from tests.migrations.runs import apply, declare, model, prod
from tests.migrations.strict import StrictAws, _error, _invalid

SCALED = {"billing": "provisioned", "autoscaling": True, "alarms": True}
TRANSIENT: dict[str, Callable[[str], Exception]] = {
    "throttled": lambda operation: _error(operation, "ThrottledException", "slow down"),
    "5xx": lambda operation: _error(operation, "", "bad gateway", status=502),
    "no connection": lambda operation: EndpointConnectionError(endpoint_url=ENDPOINT),
    "no answer": lambda operation: ReadTimeoutError(endpoint_url=ENDPOINT),
    "no credentials now": lambda operation: CredentialRetrievalError(provider="x", error_msg="y"),
}


@contextmanager
def rule(aws: StrictAws, name: str, function: Any) -> Iterator[None]:
    """Replace one rule of the strict AWS."""
    setattr(aws, name, function)
    try:
        yield
    finally:
        delattr(aws, name)


def scale_to_40(aws: StrictAws, table: Table) -> None:
    units = {"ReadCapacityUnits": 40, "WriteCapacityUnits": 40}
    aws.by_hand("dynamodb", "UpdateTable", TableName=table.name, ProvisionedThroughput=units)
    aws.forget()


def units_of(aws: StrictAws, table: Table) -> int:
    live = aws.by_hand("dynamodb", "DescribeTable", TableName=table.name)["Table"]
    units: int = live["ProvisionedThroughput"]["WriteCapacityUnits"]
    return units


# ------------------------------------------------------------------------ old plans


def test_an_index_that_another_run_has_replaced_is_not_replaced_again(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({"by-a": ["a"]})))
    new = declare(settings, model({"by-a": ["a", "b"]}))
    allowed = {"replace-index:things/by-a"}
    planned = plan(Calls(settings), new, allowed)
    assert apply(settings, new, allowed) == 2
    aws.forget()
    assert Run(Calls(settings), allowed, timeout_seconds=20).apply(planned) == 0
    assert aws.mutations == []


def test_capacity_that_was_scaled_since_the_plan_stays(aws: StrictAws, settings: Settings) -> None:
    apply(settings, declare(settings, model({})))
    new = declare(settings, model({}), **SCALED)
    allowed = {"end-on-demand:things"}
    planned = plan(Calls(settings), new, allowed)
    apply(settings, new, allowed)
    scale_to_40(aws, new[0])
    Run(Calls(settings), allowed, timeout_seconds=20).apply(planned)
    assert units_of(aws, new[0]) == 40


def test_backups_that_were_prolonged_since_the_plan_are_not_shortened(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({}), backup_days=7))
    planned = plan(Calls(settings), declare(settings, model({}), backup_days=14))
    apply(settings, declare(settings, model({}), backup_days=35))
    with pytest.raises(Refused, match="shorten-pitr"):
        Run(Calls(settings), timeout_seconds=20).apply(planned)


def test_what_an_older_release_removed_meanwhile_is_created_again_before_the_run_ends(
    aws: StrictAws, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(settings, declare(settings, model({"by-a": ["a"], "by-b": ["b"]}), **SCALED))
    old = declare(settings, model({"by-a": ["a"]}), **SCALED)
    new = declare(settings, model({"by-a": ["a"], "by-b": ["b", "c"]}), **SCALED)
    send, pending = aws.call, [old]

    def call(client: Any, operation: str, params: dict[str, Any]) -> Any:
        if pending and "Create" in str(params.get("GlobalSecondaryIndexUpdates")):
            apply(settings, pending.pop())  # by-b is gone, so the older release drops its alarms
        return send(client, operation, params)

    monkeypatch.setattr(aws, "call", call)
    apply(settings, new, {"replace-index:things/by-b"})
    assert "DeleteAlarms" in aws.mutations
    assert not [change for change in plan(Calls(settings), new)[0].changes if change.pending]


# ------------------------------------------------------------------------ what is allowed


def test_what_is_impossible_stays_refused_whatever_is_allowed(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({"by-a": ["a"], "by-x": ["a", "x"]})))
    aws.forget()
    mine = declare(settings, model({"by-a": ["a"]}, number=frozenset("a")))
    with pytest.raises(Refused, match="by-x gives a another type"):
        apply(settings, mine, {"replace-index:things/by-a"})
    assert aws.mutations == []


def test_an_undeclared_index_in_the_way_is_dropped_once_allowed(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({"old": ["a"]})))
    new = declare(settings, model({"new": ["a"]}, number=frozenset("a")))
    with pytest.raises(Refused, match="old gives a another type"):
        apply(settings, new)
    assert apply(settings, new, {"delete-index:things/old"}) == 2


def test_an_undeclared_ttl_stays_on_until_turning_it_off_is_allowed(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({}, ttl="expires_at")))
    old = declare(settings, model({}))
    (change,) = plan(Calls(settings), old)[0].changes
    assert (change.symbol, change.target) == ("=", declared.TTL)
    assert apply(settings, old) == 0
    assert apply(settings, old, {"disable-ttl:things"}) == 1
    assert apply(settings, old, {"disable-ttl:things"}) == 0


def test_apply_asks_even_while_a_part_of_the_table_cannot_be_read_yet(
    aws: StrictAws, like_prod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"t-developer-{like_prod}-metrics"
    off = {"PointInTimeRecoveryEnabled": False}
    aws.by_hand(
        "dynamodb",
        "UpdateContinuousBackups",
        TableName=name,
        PointInTimeRecoverySpecification=off,
    )
    aws.look_creating(name, times=1)
    aws.forget()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["apply", "--env", like_prod, "--set=like=prod", "--table=metrics"]) == 64
    assert aws.mutations == []


def test_a_new_index_of_a_scaled_table_starts_with_the_units_of_the_table(
    aws: StrictAws, settings: Settings
) -> None:
    old = declare(settings, model({"by-a": ["a"]}), **SCALED)
    apply(settings, old)
    scale_to_40(aws, old[0])
    apply(settings, declare(settings, model({"by-a": ["a"], "by-b": ["b"]}), **SCALED))
    (made,) = [
        update["Create"]
        for _, operation, params in aws.calls
        if operation == "UpdateTable"
        for update in params.get("GlobalSecondaryIndexUpdates", [])
        if "Create" in update
    ]
    assert made["ProvisionedThroughput"]["WriteCapacityUnits"] == 40


# ------------------------------------------------------------------------ lag, passing failures


@pytest.mark.parametrize("times", [1, 2])
def test_what_another_run_did_may_show_late(aws: StrictAws, settings: Settings, times: int) -> None:
    apply(settings, declare(settings, model({})))
    new = declare(settings, model({}, ttl="expires_at"))
    planned = plan(Calls(settings), new)
    apply(settings, new)
    left = [{"TimeToLiveStatus": "DISABLED"}] * times

    def late(params: Any, answer: dict[str, Any]) -> None:
        if left:
            answer["TimeToLiveDescription"] = left.pop()

    with rule(aws, "_after_DescribeTimeToLive", late):
        assert Run(Calls(settings), timeout_seconds=20).apply(planned) == 0


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("failure", TRANSIENT)
def test_every_operation_stands_one_transient_failure(
    aws: StrictAws,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
    carried_out: bool,
) -> None:
    send, failed = aws.call, set()

    def call(client: Any, operation: str, params: dict[str, Any]) -> Any:
        if operation in failed:
            return send(client, operation, params)
        failed.add(operation)
        if carried_out:
            send(client, operation, params)
        raise TRANSIENT[failure](operation)

    monkeypatch.setattr(aws, "call", call)
    old = declare(settings, model({"by-a": ["a"]}), **SCALED, encryption="kms", backup_days=7)
    new = declare(settings, model({"by-b": ["b"]}, ttl="gone_at"), tags={"team": "x"})
    allowed = {"disable-pitr:things", "delete-index:things/by-a"}
    allowed |= {"change-key:things", "silence-alarms:things"}
    for tables in (old, new):
        apply(settings, tables, allowed)
        assert apply(settings, tables, allowed) == 0
    of_the_command = {"ListTables", "GetMetricStatistics", "GetCallerIdentity"}
    assert failed >= OPERATIONS.keys() - of_the_command - {"UpdateItem"}  # of backfills


@pytest.mark.parametrize(
    ("operation", "code", "text"),
    [
        ("RegisterScalableTarget", "ValidationException", "Unable to assume IAM role: arn:x"),
        ("PutScalingPolicy", "FailedResourceAccessException", "Rate exceeded (AmazonCloudWatch)"),
        ("DescribeScalingPolicies", "FailedResourceAccessException", "Rate exceeded"),
        ("PutMetricAlarm", "ResourceConflict", "in progress"),
    ],
)
def test_a_failure_that_passes_is_tried_again(
    aws: StrictAws, settings: Settings, operation: str, code: str, text: str
) -> None:
    left = [_error(operation, code, text) for _ in range(3)]
    usual = getattr(aws, f"_before_{operation}", lambda params: None)

    def before(params: Any) -> Any:
        if left:
            raise left.pop()
        return usual(params)

    with rule(aws, f"_before_{operation}", before):
        apply(settings, declare(settings, model({}), **SCALED))
    assert left == []


@pytest.mark.usefixtures("short_reads")
def test_a_part_that_is_not_reported_in_time_is_in_progress_and_not_done(
    aws: StrictAws, settings: Settings
) -> None:
    def before(params: Any) -> None:
        raise _invalid(
            "DescribeTimeToLive", "Cannot describe time to live while table is in CREATING state"
        )

    apply(settings, declare(settings, model({})))
    new = declare(settings, model({}, ttl="expires_at"))
    with (
        rule(aws, "_before_DescribeTimeToLive", before),
        pytest.raises(InProgress, match="to report ttl"),
    ):
        Run(Calls(settings), timeout_seconds=0.5).apply(plan(Calls(settings), new))
    assert apply(settings, new) == 1


def test_the_other_tables_are_applied_while_one_has_to_wait_an_hour(
    aws: StrictAws, settings: Settings
) -> None:
    tables = declared.tables(settings, environments.load("dev"))
    apply(settings, tables[:1])
    aws.by_hand(
        "dynamodb",
        "UpdateTimeToLive",
        TableName=tables[0].name,
        TimeToLiveSpecification={"Enabled": False, "AttributeName": "expires_at"},
    )
    aws.one_ttl_change_an_hour = True
    aws.forget()
    with pytest.raises(InProgress, match="within a fixed interval"):
        apply(settings, tables)
    assert aws.mutations.count("CreateTable") == 3


def test_an_operation_that_aws_rejects_as_unknown_is_an_error_and_no_clean_plan(
    aws: StrictAws,
    like_prod: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calls, "_AWS_HOSTS", ("localhost",))  # moto stands for AWS

    def before(params: Any) -> None:
        raise _error("DescribeAlarms", "UnknownOperationException", "")

    with rule(aws, "_before_DescribeAlarms", before):
        assert prod("plan", like_prod, "--table=metrics") == 1
    assert "check AWS_ENDPOINT_URL" in capsys.readouterr().err


def test_a_change_that_the_engine_ignores_is_an_error_that_says_what_does_not_show(
    aws: StrictAws, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "LOCAL", calls.LOCAL._replace(visible=0.2))
    tables = declare(settings, model({}), backup_days=35)
    aws._before_UpdateContinuousBackups = lambda params: {}  # type: ignore[method-assign, assignment]
    with pytest.raises(TdevError) as ignored:
        apply(settings, tables)
    assert str(ignored.value) == (
        "+ things  pitr: 35 days: the change was accepted but does not show: another run undoes it,"
        " or the engine ignores it"
    )
