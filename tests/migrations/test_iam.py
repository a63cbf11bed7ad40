from __future__ import annotations

import fnmatch
import json
from typing import Any

import pytest

from tdev_models.migrations import iam
from tests.migrations.runs import prod, run
from tests.migrations.strict import StrictAws

KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234-abcd"


def policy(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert iam.main([*argv]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_who_is_shown_put_item_is_told_that_it_is_never_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert iam.main(["runtime"]) == 0
    assert "the package never sends it" in capsys.readouterr().err
    assert iam.main(["plan", "--env", "prod"]) == 0
    assert capsys.readouterr().err == ""


def test_the_runtime_policy_is_the_plans_word_for_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert policy(capsys, "runtime") == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": [
                    "dynamodb:GetItem",
                    "dynamodb:PutItem",
                    "dynamodb:UpdateItem",
                    "dynamodb:Query",
                ],
                "Resource": "arn:aws:dynamodb:*:*:table/t-developer-*",
            }
        ],
    }


def test_the_runtime_policy_of_all_environments_has_the_tables_of_the_prefix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDEV_TABLE_PREFIX", "mine")
    (statement,) = policy(capsys, "runtime")["Statement"]
    assert statement["Resource"] == "arn:aws:dynamodb:*:*:table/mine-*"


@pytest.mark.parametrize("role", ["runtime", "migrations", "plan"])
def test_the_policy_of_an_environment_reaches_its_tables_and_none_of_another_of_like_name(
    capsys: pytest.CaptureFixture[str], role: str
) -> None:
    patterns = [
        pattern
        for statement in policy(capsys, role, "--env", "prod")["Statement"]
        for pattern in as_list(statement["Resource"])
        if "dynamodb:" in pattern or "alarm:" in pattern
    ]
    table = "arn:aws:dynamodb:eu-west-1:123456789012:table/t-developer-prod-{}metrics"
    alarm = "arn:aws:cloudwatch:eu-west-1:123456789012:alarm:t-developer-prod-{}metrics/x"
    arns = [table] if role == "runtime" else [table, alarm]
    for arn in arns if role != "plan" else [table]:
        for other, reached in (("", True), ("eu-", False)):
            assert reached == any(
                fnmatch.fnmatchcase(arn.format(other), pattern) for pattern in patterns
            )


