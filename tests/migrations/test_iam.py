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


def test_the_runtime_policy_is_narrowed_to_one_environment_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (statement,) = policy(capsys, "runtime", "--env", "prod")["Statement"]
    assert statement["Resource"] == "arn:aws:dynamodb:*:*:table/t-developer-prod-*"


@pytest.mark.parametrize("role", ["runtime", "migrations"])
def test_a_customer_key_brings_one_statement_on_that_key(
    capsys: pytest.CaptureFixture[str], role: str
) -> None:
    without = policy(capsys, role, "--env", "prod")["Statement"]
    *same, kms = policy(capsys, role, "--env", "prod", "--set", f"encryption={KEY}")["Statement"]
    assert same == without
    assert kms["Resource"] == KEY
    assert all(action.startswith("kms:") for action in kms["Action"])
    assert kms["Condition"] == {"StringLike": {"kms:ViaService": "dynamodb.*.amazonaws.com"}}


def test_a_typo_is_wrong_usage() -> None:
    assert iam.main(["runtme"]) == 64
    assert iam.main(["runtime", "--env", "prdo"]) == 64


def test_every_call_that_was_recorded_is_within_the_printed_migrations_policy(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    allow = [f"--allow={kind}:user-projects" for kind in ("disable-protection", "disable-pitr")]
    assert prod("apply", environment) == 0
    assert run("apply", environment, "--set", "like=dev", "--table=user-projects", *allow) == 0
    assert prod("apply", environment) == 0
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
