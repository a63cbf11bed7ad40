"""The check of stored rows before a new index: when, how long, how much, and where it goes on."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tdev_models.migrations import command, declared
from tdev_models.migrations.apply import Run
from tdev_models.migrations.calls import Calls, InProgress
from tdev_models.migrations.declared import Table
from tdev_models.migrations.plan import Refused, plan
from tdev_models.settings import Settings
from tests.migrations.runs import apply, declare, model, prod, run
from tests.migrations.strict import Killed, StrictAws, _error

MEGABYTE = 1 << 20
UNITS: dict[str, Any] = {"billing": "provisioned", "read_units": 5}


class Big:
    """A table of 40 rows, 30 without the key of a new index, that says it has 8 MB."""

    def __init__(self, aws: StrictAws, settings: Settings, **profile: Any) -> None:
        self.old = declare(settings, model({"by-a": ["a"]}), **profile)
        self.new = declare(settings, model({"by-a": ["a"], "by-c": ["c"]}), **profile)
        apply(settings, self.old)
        self.name, self.aws = self.old[0].name, aws
        for number in range(40):
            item = {"thing_id": {"S": f"{number}"}, "note": {"S": "x"}}
            item |= {"c": {"S": "x"}} if number < 10 else {}
            aws.by_hand("dynamodb", "PutItem", TableName=self.name, Item=item)
        described = aws._after_DescribeTable

        def after(params: dict[str, Any], answer: Any) -> None:
            described(params, answer)
            answer["Table"] |= {"TableSizeBytes": 8 * MEGABYTE, "ItemCount": 40}

        aws._after_DescribeTable = after  # type: ignore[method-assign]
        aws.forget()

    def spoil(self) -> None:
        item = {"thing_id": {"S": "bad"}, "c": {"N": "1"}}
        self.aws.by_hand("dynamodb", "PutItem", TableName=self.name, Item=item)

    @property
    def read(self) -> list[tuple[int, int]]:
        return [
            (params["Segment"], params["TotalSegments"])
            for _, operation, params in self.aws.calls
            if operation == "Scan"
        ]


def test_the_key_of_a_row_neither_begins_a_line_nor_controls_the_terminal(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings, **UNITS)
    item = {"thing_id": {"S": "x\n::stop-commands::y\x1b[31m"}, "c": {"N": "1"}}
    aws.by_hand("dynamodb", "PutItem", TableName=big.name, Item=item)
    said = note(Calls(settings), big.new)
    assert "such as thing_id=x ::stop-commands::y\ufffd[31m; correct" in said


def note(calls: Calls, tables: list[Table]) -> str:
    (planned,) = plan(calls, tables)
    return next(c.note for c in planned.changes if c.target.kind == "index")


def test_the_plan_counts_rows_that_lack_the_key_and_estimates_both_times(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings, **UNITS)
    assert note(Calls(settings), big.new) == (
        "30 of 40 rows that were read lack c: it will not hold them; 40 rows, 8.4 MB: to check them"
        " takes about 7 min, to build it at most 27 min at 5 write units"
    )
    assert big.read == [(0, 1)]


def test_backfill_units_pace_the_check_and_the_build_of_an_index_and_the_plan_says_both_times(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings, **UNITS, autoscaling=True)
    calls = Calls(settings, backfill_units=40)
    assert note(calls, big.new).endswith(
        "to check them takes about 26 s, to build it at most 3 min at 40 write units"
    )
    Run(calls, rows="none").apply(plan(calls, big.new))
    created = [
        update["Create"]["ProvisionedThroughput"]
        for _, operation, params in aws.calls
        if operation == "UpdateTable"
        for update in params.get("GlobalSecondaryIndexUpdates", ())
    ]
    assert created == [{"ReadCapacityUnits": 5, "WriteCapacityUnits": 40}]
    assert apply(settings, big.new) == 0


def test_backfill_units_pace_the_check_of_an_on_demand_table(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings)
    assert "to check them takes about 1 s" in note(Calls(settings), big.new)
    assert "to check them takes about 3 min" in note(Calls(settings, 5), big.new)


@pytest.mark.parametrize("units", ["0", "-1", "many", "1.5"])
def test_a_mistyped_number_of_units_is_wrong_usage(
    aws: StrictAws, environment: str, units: str
) -> None:
    assert prod("plan", environment, f"--backfill-units={units}") == 64
    assert aws.calls == []


def test_the_check_stops_at_the_timeout_and_another_run_goes_on_where_it_stopped(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings, **UNITS)
    scan = aws.by_hand

    def slow(params: dict[str, Any]) -> Any:
        answer = scan("dynamodb", "Scan", **params)
        # Each part used half a unit: 0.2 s at half of 5 units.
        return {**answer, "ConsumedCapacity": {"CapacityUnits": 0.5}}

    aws._before_Scan = slow  # type: ignore[method-assign]
    with pytest.raises(InProgress) as over:
        planned = plan(Calls(settings), big.new)
        Run(Calls(settings), timeout_seconds=0.7).apply(planned)
    assert aws.mutations == []
    found = re.search(r"--rows (things:(\d)/8) to go on", str(over.value))
    assert found
    aws.forget()
    planned = plan(Calls(settings), big.new)
    Run(Calls(settings), rows=found[1]).apply(planned)
    assert big.read == [(0, 1), *((part, 8) for part in range(int(found[2]), 8))]
    assert apply(settings, big.new) == 0


def test_rows_that_forbid_it_are_said_even_when_the_time_is_over_before_all_are_checked(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings, **UNITS)
    for number in range(30):
        item = {"thing_id": {"S": f"bad{number}"}, "c": {"N": "1"}}
        aws.by_hand("dynamodb", "PutItem", TableName=big.name, Item=item)
    planned = plan(Calls(settings), big.new, rows=False)

    def slow(params: dict[str, Any]) -> Any:
        answer = aws.by_hand("dynamodb", "Scan", **params)
        return {**answer, "ConsumedCapacity": {"CapacityUnits": 0.5}}

    aws._before_Scan = slow  # type: ignore[method-assign]
    with pytest.raises(Refused, match="with c of type N instead of S"):
        Run(Calls(settings), timeout_seconds=0.7).apply(planned)
    assert 0 < len(big.read) < 8
    assert aws.mutations == []


def test_no_change_is_made_while_rows_are_checked_and_none_where_they_forbid_it(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings)
    big.spoil()
    calls = Calls(settings)
    planned = plan(calls, big.new, rows=False)
    assert big.read == []
    with pytest.raises(Refused, match="1 with c of type N instead of S, such as thing_id=bad"):
        Run(calls).apply(planned)
    assert aws.mutations == []


@pytest.mark.parametrize("fault", [False, True])
def test_a_table_that_is_being_restored_has_its_rows_checked_once_they_can_be_read(
    aws: StrictAws, settings: Settings, fault: bool
) -> None:
    big = Big(aws, settings)
    if fault:
        big.spoil()
    aws.look_creating(big.name, times=4)
    (planned,) = plan(Calls(settings), big.new)
    assert [f"{c.symbol} {c.target}" for c in planned.changes if c.pending] == ["+ index by-c"]
    assert big.read == []
    run = Run(Calls(settings), timeout_seconds=20)
    if fault:
        with pytest.raises(Refused, match="1 with c of type N"):
            run.apply([planned])
        assert aws.mutations == []
    else:
        assert run.apply([planned]) == 1
        assert big.read


@pytest.mark.parametrize(("rows", "read"), [("none", 0), ("sample", 1), ("all", 9)])
def test_how_many_rows_are_read_can_be_chosen(
    aws: StrictAws,
    settings: Settings,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    rows: str,
    read: int,
) -> None:
    big = Big(aws, settings)
    monkeypatch.setattr(declared, "tables", lambda *given: big.new)
    monkeypatch.setenv("TDEV_ENV", environment)
    for what in ("plan", "apply"):
        aws.forget()
        assert run(what, environment, "--set=like=dev", "--rows", rows) == (
            2 if what == "plan" else 0
        )
        assert len(big.read) == read


def test_the_plan_is_printed_before_the_rows_are_checked(
    aws: StrictAws,
    settings: Settings,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    big = Big(aws, settings)
    big.spoil()
    monkeypatch.setattr(declared, "tables", lambda *given: big.new)
    printed = []

    def before(params: dict[str, Any]) -> None:
        if params["TotalSegments"] > 1:
            printed.append(capsys.readouterr().out)

    aws._before_Scan = before  # type: ignore[method-assign]
    monkeypatch.setattr(
        command,
        "plan",
        lambda calls, tables, allowed, rows: plan(calls, tables, allowed, rows=False),
    )
    assert run("apply", environment, "--set=like=dev", "--dry-run") == 3
    assert "+ things  index by-c" in printed[0]
    assert "1 with c of type N" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["plan", "apply"])
@pytest.mark.parametrize(("end", "code"), [("error", 1), ("Ctrl-C", 130)])
def test_a_check_that_is_stopped_says_where_to_go_on(
    aws: StrictAws,
    settings: Settings,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    end: str,
    code: int,
) -> None:
    big = Big(aws, settings)
    monkeypatch.setattr(declared, "tables", lambda *given: big.new)

    def before(params: dict[str, Any]) -> None:
        if params["TotalSegments"] == 8 and params["Segment"] == 5:
            raise KeyboardInterrupt if end == "Ctrl-C" else _error("Scan", "Odd", "it broke")

    aws._before_Scan = before  # type: ignore[method-assign]
    assert run(what, environment, "--set=like=dev", "--rows=all") == code
    assert "--rows things:5/8" in capsys.readouterr().err


def test_a_check_that_is_stopped_does_not_go_on_behind_rows_that_forbid_the_change(
    aws: StrictAws, settings: Settings
) -> None:
    big = Big(aws, settings)
    planned = plan(Calls(settings), big.new, rows=False)
    for number in range(30):
        item = {"thing_id": {"S": f"bad{number}"}, "c": {"N": "1"}}
        aws.by_hand("dynamodb", "PutItem", TableName=big.name, Item=item)

    def before(params: dict[str, Any]) -> None:
        if params["Segment"] == 7:
            raise KeyboardInterrupt

    aws._before_Scan = before  # type: ignore[method-assign]
    stopped = Run(Calls(settings))
    with pytest.raises(KeyboardInterrupt):
        stopped.check_rows(planned)
    assert stopped.goes_on == ""


@pytest.mark.parametrize("rows", ["some", "things:9/8", "things:8/8", "thing:1/8", "metrics:a/b"])
def test_a_mistyped_choice_of_rows_is_wrong_usage(
    aws: StrictAws, environment: str, rows: str
) -> None:
    assert prod("plan", environment, "--rows", rows) == 64
    assert aws.calls == []


def test_the_check_is_shown_while_it_runs(aws: StrictAws, settings: Settings) -> None:
    big = Big(aws, settings)
    shown: list[str] = []
    planned = plan(Calls(settings), big.new)
    Run(Calls(settings), on_wait=lambda table, live, reason: shown.append(reason)).apply(planned)
    assert "the check of its rows: 7 of 8 parts, 40 rows" in shown


# ------------------------------------------------------------------------ a plan that was reviewed


def test_another_plan_than_the_reviewed_one_is_not_applied(
    aws: StrictAws, environment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only, file = ("--table", "metrics"), str(tmp_path / "plan.json")
    assert prod("plan", environment, *only, "--out", f"{file}/nowhere") == 1
    assert prod("plan", environment, *only, "--out", file) == 2
    assert prod("apply", environment, *only, "--expect", file, "--set", "backup_days=7") == 3
    refused = capsys.readouterr().err.splitlines()[-1]
    assert refused.endswith(f"not in the plan of {file}: + metrics  pitr: 7 days")
    both = ("--expect", file, "--out", file)
    assert prod("apply", environment, *only, *both, "--set", "backup_days=7") == 3
    assert prod("apply", "tother", *only, "--expect", file) == 3
    assert aws.mutations == []
    assert prod("apply", environment, *only, "--expect", file) == 0
    assert prod("apply", environment, *only, "--expect", file) == 0
    for text in ("", "[]", '{"changes": 1}'):
        Path(file).write_text(text)
        assert prod("apply", environment, *only, "--expect", file) == 64


def test_a_run_that_was_killed_goes_on_with_the_reviewed_plan(
    aws: StrictAws, environment: str, tmp_path: Path
) -> None:
    chosen, ended = ("--table", "user-projects", "--expect", str(tmp_path / "plan.json")), False
    for number in range(1, 40):
        aws.reset()
        assert prod("plan", environment, *chosen[:2], "--out", chosen[-1]) == 2
        aws.kill_at = (number, "after")
        with suppress(Killed):
            ended = prod("apply", environment, *chosen) == 0
        aws.kill_at = None
        assert prod("apply", environment, *chosen) == 0, number
        if ended:
            break
    assert ended
    assert number > 10


def test_a_table_that_is_not_chosen_is_no_place_to_go_on_from(
    aws: StrictAws, environment: str
) -> None:
    """Else every row of the chosen tables would count as checked, and none would be read."""
    chosen = ("--table=pipeline-sessions", "--rows")
    assert prod("apply", environment, *chosen, "metrics:0/1") == 64
    assert aws.calls == []
    assert prod("plan", environment, *chosen, "pipeline-sessions:0/1") == 2