def test_the_role_that_plans_may_change_nothing_and_all_that_plan_sends_is_allowed(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prod("apply", environment) == 0
    aws.forget()
    assert prod("plan", environment) == 0
    statements = policy(capsys, "plan", "--env", environment, "--set", "like=prod")["Statement"]
    actions = {action for statement in statements for action in as_list(statement["Action"])}
    verbs = ("Describe", "List", "Get", "Scan")
    assert all(action.split(":")[1].startswith(verbs) for action in actions)
    assert {f"{service}:{operation}" for service, operation, _ in aws.calls} <= actions


@pytest.mark.parametrize(
    ("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
)
@pytest.mark.parametrize("argv", [["runtime"], ["runtime", "--env=prod"], ["migrations"], ["plan"]])
def test_policies_are_for_the_partition_of_the_region(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    region: str,
    partition: str,
    argv: list[str],
) -> None:
    monkeypatch.setenv("AWS_REGION", region)
    resources = [
        resource
        for statement in policy(capsys, *argv)["Statement"]
        for resource in as_list(statement["Resource"])
        if resource != "*"
    ]
    assert resources
    assert all(resource.startswith(f"arn:{partition}:") for resource in resources)


@pytest.mark.parametrize("role", ["runtime", "migrations"])
def test_a_customer_key_brings_one_statement_on_that_key(
    capsys: pytest.CaptureFixture[str], role: str
) -> None:
    without = policy(capsys, role, "--env", "prod")["Statement"]
    *same, kms = policy(capsys, role, "--env", "prod", "--set", f"encryption={KEY}")["Statement"]
    assert same == without
    assert kms["Resource"] == KEY
    assert all(action.startswith("kms:") for action in kms["Action"])
    assert kms["Condition"] == {"StringLike": {"kms:ViaService": "dynamodb.*"}}


@pytest.mark.parametrize("role", ["runtime", "rekey"])
def test_field_encryption_brings_its_keys_for_the_data_of_one_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    former = KEY.replace("1234", "0123")
    without = policy(capsys, role, "--env", "prod")["Statement"]
    assert not any("kms:" in str(statement["Action"]) for statement in without)
    monkeypatch.setenv("TDEV_KMS_KEY", KEY)
    monkeypatch.setenv("TDEV_KMS_FORMER_KEYS", former)
    *same, in_force, before = policy(capsys, role, "--env", "prod")["Statement"]
    assert same == without
    narrow = {"StringEquals": {"kms:EncryptionContext:environment": "prod"}}
    for statement, actions, key in (
        (in_force, ["kms:GenerateDataKey", "kms:Decrypt"], KEY),
        (before, ["kms:Decrypt"], former),
    ):
        assert statement == {
            "Effect": "Allow",
            "Action": actions,
            "Resource": key,
            "Condition": narrow,
        }


def test_the_runtime_policy_of_all_environments_knows_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = policy(capsys, "runtime")["Statement"]
    monkeypatch.setenv("TDEV_KMS_KEY", KEY)
    *same, key = policy(capsys, "runtime")["Statement"]
    assert same == plain
    assert (key["Resource"], "Condition" in key) == (KEY, False)


def test_a_typo_is_wrong_usage() -> None:
    assert iam.main(["runtme"]) == 64
    assert iam.main(["runtime", "--env", "prdo"]) == 64
    assert iam.main(["runtime", "--env", ""]) == 64


@pytest.mark.parametrize(("name", "value"), [("AWS_REGION", "local"), ("AWS_PROFILE", "mine")])
def test_a_region_or_a_profile_that_does_not_exist_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv(name, value)
    assert iam.main(["runtime"]) == 1
    assert value in capsys.readouterr().err


def test_every_call_that_was_recorded_is_within_the_printed_migrations_policy(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = ("disable-protection", "disable-pitr", "change-key", "silence-alarms")
    allow = [f"--allow={kind}:user-projects" for kind in (*losses, "end-on-demand")]
    assert prod("apply", environment) == 0
    assert run("apply", environment, "--set", "like=dev", "--table=user-projects", *allow) == 0
    assert prod("apply", environment, *allow) == 0
    statements = policy(capsys, "migrations", "--env", environment, "--set", "like=prod")[
        "Statement"
    ]
    for service, operation, params in aws.calls:
        action, arn = f"{service}:{operation}", arn_of(service, params)
        assert any(
            action in statement["Action"]
            and any(fnmatch.fnmatchcase(arn, pattern) for pattern in as_list(statement["Resource"]))
            for statement in statements
        ), (action, arn)


def test_the_migrations_policy_allows_neither_deletion_nor_wildcard_actions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    statements = policy(capsys, "migrations", "--env", "prod")["Statement"]
    actions = {action for statement in statements for action in statement["Action"]}
    assert not any("*" in action for action in actions)
    assert not any(action.startswith("dynamodb:Delete") for action in actions)
    everywhere = {
        action
        for statement in statements
        if statement["Resource"] == "*"
        for action in statement["Action"]
    }
    assert all(
        action.split(":")[1].startswith(("Describe", "List", "Get")) for action in everywhere
    )


def as_list(resource: str | list[str]) -> list[str]:
    return resource if isinstance(resource, list) else [resource]


def arn_of(service: str, params: dict[str, Any]) -> str:
    if "TableName" in params:
        return f"arn:aws:dynamodb:us-east-1:123456789012:table/{params['TableName']}"
    if "ResourceArn" in params:
        return str(params["ResourceArn"])
    if name := params.get("AlarmName") or next(iter(params.get("AlarmNames", ())), None):
        return f"arn:aws:cloudwatch:us-east-1:123456789012:alarm:{name}"
    if service == "application-autoscaling" and "ResourceId" in params:
        return "arn:aws:application-autoscaling:us-east-1:123456789012:scalable-target/0abc"
    if service == "kms":
        return "arn:aws:kms:us-east-1:123456789012:key/own"
    return "*"
