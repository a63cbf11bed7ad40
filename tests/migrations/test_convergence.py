from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from tdev_models.errors import TdevError
from tdev_models.migrations import declared, environments
from tdev_models.migrations.apply import Run
from tdev_models.migrations.calls import Calls, InProgress
from tdev_models.migrations.declared import Property, Table
from tdev_models.migrations.plan import plan
from tdev_models.models import Metric
from tdev_models.settings import Settings
from tests.migrations.runs import apply, declare, everything_allowed, model, prod, run
from tests.migrations.strict import Killed, StrictAws

# ------------------------------------------------------------------------ killed, throttled, slow


def _dev(settings: Settings) -> tuple[list[Table], list[Table]]:
    return [], declared.tables(settings, environments.load("dev"))[:2]


def _prod(settings: Settings) -> tuple[list[Table], list[Table]]:
    return [], declared.tables(settings, environments.load("prod"), [Metric])


def _upgrade(settings: Settings) -> tuple[list[Table], list[Table]]:
    """One release that changes everything that can change about an existing table."""
    old = model({"by-a": ["a"], "by-b": ["b"]}, ttl="old_expiry")
    new = model({"by-a": ["a", "b"], "by-c": ["c"]}, ttl="expires_at")
    prod = {"deletion_protection": True, "backup_days": 7, "encryption": "kms"}
    prod |= {"billing": "provisioned", "tags": {"team": "x"}}
    return declare(settings, old), declare(settings, new, **prod)


@pytest.mark.parametrize("case", [_dev, _prod, _upgrade])
def test_killed_before_or_after_any_mutation_the_next_run_ends_in_the_same_state(
    aws: StrictAws,
    settings: Settings,
    case: Callable[[Settings], tuple[list[Table], list[Table]]],
) -> None:
    old, new = case(settings)
    allowed = everything_allowed([*old, *new])
    apply(settings, old)
    aws.forget()
    apply(settings, new, allowed)
    total, expected = len(aws.mutations), _state(settings, new)
    assert total >= 4
    for number, when in itertools.product(range(1, total + 1), ("before", "after")):
        aws.reset()
        apply(settings, old)
        aws.forget()
        aws.kill_at = number, when
        with pytest.raises(Killed):
            apply(settings, new, allowed)
        sent = aws.mutations
        aws.forget()
        apply(settings, new, allowed)
        assert "DeleteTable" not in [*sent, *aws.mutations]
        assert _state(settings, new) == expected


def test_runs_that_are_each_killed_after_one_change_create_prod_together(
    aws: StrictAws, environment: str
) -> None:
    only = ["--table=pipeline-sessions"]
    runs = 0
    while True:
        aws.kill_at = 1, "after"
        try:
            assert prod("apply", environment, *only) == 0
            break
        except Killed:
            aws.forget()
            runs += 1
    assert runs >= 28
    assert prod("plan", environment, *only) == 0


def _state(settings: Settings, tables: list[Table]) -> list[declared.State]:
    return [planned.live.state for planned in plan(Calls(settings), tables)]


def test_throttling_and_in_use_are_tried_again(aws: StrictAws, environment: str) -> None:
    for operation in ("CreateTable", "DescribeTable", "PutMetricAlarm", "DescribeAlarms"):
        aws.throttled[operation] = 3
    assert prod("apply", environment, "--table", "metrics") == 0
    assert prod("plan", environment, "--table", "metrics") == 0


