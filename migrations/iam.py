"""Least-privilege IAM policies, derived from the operations that the code can send."""

from __future__ import annotations

import json
import sys
from typing import Any

from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.migrations import report
from tdev_models.migrations.calls import OPERATIONS
from tdev_models.migrations.command import Parser, add_environment, chosen_environment
from tdev_models.migrations.environments import Environment
from tdev_models.settings import Settings

RUNTIME_ACTIONS = ["GetItem", "PutItem", "UpdateItem", "Query"]
"""What the services need; IAM authorises a transaction by the actions of its parts."""


def main(argv: list[str] | None = None, prog: str = "tdev iam") -> int:
    """Print the policy of a role and return the exit code: 0, or 64 for wrong usage."""
    parser = Parser(prog=prog, description="Print an IAM policy.", allow_abbrev=False)
    parser.add_argument("role", choices=("runtime", "migrations"))
    add_environment(parser)
    try:
        options = parser.parse_args(argv)
        if options.role == "runtime" and not (options.env or options.config or options.set):
            document = runtime()
        else:
            make = runtime if options.role == "runtime" else migrations
            document = make(*chosen_environment(options))
    except SystemExit as end:
        return int(end.code or 0)
    except TdevError as error:
        sys.stderr.write(f"error: {error}\n")
        return report.USAGE if isinstance(error, InvalidRequest) else report.ERROR
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0


def runtime(
    settings: Settings | None = None, environment: Environment | None = None
) -> dict[str, Any]:
    """Return the policy of the services: for one environment, or without settings for all."""
    prefix = f"{settings.prefix}-{settings.environment}" if settings else "t-developer"
    actions = [f"dynamodb:{action}" for action in RUNTIME_ACTIONS]
    tables = _allow(actions, f"arn:aws:dynamodb:*:*:table/{prefix}-*")
    return _policy([tables, *_kms(environment, ["kms:Decrypt"])])


def migrations(settings: Settings, environment: Environment) -> dict[str, Any]:
    """Return the policy of the role that runs migrations in one environment."""
    prefix = f"{settings.prefix}-{settings.environment}-*"
    arns = {
        "*": ["*"],
        "table": [f"arn:aws:dynamodb:*:*:table/{prefix}"],
        "scalable-target": ["arn:aws:application-autoscaling:*:*:scalable-target/*"],
        # PutScalingPolicy creates alarms of auto scaling with the caller's permissions.
        "alarm": [
            f"arn:aws:cloudwatch:*:*:alarm:{prefix}",
            f"arn:aws:cloudwatch:*:*:alarm:TargetTracking-table/{prefix}",
        ],
        "aws-key": ["arn:aws:kms:*:*:key/*"],
    }
    conditions = {
        "scalable-target": {
            "StringEquals": {"application-autoscaling:service-namespace": "dynamodb"}
        },
        "aws-key": {"StringEquals": {"kms:RequestAlias": "alias/aws/dynamodb"}},
    }
    statements = []
    for kind, resources in arns.items():
        actions = [
            f"{service}:{name}"
            for name, (service, resource_kind) in OPERATIONS.items()
            if resource_kind == kind
        ]
        resource = resources[0] if len(resources) == 1 else resources
        statements.append(_allow(actions, resource, conditions.get(kind)))
    role = "dynamodb.application-autoscaling.amazonaws.com"
    statements.append(
        _allow(
            ["iam:CreateServiceLinkedRole"],
            f"arn:aws:iam::*:role/aws-service-role/{role}/*",
            {"StringEquals": {"iam:AWSServiceName": role}},
        )
    )
    needed = ["Encrypt", "Decrypt", "ReEncrypt*", "GenerateDataKey*", "DescribeKey", "CreateGrant"]
    return _policy([*statements, *_kms(environment, [f"kms:{action}" for action in needed])])


def _kms(environment: Environment | None, actions: list[str]) -> list[dict[str, Any]]:
    if environment is None or environment.encryption in ("aws-owned", "kms"):
        return []
    via = {"StringLike": {"kms:ViaService": "dynamodb.*.amazonaws.com"}}
    return [_allow(actions, environment.encryption, via)]


def _policy(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    actions: list[str], resource: str | list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    statement = {"Effect": "Allow", "Action": actions, "Resource": resource}
    return {**statement, "Condition": condition} if condition else statement
