"""Least-privilege IAM policies, derived from the operations that the code can send."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from botocore.session import get_session

from tdev_models import aws
from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.migrations import declared, report
from tdev_models.migrations.calls import OPERATIONS, is_read
from tdev_models.migrations.command import Parser, add_environment, chosen_environment
from tdev_models.migrations.environments import Environment
from tdev_models.settings import Settings, current

RUNTIME_ACTIONS = ["GetItem", "PutItem", "UpdateItem", "Query"]
"""The plan's four, by which IAM authorises the parts of a transaction, too.

PutItem is never sent: it would delete attributes that newer releases have written.
"""

_NEVER_SENT = (
    "note: dynamodb:PutItem is the plan's; the package never sends it, so it may be left out"
)
REKEY_ACTIONS = ["DescribeTable", "Scan", "Query", "UpdateItem", "DeleteItem"]
"""What `tdev rekey` needs; no other command deletes."""


def main(argv: list[str] | None = None, prog: str = "tdev iam") -> int:
    """Print the policy of a role and return the exit code: 0, or 64 for wrong usage."""
    try:
        options = parser(prog).parse_args(argv)
        of_all = options.env is None and not (options.config or options.set)
        if options.role == "runtime" and of_all:
            document = runtime()
        else:
            document = _POLICIES[options.role](*chosen_environment(options))
    except SystemExit as end:
        return int(end.code or 0)
    except TdevError as error:
        sys.stderr.write(f"error: {error}\n")
        return report.USAGE if isinstance(error, InvalidRequest) else report.ERROR
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    if options.role == "runtime":
        sys.stderr.write(f"{_NEVER_SENT}\n")
    return 0


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = Parser(prog=prog, description="Print an IAM policy.", allow_abbrev=False)
    parser.add_argument("role", choices=[*_POLICIES])
    add_environment(parser)
    return parser


def runtime(
    settings: Settings | None = None, environment: Environment | None = None
) -> dict[str, Any]:
    """Return the policy of the services: for one environment, or without settings for all."""
    arn = _partition(settings)
    names = [f"table/{current().prefix}-*"]
    if settings:
        names = [f"table/{name}" for name in _tables(settings)]
        names += [f"{name}/index/*" for name in names]
    arns = [f"{arn}:dynamodb:*:*:{name}" for name in names]
    actions = [f"dynamodb:{action}" for action in RUNTIME_ACTIONS]
    statements = [_allow(actions, arns), *_kms(environment, ["kms:Decrypt"])]
    return _policy([*statements, *_field_keys(settings or current(), bool(settings))])


def rekeying(settings: Settings, environment: Environment) -> dict[str, Any]:
    """Return the policy of a role that may run `tdev rekey`."""
    arn = _partition(settings)
    arns = [f"{arn}:dynamodb:*:*:table/{name}" for name in _tables(settings)]
    actions = [f"dynamodb:{action}" for action in REKEY_ACTIONS]
    statements = [_allow(actions, arns), *_kms(environment, ["kms:Decrypt"])]
    return _policy([*statements, *_field_keys(settings, narrow=True)])


def _field_keys(settings: Settings, narrow: bool) -> list[dict[str, Any]]:
    """Return what field encryption needs: on its keys, and narrowed to one environment's data."""
    context = {"StringEquals": {"kms:EncryptionContext:environment": settings.environment}}
    statements = []
    for actions, keys in (
        (["kms:GenerateDataKey", "kms:Decrypt"], [settings.kms_key] if settings.kms_key else []),
        (["kms:Decrypt"], [*settings.kms_former_keys]),
    ):
        if keys:
            statements.append(_allow(actions, keys, context if narrow else None))
    return statements


def migrations(
    settings: Settings, environment: Environment, reads: bool = False, rows: bool = False
) -> dict[str, Any]:
    """Return the policy of the role that runs migrations in one environment.

    Args:
        settings: the names of the tables and the region.
        environment: the keys of the tables.
        reads: allow reading alone, as `plan` and `status` need it.
        rows: allow writing rows, as `backfill` does.
    """
    arn, tables = _partition(settings), _tables(settings)
    arns = {
        "*": ["*"],
        "rows": [f"{arn}:dynamodb:*:*:table/{name}" for name in tables],
        "table": [f"{arn}:dynamodb:*:*:table/{name}" for name in tables],
        "scalable-target": [f"{arn}:application-autoscaling:*:*:scalable-target/*"],
        # PutScalingPolicy creates alarms of auto scaling with the caller's permissions.
        "alarm": [
            f"{arn}:cloudwatch:*:*:alarm:{alarm}"
            for name in tables
            for alarm in (
                f"{name}/*",
                f"TargetTracking-table/{name}-*",
                f"TargetTracking-table/{name}/index/*",
            )
        ],
        "aws-key": [f"{arn}:kms:*:*:key/*"],
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
            if resource_kind == kind and (rows if kind == "rows" else is_read(name) or not reads)
        ]
        if actions:
            statements.append(_allow(actions, resources, conditions.get(kind)))
    needed = ["Decrypt", "DescribeKey"]
    if rows:
        needed += ["Encrypt", "GenerateDataKey*"]
    if not reads:
        role = "dynamodb.application-autoscaling.amazonaws.com"
        statements.append(
            _allow(
                ["iam:CreateServiceLinkedRole"],
                [f"{arn}:iam::*:role/aws-service-role/{role}/*"],
                {"StringEquals": {"iam:AWSServiceName": role}},
            )
        )
        needed += ["Encrypt", "ReEncrypt*", "GenerateDataKey*", "CreateGrant"]
    return _policy([*statements, *_kms(environment, [f"kms:{name}" for name in needed])])


@aws.configuring()
def _partition(settings: Settings | None) -> str:
    """Return what ARNs begin with, which differs in China and for governments."""
    session = get_session()
    region = (settings or current()).region or session.get_config_variable("region")
    return f"arn:{session.get_partition_for_region(region or 'us-east-1')}"


def _tables(settings: Settings) -> list[str]:
    return [table.name for table in declared.tables(settings, Environment())]


def _kms(environment: Environment | None, actions: list[str]) -> list[dict[str, Any]]:
    if environment is None:
        return []
    used = {environment.encryption, *(environment.of(t).encryption for t in environment.tables)}
    keys = sorted(used - {"aws-owned", "kms"})
    via = {"StringLike": {"kms:ViaService": "dynamodb.*"}}
    return [_allow(actions, keys, via)] if keys else []


_POLICIES: Mapping[str, Callable[[Settings, Environment], dict[str, Any]]] = {
    "runtime": runtime,
    "migrations": migrations,
    "plan": partial(migrations, reads=True),
    "backfill": partial(migrations, reads=True, rows=True),
    "rekey": rekeying,
}


def _policy(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    actions: list[str], resources: list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    resource = resources[0] if len(resources) == 1 else resources
    statement = {"Effect": "Allow", "Action": actions, "Resource": resource}
    return {**statement, "Condition": condition} if condition else statement
