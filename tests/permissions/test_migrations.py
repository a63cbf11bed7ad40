"""Migrations, backfills and `tdev rekey` in the roles that `tdev iam` prints for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tdev_models import Settings, settings, sync
from tdev_models.cli import main
from tdev_models.migrations.calls import OPERATIONS
from tdev_models.migrations.command import main as migrate
from tests import raw
from tests.conftest import make_tables
from tests.migrations.runs import prod, run
from tests.permissions.account import EVERYTHING, Account, Statement, forget_credentials, listed
from tests.permissions.conftest import Printed

LIKE_PROD = ("--set", "like=prod")
ONE_TABLE = "--table=agent-executions"  # which has all there is to make
LOSSES = ("disable-protection", "disable-pitr", "change-key", "silence-alarms", "end-on-demand")
ALLOWED = [f"--allow={loss}:user-projects" for loss in LOSSES]
TAGGED = ("--set", 'tags={team="x"}', *ALLOWED)
# What the first run needs, what later ones need that take away, and what is needed elsewhere:
# to check and fill rows, to warn of a change of billing, to say which account this is.
FIRST = {
    *("DescribeTable", "DescribeTimeToLive", "DescribeContinuousBackups", "ListTagsOfResource"),
    *("DescribeScalableTargets", "DescribeScalingPolicies", "DescribeAlarms", "DescribeKey"),
    *("CreateTable", "UpdateTimeToLive", "UpdateContinuousBackups"),
    *("RegisterScalableTarget", "PutScalingPolicy", "PutMetricAlarm"),
}
LATER = {"UpdateTable", "DeregisterScalableTarget", "DeleteAlarms", "TagResource"}
ELSEWHERE = {"ListTables", "Scan", "UpdateItem", "GetMetricStatistics", "GetCallerIdentity"}
OF_ALL_TABLES = {"DescribeScalableTargets", "DescribeKey"}


def denied(role: Account) -> set[str]:
    return {one.action for one in role.judged() if one.verdict == "denied"}


def less(statements: Sequence[Statement], action: str) -> list[Statement]:
    """Return a policy that does not allow an action."""
    kept = [(one, [two for two in listed(one["Action"]) if two != action]) for one in statements]
    return [{**one, "Action": actions} for one, actions in kept if actions]


def test_each_operation_is_tried() -> None:
    assert OPERATIONS.keys() == FIRST | LATER | ELSEWHERE
    assert not FIRST & LATER | FIRST & ELSEWHERE | LATER & ELSEWHERE


def test_the_printed_roles_suffice(role: Account, printed: Printed, environment: str) -> None:
    migrations = printed("migrations", environment, *LIKE_PROD)
    role.may(migrations)
    assert prod("apply", environment) == 0
    role.may(printed("plan", environment, *LIKE_PROD))
    assert prod("status", environment) == 0
    assert run("plan", environment, "--table=user-projects", *TAGGED, "--set", "like=dev") == 2
    assert denied(role) == set()
    role.may(migrations)
    changed = ("apply", environment, *TAGGED, "--set", "like=dev")
    assert run(*changed, "--table=user-projects") == 0
    assert prod("apply", environment, *ALLOWED) == 0
    assert denied(role) == set()


@pytest.mark.parametrize("operation", sorted(FIRST))
def test_a_first_run_without_a_permission_names_it_and_another_run_goes_on(
    role: Account,
    printed: Printed,
    environment: str,
    operation: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    action = f"{OPERATIONS[operation][0]}:{operation}"
    policy = printed("migrations", environment, *LIKE_PROD)
    role.may(less(policy, action))
    assert prod("apply", environment, ONE_TABLE) == 1
    error = capsys.readouterr().err
    assert f"{action} on " in error
    assert environment in error or operation in OF_ALL_TABLES
    assert denied(role) == {action}
    role.may(policy)
    assert prod("apply", environment, ONE_TABLE) == 0
    assert prod("status", environment, ONE_TABLE) == 0


@pytest.mark.parametrize("operation", sorted(LATER))
def test_a_later_run_without_a_permission_names_it_and_another_run_goes_on(
    role: Account,
    printed: Printed,
    environment: str,
    operation: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    action = f"{OPERATIONS[operation][0]}:{operation}"
    policy = printed("migrations", environment, *LIKE_PROD)
    role.may(policy)
    assert prod("apply", environment, "--table=user-projects") == 0
    role.may(less(policy, action))
    changed = ("--table=user-projects", *TAGGED, "--set", "like=dev")
    assert run("apply", environment, *changed) == 1
    assert f"{action} on " in capsys.readouterr().err
    assert denied(role) == {action}
    role.may(policy)
    assert run("apply", environment, *changed) == 0
    assert run("status", environment, *changed) == 0


def test_other_environments_tables_alone_are_not_listed_without_the_permission(
    role: Account,
    printed: Printed,
    environment: str,
) -> None:
    role.may(less(printed("migrations", environment, *LIKE_PROD), "dynamodb:ListTables"))
    assert prod("apply", environment) == 0
    assert denied(role) == {"dynamodb:ListTables"}


def test_one_environments_role_changes_nothing_of_another_of_like_name(
    role: Account,
    printed: Printed,
    environment: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = f"{environment}-eu"
    role.may(printed("migrations", environment, *LIKE_PROD))
    assert prod("apply", other) == 1
    assert f"t-developer-{other}-" in capsys.readouterr().err
    role.may(EVERYTHING)
    assert prod("status", other) == 2, "a table was made"
    assert prod("apply", other) == 0
    role.may(printed("migrations", environment, *LIKE_PROD))
    role.judged()
    assert run("apply", other, *TAGGED, "--set", "like=dev") == 1
    allowed = {one.action for one in role.judged() if one.verdict == "allowed"}
    assert all(action.split(":")[1].startswith(("Describe", "List")) for action in allowed)


@pytest.fixture
def store(role: Account, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Tables with rows, in clear, of which one lacks what a backfill fills."""
    with role.administered():
        made = make_tables(role.endpoint)
        monkeypatch.setattr(settings, "_configured", made)
        sync.save_user_project(user_id="u", project_id="p", description="secret")
        item = {"status": {"S": "FAILED"}, "last_updated": {"N": "1"}}
        raw.put_attribute(made, "pipeline-sessions", "old", **item)
    with settings.use(made, transport=None) as chosen:
        monkeypatch.setattr(settings, "_configured", chosen)
    return chosen


