from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tdev_models.errors import AccessDenied
from tdev_models.migrations import declared, environments
from tdev_models.migrations.apply import Run
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import Table
from tdev_models.migrations.plan import Refused, plan
from tdev_models.settings import Settings
from tests.migrations.runs import apply, declare, model, prod, run
from tests.migrations.strict import StrictAws

SAFE = {"deletion_protection": True, "backup_days": 35}
OLD = model({"by-a": ["a"], "by-b": ["b"]}, ttl=None)

# The declaration that loses something, and the one name that allows it.
LOSSES: dict[str, tuple[Callable[[Settings], list[Table]], str]] = {
    "deletion protection off": (
        lambda s: declare(s, OLD, **{**SAFE, "deletion_protection": False}),
        "disable-protection:things",
    ),
    "backups off": (lambda s: declare(s, OLD, **{**SAFE, "backup_days": 0}), "disable-pitr:things"),
    "backups shorter": (
        lambda s: declare(s, OLD, **{**SAFE, "backup_days": 7}),
        "shorten-pitr:things",
    ),
    "another sort key of an index": (
        lambda s: declare(s, model({"by-a": ["a", "b"], "by-b": ["b"]}), **SAFE),
        "replace-index:things/by-a",
    ),
    "another projection of an index": (
        lambda s: declare(
            s, model({"by-a": ["a"], "by-b": ["b"]}, include=frozenset({"by-a"})), **SAFE
        ),
        "replace-index:things/by-a",
    ),
    "another type of an index's key": (
        lambda s: declare(s, model({"by-a": ["a"], "by-b": ["b"]}, number=frozenset("a")), **SAFE),
        "replace-index:things/by-a",
    ),
    "TTL on expired rows": (
        lambda s: declare(s, model({"by-a": ["a"], "by-b": ["b"]}, ttl="gone_at"), **SAFE),
        "enable-ttl:things",
    ),
}


@pytest.fixture
def name(aws: StrictAws, settings: Settings) -> str:
    """A table with rows, one of them expired for TTL on `gone_at`."""
    tables = declare(settings, OLD, **SAFE)
    apply(settings, tables)
    for number in range(5):
        item = {"thing_id": {"S": str(number)}, "gone_at": {"N": "9999999999"}}
        if number == 3:
            item["gone_at"] = {"N": str(int(settings.clock()) - 60)}
        aws.by_hand("dynamodb", "PutItem", TableName=tables[0].name, Item=item)
    aws.forget()
    return tables[0].name


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_refused_before_any_mutation_unless_allowed_by_its_exact_name(
    aws: StrictAws, settings: Settings, name: str, loss: str
) -> None:
    declaration, allowance = LOSSES[loss]
    tables = declaration(settings)
    others = {allowed for _, allowed in LOSSES.values()} - {allowance}
    others |= {f"{allowance}-x", "replace-index:things/by-b", "delete-index:things/by-a"}
    for allowed in (set[str](), others):
        with pytest.raises(Refused, match=f"--allow {allowance}"):
            apply(settings, tables, allowed)
    assert aws.mutations == []
    apply(settings, tables, {allowance})
    assert apply(settings, tables) == 0


def test_indexes_that_share_a_key_of_another_type_are_all_dropped_before_any_is_created(
    aws: StrictAws, settings: Settings
) -> None:
    indexes = {"by-a": ["a", "d"], "by-b": ["b", "d"]}
    apply(settings, declare(settings, model(indexes)))
    changed = declare(settings, model(indexes, number=frozenset("d")))
    allowed = {"replace-index:things/by-a"}
    with pytest.raises(Refused):
        apply(settings, changed, allowed)
    assert apply(settings, changed, {*allowed, "replace-index:things/by-b"}) == 4
    assert apply(settings, changed) == 0


def test_an_index_is_dropped_only_by_its_exact_name(
    aws: StrictAws, settings: Settings, name: str
) -> None:
    smaller = declare(settings, model({"by-a": ["a"]}), **SAFE)
    assert apply(settings, smaller, {"delete-index:things/by-c", "replace-index:things/by-b"}) == 0
    assert apply(settings, smaller, {"delete-index:things/by-b"}) == 1
    live = aws.by_hand("dynamodb", "DescribeTable", TableName=name)["Table"]
    assert [index["IndexName"] for index in live["GlobalSecondaryIndexes"]] == ["by-a"]


def test_another_key_is_impossible_and_the_error_names_the_remedy(
    aws: StrictAws, settings: Settings, name: str
) -> None:
    tables = declare(settings, OLD, **SAFE)
    aws.by_hand("dynamodb", "UpdateTable", TableName=name, DeletionProtectionEnabled=False)
    aws.by_hand("dynamodb", "DeleteTable", TableName=name)
    aws.by_hand(
        "dynamodb",
        "CreateTable",
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "thing_id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "thing_id", "KeyType": "HASH"}],
    )
    with pytest.raises(Refused, match="copy the rows"):
        apply(settings, tables)
    assert aws.mutations == []


def test_one_refused_table_stops_every_table(aws: StrictAws, like_prod: str) -> None:
    aws.forget()
    assert run("apply", like_prod, "--set", "like=dev") == 3
    assert run("plan", like_prod, "--set", "like=dev") == 3
    assert aws.mutations == []


# ------------------------------------------------------------------------ rows


def set_to(aws: StrictAws, name: str, **attributes: dict[str, Any]) -> None:
    item = {"thing_id": {"S": f"row {attributes}"[:60]}, **attributes}
    aws.by_hand("dynamodb", "PutItem", TableName=name, Item=item)


