"""The environments that are built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tdev_models import InvalidRequest, Settings
from tdev_models.migrations import cost, declared, iam
from tdev_models.migrations.declared import BILLING, CAPACITY, Property, Scaling, Table
from tdev_models.migrations.environments import BUILT_IN, load
from tests.migrations.runs import apply
from tests.migrations.strict import StrictAws

KEY = "arn:aws:kms:us-east-1:123456789012:key/mine"
OWN = {
    "metrics": {"write_units": 20, "min_units": 20, "max_units": 200, "encryption": KEY},
    "user-projects": {"billing": "on-demand"},
    "pipeline-sessions": {"max_units": 100},
    "pipeline-sessions/status-index": {"write_units": 9},
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_environment_has_settings_that_exist(name: str) -> None:
    load(name)
    Settings(environment=name)  # its name can be part of a table's


def tables(settings: Settings, own: dict[str, Any], like: str = "prod") -> dict[str, Table]:
    profile = load(settings.environment, None, {"like": like, "tables": own})
    return {table.short: table for table in declared.tables(settings, profile)}


def test_a_table_and_an_index_have_settings_of_their_own() -> None:
    made = tables(Settings(environment="t1"), OWN)
    assert made["metrics"].state[CAPACITY] == (5, 20)
    assert made["metrics"].state[Property("scaling")]["Read"] == Scaling(20, 200, 70.0)
    assert made["user-projects"].state[BILLING] == "on-demand"
    assert CAPACITY not in made["user-projects"].state
    sessions = made["pipeline-sessions"].state
    assert sessions[CAPACITY] == sessions[Property("capacity", "user-index")] == (5, 5)
    assert sessions[Property("capacity", "status-index")] == (5, 9)
    # An index has what its table has, unless it says otherwise.
    assert sessions[Property("scaling", "status-index")]["Write"].max == 100
    alarm = "index/status-index/write-capacity-near-maximum"
    assert sessions[declared.alarm(alarm)]["Threshold"] == 80
    assert made["agent-executions"].state[Property("scaling")]["Read"].max == 50


def test_they_are_applied_and_stay(aws: StrictAws, settings: Settings) -> None:
    for own in (OWN, OWN | {"pipeline-sessions/user-index": {"max_units": 120}}):
        declaration = list(tables(settings, own).values())
        assert apply(settings, declaration) > 0
        assert apply(settings, declaration) == 0


def test_billing_gives_each_index_its_own_units(aws: StrictAws, settings: Settings) -> None:
    apply(settings, list(tables(settings, {}, "dev").values()))
    own = {"metrics": {"write_units": 40}, "user-projects": {"write_units": 40}}
    own |= {"user-projects/recent-index": {"write_units": 3}}
    now = [tables(settings, own)[short] for short in own if "/" not in short]
    allowed = {f"{kind}:{table.short}" for kind in ("end-on-demand", "change-key") for table in now}
    apply(settings, now, allowed)
    assert apply(settings, now) == 0


def test_units_that_auto_scaling_would_lower_at_once_are_refused_through_like_too(
    tmp_path: Path,
) -> None:
    file = tmp_path / "tdev.toml"
    file.write_text('[prod]\nwrite_units = 20\n[staging]\nlike = "prod"\nmax_units = 10\n')
    with pytest.raises(InvalidRequest, match="write_units: must be at least 1, and at most max_un"):
        load("staging", file)
    for more in ({"autoscaling": False}, {"billing": "on-demand"}, {"write_units": 10}):
        assert load("staging", file, more).max_units == 10


@pytest.mark.parametrize("like", ['["prod"]', "{a = 1}", "5", "true"])
def test_an_environment_is_like_one_whose_name_is_text(tmp_path: Path, like: str) -> None:
    file = tmp_path / "tdev.toml"
    file.write_text(f"[staging]\nlike = {like}\n")
    with pytest.raises(InvalidRequest, match="like: must be text in quotes, not "):
        load("staging", file)


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_keys_and_topics_may_be_of_every_partition(partition: str) -> None:
    key = f"arn:{partition}:kms:some-region-1:123456789012:key/mine"
    topic = f"arn:{partition}:sns:some-region-1:123456789012:pager"
    settings = load("prod", None, {"encryption": key, "alarm_topic": topic})
    assert (settings.encryption, settings.alarm_topic) == (key, topic)
    with pytest.raises(InvalidRequest):
        load("prod", None, {"encryption": key.replace(partition, "gcp")})


def test_the_policies_name_the_keys_of_tables() -> None:
    profile = load("t1", None, {"like": "prod", "tables": OWN})
    statement = iam.runtime(Settings(environment="t1"), profile)["Statement"][-1]
    assert (statement["Action"], statement["Resource"]) == (["kms:Decrypt"], KEY)


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"metric": {"write_units": 9}}, "metric: use agent-executions"),
        ({"metrics/no-index": {"write_units": 9}}, "metrics/no-index: use"),
        ({"metrics": {"write_unit": 9}}, "some of alarm_topic"),
        ({"metrics": {"region": "x"}}, "some of alarm_topic"),
        ({"metrics/x": {"billing": "on-demand"}}, "some of max_units"),
        ({"metrics": {"write_units": 0}}, "must be at least 1"),
        ({"metrics": 9}, "must be a table"),
        (
            {"metrics": {"write_units": 51}},
            "write_units: must be at least 1, and at most max_units",
        ),
        ({"metrics/x": {"max_units": 20, "read_units": 21}}, "read_units: must be at least 1, and"),
    ],
)
def test_a_misspelt_table_index_or_setting_is_named(own: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        tables(Settings(environment="t1"), own)


PRICED = "besides {}storage and backups (list prices of us-east-1, November 2024)"


@pytest.mark.parametrize(
    ("like", "more", "expected"),
    [
        # 5 read units at 0.0949 USD and 5 write units at 0.4745 are 2.85, 50 of each are 28.47.
        ("prod", {}, "about 5 USD a month at rest, 30 at most: units 3 to 28, alarms 2; "),
        (
            "prod",
            {"autoscaling": False, "alarms": False, "write_units": 100},
            "about 48 USD a month at rest, 48 at most: units 48 to 48, alarms 0; ",
        ),
        ("dev", {}, "about 0 USD a month at rest, 0 at most: units 0 to 0, alarms 0; "),
    ],
)
def test_a_plan_says_what_it_costs(like: str, more: dict[str, Any], expected: str) -> None:
    profile = load("t1", None, {"like": like, **more})
    made = declared.tables(Settings(environment="t1"), profile)
    metrics = [table for table in made if table.short == "metrics"]
    requests = "on-demand requests, " if like == "dev" else ""
    assert cost.as_text(metrics) == expected + PRICED.format(requests)


def test_the_documented_plan_shows_what_prod_costs() -> None:
    prod = declared.tables(Settings(environment="prod"), load("prod"))
    text = (Path(__file__).parents[2] / "docs/migrations.md").read_text()
    assert f"\n{cost.as_text(prod)}\n" in text