def test_backfills_may_write_rows_and_nothing_else(
    role: Account, printed: Printed, store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    function = "tdev_models.migrations.backfills:session_due_at"
    chosen = ("--env", store.environment, "--set", "like=dev", "--yes")
    policy = printed("backfill", store.environment)
    for action in ("dynamodb:Scan", "dynamodb:UpdateItem"):
        role.may(less(policy, action))
        assert migrate(["backfill", *chosen, "pipeline-sessions", function]) == 1
        assert f"{action} on {store.table_name('pipeline-sessions')}" in capsys.readouterr().err
    role.may(policy)
    assert migrate(["backfill", *chosen, "pipeline-sessions", function]) == 0
    with role.administered():
        assert "due_at" in (raw.item(store, "pipeline-sessions", "old") or {})


def test_rekey_needs_what_its_role_allows(
    role: Account,
    printed: Printed,
    store: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = role.new_key()
    with settings.use(store, kms_key=key, retry_seconds=0.2) as chosen:
        monkeypatch.setattr(settings, "_configured", chosen)
        policy = printed("rekey", store.environment)
        for action in ("dynamodb:Scan", "dynamodb:UpdateItem", "kms:GenerateDataKey"):
            role.may(less(policy, action))
            forget_credentials()  # and data keys
            assert main(["rekey", "--yes"]) == 1
            shown = "".join(capsys.readouterr())
            assert action in shown
            assert store.environment in shown or key in shown
        role.may(policy)
        role.judged()
        assert main(["rekey", "--yes", "--delete-old"]) == 0
        assert denied(role) == set()
    with role.administered():
        item = raw.item(store, "user-projects", "u", "p") or {}
    assert "description" not in item
    assert "description_encrypted" in item