def test_rows_that_a_new_index_would_leave_out_are_counted_and_shown_before_it_is_created(
    aws: StrictAws, settings: Settings, name: str
) -> None:
    set_to(aws, name, c={"N": "1"}, d={"S": "fine"})
    set_to(aws, name, c={"BOOL": True}, d={"S": "fine"})
    set_to(aws, name, c={"S": ""}, d={"S": "x" * 1025})
    set_to(aws, name, c={"S": "x" * 2048}, d={"S": "x" * 1024})
    set_to(aws, name, c={"S": "x" * 2049})
    tables = declare(
        settings, model({"by-a": ["a"], "by-b": ["b"], "by-c": ["c", "d"]}, None), **SAFE
    )
    with pytest.raises(Refused) as refused:
        apply(settings, tables)
    assert aws.mutations == []
    for fault in (
        "1 with c of type N instead of S, such as thing_id=row",
        "1 with c of type BOOL instead of S",
        "1 with an empty c",
        "1 with d over 1024 bytes",
        "1 with c over 2048 bytes",
    ):
        assert fault in str(refused.value)


def test_plan_checks_one_page_of_rows_and_apply_checks_all(
    aws: StrictAws, settings: Settings, name: str
) -> None:
    tables = declare(settings, model({"by-a": ["a"], "by-b": ["b"], "by-c": ["c"]}), **SAFE)
    plan(Calls(settings), tables)
    assert [op for _, op, _ in aws.calls].count("Scan") == 1
    set_to(aws, name, c={"N": "1"})
    (planned,) = plan(Calls(settings), tables)
    assert [change.symbol for change in planned.changes] == ["!"]


def test_rows_that_expired_years_ago_do_not_count_since_ttl_never_deletes_them(
    aws: StrictAws, settings: Settings
) -> None:
    tables = declare(settings, model({}))
    apply(settings, tables)
    long_ago = str(int(settings.clock()) - 6 * 365 * 86400)
    set_to(aws, tables[0].name, gone_at={"N": long_ago})
    set_to(aws, tables[0].name, gone_at={"S": "yesterday"})
    assert apply(settings, declare(settings, model({}, ttl="gone_at"))) == 1


def test_the_rows_of_every_table_that_forbid_a_change_are_said_together(
    aws: StrictAws, settings: Settings
) -> None:
    tables = declared.tables(settings, environments.load("dev"))[:2]
    apply(settings, tables)
    for table in tables:
        off = {"Enabled": False, "AttributeName": "expires_at"}
        aws.by_hand(
            "dynamodb", "UpdateTimeToLive", TableName=table.name, TimeToLiveSpecification=off
        )
        row = {key.name: {"S": "row"} for key in table.state[declared.KEYS]}
        row["expires_at"] = {"N": str(int(settings.clock()) - 1)}
        aws.by_hand("dynamodb", "PutItem", TableName=table.name, Item=row)
    calls = Calls(settings)
    with pytest.raises(Refused, match=r"enable-ttl:pipeline-sessions; .*enable-ttl:agent-exec"):
        Run(calls).apply(plan(calls, tables, rows=False))


# ------------------------------------------------------------------------ permissions


ENDS = {
    "delete-index:things/by-b",
    "disable-protection:things",
    "disable-pitr:things",
    "change-key:things",
    "end-on-demand:things",
    "silence-alarms:things",
}


def _stages(settings: Settings) -> list[tuple[list[Table], set[str]]]:
    """Every kind of step: a small declaration, a large one, and the small one again."""
    profile: dict[str, Any] = {"billing": "provisioned", "autoscaling": True, "alarms": True}
    profile |= {"encryption": "kms", "tags": {"team": "x"}, **SAFE}
    small = declare(settings, model({}))
    large = declare(settings, model({"by-b": ["b"]}, ttl="gone_at"), **profile)
    return [(small, set()), (large, ENDS), (small, ENDS)]


def test_denying_each_action_names_it_and_once_allowed_a_rerun_is_clean(
    aws: StrictAws, settings: Settings, subtests: pytest.Subtests
) -> None:
    _apply_stages(settings, _stages(settings))
    operations = list(dict.fromkeys(operation for _, operation, _ in aws.calls))
    assert len(operations) >= 17
    for operation in operations:
        with subtests.test(operation):
            aws.reset()
            aws.denied = {operation}
            left = _stages(settings)
            with pytest.raises(AccessDenied, match=f":{operation} on .+ is not allowed"):
                _apply_stages(settings, left)
            aws.denied = set()
            tables, allowed = left[0]
            apply(settings, tables, allowed)
            assert apply(settings, tables, allowed) == 0


def _apply_stages(settings: Settings, stages: list[tuple[list[Table], set[str]]]) -> None:
    """Apply each stage, and leave in the list those that are not applied."""
    while stages:
        apply(settings, *stages[0])
        del stages[0]


def test_a_part_that_may_not_be_read_is_unknown_and_never_absent(
    aws: StrictAws, like_prod: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for operation in ("DescribeContinuousBackups", "DescribeAlarms", "DescribeKey"):
        aws.forget()
        aws.denied = {operation}
        capsys.readouterr()
        assert prod("plan", like_prod, "--table=metrics") == 1
        shown = capsys.readouterr()
        assert "not checked: " in shown.out
        assert "\n+ " not in shown.out
        assert f":{operation} on " in shown.err
        assert prod("apply", like_prod, "--table=metrics") == 1
        assert aws.mutations == []


def test_what_failed_of_each_table_is_said(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.denied = {"PutMetricAlarm"}
    assert prod("apply", environment, "--table=metrics", "--table=user-projects") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{environment}-metrics" in said
    assert f"{environment}-user-projects" in said
