"""The most that an on-demand table takes a second: set, raised, taken away, and never unasked."""

from __future__ import annotations

from typing import Any

import pytest

from tdev_models.cli.engine import Engine
from tdev_models.migrations import calls, cost, declared, environments
from tdev_models.migrations.export import cloudformation
from tdev_models.settings import Settings
from tests.conftest import missing
from tests.migrations.runs import apply, run as run_command
from tests.migrations.strict import StrictAws

TABLE, INDEX = "user-projects", "recent-index"
ONLY = ("--table", TABLE)
LIMITED = ("--set", "most_reads=100", "--set", "most_writes=50")


@pytest.fixture
def as_aws(aws: StrictAws, monkeypatch: pytest.MonkeyPatch) -> StrictAws:
    """Moto in AWS's place, without its pauses."""
    monkeypatch.setattr(calls, "_AWS_HOSTS", ("localhost",))
    monkeypatch.setattr(calls, "ON_AWS", calls.LOCAL)
    return aws


def run(what: str, environment: str, *more: str) -> int:
    return run_command(what, environment, "--set", "like=dev", *more)


def limits(aws: StrictAws, environment: str) -> list[dict[str, Any] | None]:
    """What the table and its index take at most."""
    name = f"t-developer-{environment}-{TABLE}"
    answer = aws.by_hand("dynamodb", "DescribeTable", TableName=name)
    aws._after_DescribeTable({"TableName": name}, answer)
    return [
        each.get("OnDemandThroughput")
        for each in (answer["Table"], *answer["Table"]["GlobalSecondaryIndexes"])
    ]


def most(reads: int, writes: int) -> dict[str, int]:
    return {"MaxReadRequestUnits": reads, "MaxWriteRequestUnits": writes}


