"""Declared and live state in, changes out: no engine, no request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tdev_models.errors import AccessDenied
from tdev_models.migrations.declared import CAPACITY, KEYS, Index, Key, Property, Table
from tdev_models.migrations.diff import Change, diff
from tdev_models.migrations.live import PARTS, Live
from tdev_models.settings import Settings
from tests.migrations.runs import declare, model

A = {"by-a": ["a"]}
AB = {"by-a": ["a"], "by-b": ["b"]}
UNITS: dict[str, Any] = {"billing": "provisioned"}
SCALED: dict[str, Any] = {**UNITS, "autoscaling": True}


def table(indexes: Mapping[str, list[str]] = A, ttl: str | None = None, **profile: Any) -> Table:
    return declare(Settings(), model(indexes, ttl), **profile)[0]


def live(declared: Table, changes: Mapping[Property, Any] = {}) -> Live:
    """Return the live state of a table that is as declared, but for some properties."""
    parts: dict[str, dict[Property, Any]] = {part: {} for part in PARTS}
    for item, value in {**declared.state, **changes}.items():
        if value is not None or item.kind == "ttl":
            parts[item.kind if item.kind in PARTS else "table"][item] = value
    return Live(description={"TableName": declared.name}, parts=parts)


def shown(changes: list[Change]) -> list[str]:
    return [f"{change.symbol} {change.target}" for change in changes]


ALARM = Property("alarm", name="system-errors")
NEAR = Property("alarm", name="read-capacity-near-maximum")
LEFT_OVER = Property("alarm", name="left-over")
KEY = "arn:aws:kms:us-east-1:123456789012:key/own"
TOLD = {
    **table({}, alarms=True).state[ALARM],
    "AlarmActions": ["arn:aws:sns:us-east-1:123456789012:pager"],
}
TEAM = Property("tag", name="team")

# What is declared, what is live, and the lines of the plan.
CHANGES: dict[str, tuple[Table, Live, list[str]]] = {
    "nothing": (table(**SCALED, alarms=True), live(table(**SCALED, alarms=True)), []),
    "protection": (table(deletion_protection=True), live(table()), ["+ protection"]),
    "backups": (table(backup_days=7), live(table()), ["+ pitr"]),
    "longer backups": (table(backup_days=9), live(table(backup_days=7)), ["~ pitr"]),
    "another key": (table(encryption="kms"), live(table()), ["~ encryption"]),
    "units go with the billing": (table(), live(table(**UNITS)), ["~ billing"]),
    "auto scaling goes with the billing": (
        table(),
        live(table(**SCALED)),
        ["~ billing", "- scaling", "- scaling by-a"],
    ),
    "other units": (
        table(**UNITS, read_units=9),
        live(table(**UNITS)),
        ["~ capacity", "~ capacity by-a"],
    ),
    "units within the range": (table(**SCALED), live(table(**SCALED), {CAPACITY: (5, 50)}), []),
    "units outside the range": (
        table(**SCALED),
        live(table(**SCALED), {CAPACITY: (4, 50)}),
        ["~ capacity"],
    ),
    "auto scaling": (table(**SCALED), live(table(**UNITS)), ["+ scaling", "+ scaling by-a"]),
    "another range": (
        table({}, **SCALED, max_units=90),
        live(table({}, **SCALED)),
        ["~ scaling"],
    ),
    "an index": (table(AB), live(table(A)), ["+ index by-b"]),
    "an index and its auto scaling, its units included": (
        table(AB, **SCALED),
        live(table(A, **SCALED)),
        ["+ index by-b", "+ scaling by-b"],
    ),
    "an undeclared index and what belongs to it": (
        table(A, **SCALED, alarms=True),
        live(table(AB, **SCALED, alarms=True)),
        ["= index by-b"],
    ),
    "TTL": (table(ttl="expires_at"), live(table()), ["+ ttl"]),
    "TTL on another attribute": (table(ttl="new"), live(table(ttl="old")), ["~ ttl"]),
    "an undeclared TTL": (table(), live(table(ttl="old")), ["= ttl"]),
    "a tag": (table(tags={"team": "x"}), live(table()), ["+ tag team"]),
    "another value of a tag": (
        table(tags={"team": "x"}),
        live(table(tags={"team": ""})),
        ["~ tag team"],
    ),
    "an undeclared tag": (table(), live(table(), {TEAM: "x"}), []),
    "an alarm": (
        table(alarms=True),
        live(table(alarms=True), {ALARM: None}),
        ["+ alarm system-errors"],
    ),
    "another alarm": (
        table(alarms=True),
        live(table(alarms=True), {ALARM: {"Threshold": 9.0}}),
        ["~ alarm system-errors"],
    ),
    "an alarm that is not needed any more": (
        table(alarms=True),
        live(table(alarms=True), {NEAR: {}}),
        ["- alarm read-capacity-near-maximum"],
    ),
    "an alarm of others": (table(), live(table(), {LEFT_OVER: {}}), ["= alarm left-over"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_plan_names_what_differs(case: str) -> None:
    declared, actual, expected = CHANGES[case]
    assert shown(diff(declared, actual)) == expected


def test_units_outside_the_range_move_to_its_nearest_end() -> None:
    (change,) = diff(table(**SCALED), live(table(**SCALED), {CAPACITY: (4, 51)}))
    assert (change.before, change.after) == ((4, 51), (5, 50))


def test_a_table_that_does_not_exist_is_created_before_what_creation_does_not_set() -> None:
    declared = table({}, "expires_at", **SCALED, backup_days=7, deletion_protection=True)
    changes = diff(declared, Live(parts={part: {} for part in PARTS}))
    assert shown(changes) == ["+ keys", "+ pitr", "+ scaling", "+ ttl"]
    assert changes[0].note == "provisioned, deletion protection, key aws-owned"


# ------------------------------------------------------------------------ refusals

# What is declared, what is live, the line, what allows it, and the line then.
LOSSES: dict[str, tuple[Table, Live, str, str, str]] = {
    "index dropped": (
        table(A),
        live(table(AB)),
        "= index by-b",
        "delete-index:things/by-b",
        "- index by-b",
    ),
    "index replaced": (
        table({"by-a": ["a", "b"]}),
        live(table(A)),
        "! index by-a",
        "replace-index:things/by-a",
        "~ index by-a",
    ),
    "protection off": (
        table(),
        live(table(deletion_protection=True)),
        "! protection",
        "disable-protection:things",
        "~ protection",
    ),
    "backups off": (
        table(),
        live(table(backup_days=7)),
        "! pitr",
        "disable-pitr:things",
        "~ pitr",
    ),
    "backups shorter": (
        table(backup_days=6),
        live(table(backup_days=7)),
        "! pitr",
        "shorten-pitr:things",
        "~ pitr",
    ),
    "TTL off": (table(), live(table(ttl="old")), "= ttl", "disable-ttl:things", "- ttl"),
    "provisioned again": (
        table(**UNITS),
        live(table()),
        "! billing",
        "end-on-demand:things",
        "~ billing",
    ),
    "fewer units": (
        table({}, **UNITS, write_units=4),
        live(table({}, **UNITS)),
        "! capacity",
        "lower-capacity:things",
        "~ capacity",
    ),
    "fewer units of an index": (
        table(**UNITS),
        live(table(**UNITS), {Property("capacity", "by-a"): (5, 300)}),
        "! capacity by-a",
        "lower-capacity:things",
        "~ capacity by-a",
    ),
    "a lower range": (
        table({}, **SCALED),
        live(table({}, **SCALED, max_units=300)),
        "! scaling",
        "lower-capacity:things",
        "~ scaling",
    ),
    "no range": (
        table({}, **UNITS),
        live(table({}, **SCALED)),
        "= scaling",
        "lower-capacity:things",
        "- scaling",
    ),
    "another key": (
        table(encryption="kms"),
        live(table(encryption=KEY)),
        "! encryption",
        "change-key:things",
        "~ encryption",
    ),
    "an alarm without its topic": (
        table({}, alarms=True),
        live(table({}, alarms=True), {ALARM: TOLD}),
        "! alarm system-errors",
        "silence-alarms:things",
        "~ alarm system-errors",
    ),
    "no alarms": (
        table({}),
        live(table({}), {ALARM: TOLD}),
        "= alarm system-errors",
        "silence-alarms:things",
        "- alarm system-errors",
    ),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_is_not_planned_unless_allowed_by_its_exact_name(case: str) -> None:
    declared, actual, line, allowance, line_if_allowed = LOSSES[case]
    for allowed in (
        set[str](),
        {f"{allowance}-x"},
        {loss[3] for loss in LOSSES.values()} - {allowance},
    ):
        (change,) = diff(declared, actual, allowed)
        assert shown([change]) == [line]
        assert f"--allow {allowance}" in change.note
        assert not change.pending
    (change,) = diff(declared, actual, {allowance})
    assert shown([change]) == [line_if_allowed]
    assert change.pending
    assert change.note == ""


def test_other_keys_are_refused_whatever_is_allowed() -> None:
    keys = (Key("thing_id", "HASH", "N"),)
    (change,) = diff(table(), live(table(), {KEYS: keys}), {"replace-index:things/keys"})
    assert shown([change]) == ["! keys"]
    assert "copy the rows" in change.note
    assert "Encrypted fields cannot be read in a copy" in change.note


def test_an_index_waits_for_an_undeclared_one_that_has_its_key_with_another_type_to_go() -> None:
    old = Index((Key("b", "HASH", "N"),), "ALL", frozenset())
    actual = live(table(A), {Property("index", "old"): old})
    refused, left = sorted(diff(table(AB), actual), key=lambda change: change.symbol)
    assert shown([refused, left]) == ["! index by-b", "= index old"]
    assert "the undeclared index old gives b another type" in refused.note
    allowed = {"delete-index:things/old"}
    assert shown(diff(table(AB), actual, allowed)) == ["- index old", "+ index by-b"]


def test_declared_indexes_that_change_the_type_of_a_shared_key_are_not_in_each_others_way() -> None:
    indexes = {"by-a": ["a", "d"], "by-b": ["b", "d"]}
    declared = declare(Settings(), model(indexes, number=frozenset("d")))[0]
    allowed = {"replace-index:things/by-a", "replace-index:things/by-b"}
    assert shown(diff(declared, live(table(indexes)), allowed)) == [
        "~ index by-a",
        "~ index by-b",
    ]


# ------------------------------------------------------------------------ unknown


@pytest.mark.parametrize("kind", ["pitr", "encryption", "scaling", "alarm", "tag", "ttl"])
def test_what_could_not_be_read_is_reported_and_never_taken_for_absent(kind: str) -> None:
    declared = table({}, "t", **SCALED, backup_days=7, encryption="kms", alarms=True)
    actual = live(declared)
    known = {item: value for item, value in declared.state.items() if item.kind != kind}
    unknown = replace(live(replace(declared, state=known)), unknown={kind: AccessDenied("no")})
    assert diff(declared, actual) == []
    (change,) = diff(declared, unknown)
    assert shown([change]) == [f"= {kind}"]
    assert change.note == "not checked: no"


def test_a_table_that_could_not_be_read_is_not_created() -> None:
    unknown = Live(parts={part: {} for part in PARTS}, unknown={"table": AccessDenied("no")})
    assert shown(diff(table(AB), unknown)) == ["= table"]
