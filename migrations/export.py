"""The declared tables as a template of AWS CloudFormation, from the same steps as apply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tdev_models.migrations.declared import Scaling, Table
from tdev_models.migrations.diff import Change, diff
from tdev_models.migrations.live import Live
from tdev_models.migrations.steps import Step, next_step

_TYPES = {
    "RegisterScalableTarget": "AWS::ApplicationAutoScaling::ScalableTarget",
    "PutScalingPolicy": "AWS::ApplicationAutoScaling::ScalingPolicy",
    "PutMetricAlarm": "AWS::CloudWatch::Alarm",
}
"""What is a resource of its own in a stack; every other step sets properties of the table."""


def cloudformation(tables: Sequence[Table]) -> dict[str, Any]:
    """Return the template of a stack that makes tables as apply does; sends nothing.

    The stack leaves a table behind when it is deleted, or would replace the table.
    """
    resources: dict[str, Any] = {}
    for table in tables:
        properties: dict[str, Any] = {}
        kept = dict.fromkeys(("DeletionPolicy", "UpdateReplacePolicy"), "Retain")
        of_table = _id("table", table.short)
        resources[of_table] = {"Type": "AWS::DynamoDB::Table", "Properties": properties, **kept}
        for step in _creation(table):
            if kind := _TYPES.get(step.operation):
                names = _names(table, step.request)
                is_policy = step.operation == "PutScalingPolicy"
                resources[_id(kind.split("::")[-1], *names)] = {
                    "Type": kind,
                    "DependsOn": _id("ScalableTarget", *names) if is_policy else of_table,
                    "Properties": step.request,
                }
            else:
                properties |= step.request
        if encryption := properties.get("SSESpecification"):
            encryption["SSEEnabled"] = encryption.pop("Enabled")
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}


def _creation(table: Table) -> Iterator[Step]:
    """Yield the steps that make a table where there is none."""
    live = Live()
    for change in diff(table, live):
        if change.target.kind == "scaling":
            yield from _scaling(table, live, change)
        else:
            yield next_step(table, live, change)


def _scaling(table: Table, live: Live, change: Change) -> Iterator[Step]:
    have: dict[str, Scaling] = {}
    while have != change.after:
        step = next_step(table, live, replace(change, before=have))
        yield step
        direction = "Read" if "Read" in step.request["ScalableDimension"] else "Write"
        wanted = change.after[direction]
        has_policy = step.operation == "PutScalingPolicy"
        have |= {direction: wanted if has_policy else wanted._replace(target=None)}


def _names(table: Table, request: dict[str, Any]) -> tuple[str, str]:
    """Return what tells the resources of one type apart, in every environment the same."""
    name = request.get("AlarmName") or request["ResourceId"].removeprefix("table/")
    dimension = request.get("ScalableDimension", "").rpartition(":")[2]
    return name.replace(table.name, table.short, 1), dimension


def _id(*names: str) -> str:
    """Return a name for a resource of the stack, which takes letters and digits only."""
    return "".join(part[:1].upper() + part[1:] for name in names for part in re.split(r"\W", name))