def planned(environment: str, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    capsys.readouterr()
    run("plan", environment, *ONLY, *more)
    return [line for line in capsys.readouterr().out.splitlines() if "maximum" in line]


def test_a_table_and_its_indexes_are_created_with_their_maximum(
    as_aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--set", f'tables={{"{TABLE}/{INDEX}" = {{most_reads = 0, most_writes = 7}}}}')
    (line,) = planned(environment, capsys, *LIMITED, *own)
    assert "(on-demand, maximum 100 read, 50 write, index" in line
    assert run("apply", environment, *ONLY, *LIMITED, *own) == 0
    assert limits(as_aws, environment) == [most(100, 50), {"MaxWriteRequestUnits": 7}]
    assert "UpdateTable" not in as_aws.mutations
    assert run("plan", environment, *ONLY, *LIMITED, *own) == 0


def test_a_maximum_is_raised_and_taken_away(
    as_aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("apply", environment, *ONLY, *LIMITED) == 0
    more = ("--set", "most_reads=100", "--set", "most_writes=80")
    assert planned(environment, capsys, *more) == [
        f"~ {TABLE}  maximum: 100 read, 50 write -> 100 read, 80 write",
        f"~ {TABLE}  maximum {INDEX}: 100 read, 50 write -> 100 read, 80 write",
    ]
    assert run("apply", environment, *ONLY, *more) == 0
    assert limits(as_aws, environment) == [most(100, 80)] * 2
    assert run("apply", environment, *ONLY) == 0
    assert limits(as_aws, environment) == [most(-1, -1)] * 2
    assert run("plan", environment, *ONLY) == 0


def test_a_lower_maximum_and_a_first_one_need_to_be_allowed(
    as_aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("apply", environment, *ONLY) == 0
    refused = f"! {TABLE}  maximum: any read, any write -> 100 read, 50 write"
    note = f"  (destructive; --allow lower-capacity:{TABLE})"
    assert planned(environment, capsys, *LIMITED)[0] == refused + note
    assert run("apply", environment, *ONLY, *LIMITED) == 3
    assert limits(as_aws, environment) == [None, None]
    allowed = ("--allow", f"lower-capacity:{TABLE}")
    assert run("apply", environment, *ONLY, *LIMITED, *allowed) == 0
    assert limits(as_aws, environment) == [most(100, 50)] * 2
    lower = ("--set", "most_reads=100", "--set", "most_writes=49")
    assert run("apply", environment, *ONLY, *lower) == 3
    assert run("apply", environment, *ONLY, *lower, *allowed) == 0
    assert limits(as_aws, environment) == [most(100, 49)] * 2


def test_a_table_that_becomes_on_demand_gets_its_maximum(
    as_aws: StrictAws, environment: str
) -> None:
    assert run("apply", environment, *ONLY, "--set", "billing=provisioned") == 0
    allowed = ("--allow", f"lower-capacity:{TABLE}")
    assert run("apply", environment, *ONLY, *LIMITED, *allowed) == 0
    assert limits(as_aws, environment) == [most(100, 50)] * 2
    assert run("plan", environment, *ONLY, *LIMITED) == 0


def test_a_maximum_that_needs_to_be_allowed_is_refused_before_the_table_becomes_on_demand(
    as_aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("apply", environment, *ONLY, "--set", "billing=provisioned") == 0
    as_aws.forget()
    allowed = ("--allow", f"lower-capacity:{TABLE}")
    lines = [
        f"! {TABLE}  maximum{of}: any read, any write -> 100 read, 50 write"
        f"  (destructive; --allow lower-capacity:{TABLE})"
        for of in ("", f" {INDEX}")
    ]
    assert planned(environment, capsys, *LIMITED) == lines
    assert run("apply", environment, *ONLY, *LIMITED) == 3
    assert as_aws.mutations == []
    assert len(planned(environment, capsys, *LIMITED, *allowed)) == 2
    # Without a maximum it is not said, and nothing needs to be allowed.
    assert planned(environment, capsys) == []
    assert run("apply", environment, *ONLY) == 0


def test_a_later_index_gets_its_maximum(as_aws: StrictAws, environment: str) -> None:
    assert run("apply", environment, *ONLY, *LIMITED) == 0
    as_aws.by_hand(
        "dynamodb",
        "UpdateTable",
        TableName=f"t-developer-{environment}-{TABLE}",
        GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": INDEX}}],
    )
    as_aws._most.pop((f"t-developer-{environment}-{TABLE}", INDEX))
    assert run("apply", environment, *ONLY, *LIMITED) == 0
    assert limits(as_aws, environment) == [most(100, 50)] * 2


def test_a_local_engine_is_said_to_have_none(
    environment: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.start() as engine:
        if engine.name != "dynoxide":
            missing(engine.notice)
        monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", engine.endpoint)
        assert run("apply", environment, *ONLY, *LIMITED) == 0
        assert run("plan", environment, *ONLY, *LIMITED) == 0
        assert "=" in capsys.readouterr().out
        assert planned(environment, capsys, *LIMITED) == [
            f"= {TABLE}  maximum  (not checked: a local engine limits no requests)"
        ]
        assert planned(environment, capsys) == []


def test_what_a_limited_table_costs_at_most_is_known() -> None:
    profile = environments.load("t1", None, {"like": "dev", "most_reads": 10, "most_writes": 10})
    made = declared.tables(Settings(environment="t1"), profile)
    metrics = [table for table in made if table.short == "metrics"]
    # Of a unit in each second of 730 hours: 0.3285 USD to read, 1.6425 to write.
    text = cost.as_text(metrics)
    assert text.startswith("about 0 USD a month at rest, 20 at most: units 0 to 20")
    assert "on-demand requests" not in text


def test_the_exported_stack_has_it(as_aws: StrictAws, settings: Settings) -> None:
    profile = environments.load(settings.environment, None, {"like": "dev", "most_writes": 5})
    tables = declared.tables(settings, profile)
    apply(settings, tables)
    for resource in cloudformation(tables)["Resources"].values():
        for each in (
            resource["Properties"],
            *resource["Properties"].get("GlobalSecondaryIndexes", ()),
        ):
            assert each["OnDemandThroughput"] == {"MaxWriteRequestUnits": 5}
