"""The template for teams whose tables a program may not make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cfnlint.api import lint_all

from tdev_models.migrations import declared, environments
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.export import cloudformation
from tdev_models.migrations.plan import plan
from tdev_models.settings import Settings
from tests.migrations.runs import apply, run
from tests.migrations.strict import StrictAws

KEY = "arn:aws:kms:us-east-1:123456789012:key/0d1e2f3a"
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "dev": {"like": "dev"},
    "dev with a maximum": {"like": "dev", "most_reads": 100, "most_writes": 50},
    "prod": {"like": "prod"},
    "every setting": {
        "like": "prod",
        "read_units": 7,
        "autoscaling": False,
        "backup_days": 3,
        "encryption": KEY,
        "alarm_topic": "arn:aws:sns:us-east-1:123456789012:pager",
        "tags": {"team": "x"},
    },
}
OF_ITS_OWN = {"RegisterScalableTarget", "PutScalingPolicy", "PutMetricAlarm"}


def tables_of(settings: Settings, case: str) -> list[declared.Table]:
    profile = environments.load(settings.environment, None, ENVIRONMENTS[case])
    return declared.tables(settings, profile)


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_the_whole_template_passes_cfn_lint(case: str) -> None:
    template = cloudformation(tables_of(Settings(environment="t1"), case))
    found = [str(match) for match in lint_all(json.dumps(template))]
    assert [text for text in found if not text.startswith("[I")] == []  # I: advice


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_a_stack_has_just_what_apply_sends(aws: StrictAws, settings: Settings, case: str) -> None:
    tables = tables_of(settings, case)
    apply(settings, tables)
    resources = cloudformation(tables)["Resources"].values()
    made = [resource["Properties"] for resource in resources]
    for _, operation, params in aws.calls:
        if operation in OF_ITS_OWN:
            made.remove(params)  # each once, as long as none is sent twice
    by_name = {properties["TableName"]: properties for properties in made}
    assert by_name.keys() == {table.name for table in tables}
    for _, operation, params in aws.calls:
        if operation in {*aws.mutations} - OF_ITS_OWN:
            properties = by_name[params["TableName"]]
            expected = {**params}
            if sse := expected.get("SSESpecification"):
                expected["SSESpecification"] = {
                    "SSEEnabled" if name == "Enabled" else name: value
                    for name, value in sse.items()
                }
            assert {name: properties[name] for name in expected} == expected


@pytest.mark.filterwarnings("ignore:Tried to parse AWS:UserWarning:moto")
@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_the_stack_is_as_declared_as_far_as_moto_knows_it(
    aws: StrictAws, settings: Settings, case: str
) -> None:
    tables = tables_of(settings, case)
    body = json.dumps(cloudformation(tables))
    aws.by_hand("cloudformation", "CreateStack", StackName="tables", TemplateBody=body)
    left = [change for each in plan(Calls(settings), tables) for change in each.changes]
    # moto's CloudFormation makes tables only, without these; the test above has them.
    unknown = {"scaling", "pitr", "ttl", "alarm", "encryption", "maximum"}
    assert {change.target.kind for change in left} <= unknown


def test_the_command_prints_it_and_sends_nothing(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--set", "like=prod", "--table", "metrics", "--format", "cloudformation")
    assert run("export", environment, *options) == 0
    made = json.loads(capsys.readouterr().out)["Resources"]
    names = [name for name, one in made.items() if one["Type"] == "AWS::DynamoDB::Table"]
    assert names == ["TableMetrics"]
    kept = {made["TableMetrics"][name] for name in ("DeletionPolicy", "UpdateReplacePolicy")}
    assert kept == {"Retain"}
    assert made["ScalingPolicyMetricsWriteCapacityUnits"]["DependsOn"] == (
        "ScalableTargetMetricsWriteCapacityUnits"
    )
    assert aws.calls == []
    assert run("export", environment, "--format", "yaml") == 64


def test_the_documented_deployment_takes_a_template_as_large_as_that_of_prod(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("export", "prod") == 0
    # Above these bytes `aws cloudformation deploy` takes no template without a bucket.
    assert len(capsys.readouterr().out) > 51_200
    text = (Path(__file__).parents[2] / "docs/migrations.md").read_text()
    (command,) = [line for line in text.splitlines() if "cloudformation deploy" in line]
    assert "--s3-bucket" in command