def test_a_run_that_takes_longer_than_the_timeout_is_still_in_progress(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.throttled["CreateTable"] = 10_000
    assert run("apply", environment, "--set", "like=dev", "--timeout", "0.3") == 5
    assert "run again" in capsys.readouterr().err
    aws.throttled.clear()
    assert run("apply", environment, "--set", "like=dev") == 0


def test_another_ttl_attribute_is_turned_on_an_hour_after_the_first_went_off(
    aws: StrictAws, settings: Settings
) -> None:
    apply(settings, declare(settings, model({}, ttl="old_expiry")))
    aws.one_ttl_change_an_hour = True
    aws.let_an_hour_pass()
    changed = declare(settings, model({}, ttl="new_expiry"))
    with pytest.raises(InProgress):
        apply(settings, changed)
    aws.let_an_hour_pass()
    assert apply(settings, changed) == 1
    assert apply(settings, changed) == 0


def test_only_what_a_step_may_have_changed_is_read_again_after_it(
    aws: StrictAws, environment: str
) -> None:
    assert prod("apply", environment, "--table", "metrics") == 0
    name = f"t-developer-{environment}-metrics"
    aws.by_hand("cloudwatch", "DeleteAlarms", AlarmNames=[f"{name}/system-errors"])
    aws.forget()
    assert prod("apply", environment, "--table", "metrics") == 0
    operations = [operation for _, operation, _ in aws.calls]
    assert operations.count("DescribeTable") == 2  # for the plan, and before the run ends
    assert operations.count("DescribeAlarms") == 3


# ------------------------------------------------------------------------ several at once


def _at_once(runs: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(runs)

    def run_one(number: int) -> None:
        try:
            results[number] = runs[number]()
        except TdevError as error:
            results[number] = error

    threads = [threading.Thread(target=run_one, args=(n,)) for n in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("runs", [2, 3])
def test_runs_of_the_same_commit_at_the_same_time_converge(
    aws: StrictAws, settings: Settings, runs: int
) -> None:
    tables = declared.tables(settings, environments.load("prod"))[2:]
    results = _at_once([lambda: apply(settings, tables)] * runs)
    assert all(isinstance(result, int) for result in results), results
    assert apply(settings, tables) == 0
    assert aws.mutations.count("CreateTable") <= 2 * runs


def test_runs_that_remove_the_same_things_converge(aws: StrictAws, settings: Settings) -> None:
    profile = {"billing": "provisioned", "autoscaling": True, "alarms": True}
    apply(settings, declare(settings, model({"by-a": ["a"], "by-b": ["b"]}, ttl="t"), **profile))
    small = declare(settings, model({"by-a": ["a", "b"]}))
    allowed = {
        "delete-index:things/by-b",
        "replace-index:things/by-a",
        "silence-alarms:things",
    }
    results = _at_once([lambda: apply(settings, small, allowed)] * 3)
    assert all(isinstance(result, int) for result in results), results
    assert apply(settings, small) == 0


@pytest.mark.parametrize("grows", [True, False])
def test_what_another_run_did_since_the_plan_is_not_done_twice(
    aws: StrictAws, settings: Settings, grows: bool
) -> None:
    profile = {"billing": "provisioned", "autoscaling": True, "alarms": True}
    small = declare(settings, model({"by-a": ["a"]}))
    large = declare(settings, model({"by-a": ["a"], "by-b": ["b"]}, ttl="gone_at"), **profile)
    old, new = (small, large) if grows else (large, small)
    allowed = {f"{name}:things" for name in ("silence-alarms", "end-on-demand")}
    allowed.add("delete-index:things/by-b")
    apply(settings, old)
    planned = plan(Calls(settings), new, allowed)
    assert apply(settings, new, allowed) > 8
    expected = _state(settings, new)
    assert Run(Calls(settings), allowed, timeout_seconds=20).apply(planned) <= 2
    assert _state(settings, new) == expected


def test_an_older_commit_leaves_what_a_newer_one_creates(
    aws: StrictAws, settings: Settings
) -> None:
    profile = environments.load("prod")
    old = declared.tables(settings, profile, [model({"by-a": ["a"]})])
    new = declared.tables(settings, profile, [model({"by-a": ["a"], "by-b": ["b", "c"]})])
    results = _at_once([lambda: apply(settings, old), lambda: apply(settings, new)] * 2)
    assert all(isinstance(result, int) for result in results), results
    assert apply(settings, new) == 0
    assert apply(settings, old) == 0
    operations = {operation for _, operation, _ in aws.calls}
    assert not operations & {"DeleteTable", "DeleteAlarms", "DeregisterScalableTarget"}


def test_alarms_of_an_index_that_was_created_since_the_plan_stay(
    aws: StrictAws, settings: Settings
) -> None:
    old = declare(settings, model({"by-a": ["a"]}), alarms=True)
    new = declare(settings, model({"by-a": ["a"], "by-b": ["b"]}), alarms=True)
    apply(settings, old)
    aws.by_hand("cloudwatch", "DeleteAlarms", AlarmNames=[f"{old[0].name}/system-errors"])
    planned = plan(Calls(settings), old)
    apply(settings, new)
    aws.forget()
    assert Run(Calls(settings), timeout_seconds=20).apply(planned) == 1
    assert aws.mutations == ["PutMetricAlarm"]
    assert apply(settings, new) == 0


def test_of_commits_that_contradict_each_other_one_ends_with_an_error_that_says_so(
    aws: StrictAws, settings: Settings
) -> None:
    made = model({"by-a": ["a"], "by-b": ["b"]})
    first, second = (
        declare(settings, made, billing="provisioned", read_units=units) for units in (5, 9)
    )
    apply(settings, declare(settings, made))
    allowed = everything_allowed(first)
    results = _at_once(
        [lambda: apply(settings, first, allowed), lambda: apply(settings, second, allowed)]
    )
    assert any(isinstance(result, int) for result in results), results
    for result in results:
        assert isinstance(result, int) or "another run" in str(result)
    live = plan(Calls(settings), first)[0].live.state
    assert set(live) >= {Property("index", "by-a"), Property("index", "by-b")}


# ------------------------------------------------------------------------ any declaration to any


@st.composite
def _declarations(draw: st.DrawFn) -> dict[str, Any]:
    numbers = draw(st.frozensets(st.sampled_from("ab")))
    names = draw(st.frozensets(st.sampled_from(["by-a", "by-b", "by-c"])))
    sort = draw(st.sampled_from([[], ["d"]]))
    provisioned = draw(st.booleans())
    low = draw(st.integers(1, 9))
    return {
        "made": model(
            {name: [name[-1], *sort] for name in sorted(names)},
            ttl=draw(st.sampled_from([None, "expires_at", "old_expiry"])),
            number=numbers,
            include=draw(st.frozensets(st.sampled_from(sorted(names)))) if names else frozenset(),
        ),
        "billing": "provisioned" if provisioned else "on-demand",
        "read_units": low,
        "write_units": low,
        "autoscaling": provisioned and draw(st.booleans()),
        "min_units": low,
        "max_units": low + draw(st.integers(0, 20)),
        "deletion_protection": draw(st.booleans()),
        "backup_days": draw(st.sampled_from([0, 7, 35])),
        "encryption": draw(st.sampled_from(["aws-owned", "kms"])),
        "alarms": draw(st.booleans()),
        "tags": draw(st.dictionaries(st.sampled_from(["team", "cost"]), st.sampled_from("xy"))),
    }


@hypothesis_settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(old=_declarations(), new=_declarations())
def test_any_declaration_becomes_any_other_and_keeps_every_item(
    aws: StrictAws, settings: Settings, old: dict[str, Any], new: dict[str, Any]
) -> None:
    aws.reset()
    before, after = declare(settings, **old), declare(settings, **new)
    apply(settings, before)
    name = before[0].name
    items = [{"thing_id": {"S": str(n)}, "note": {"S": "x" * n}} for n in range(1, 4)]
    for item in items:
        aws.by_hand("dynamodb", "PutItem", TableName=name, Item=item)
    aws.forget()
    sent = apply(settings, after, everything_allowed([*before, *after]))
    assert sent <= 60
    assert apply(settings, after) == 0
    assert "DeleteTable" not in aws.mutations
    for _, operation, params in aws.calls:
        if operation == "UpdateTable":
            updates = params.get("GlobalSecondaryIndexUpdates", [])
            assert len([update for update in updates if "Update" not in update]) <= 1
    stored = aws.by_hand("dynamodb", "Scan", TableName=name)["Items"]
    assert sorted(stored, key=repr) == sorted(items, key=repr)
