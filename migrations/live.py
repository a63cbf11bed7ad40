"""The live state: one snapshot of a table, of which only what a step touched is read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tdev_models.errors import AccessDenied, TdevError
from tdev_models.migrations import declared
from tdev_models.migrations.calls import Absent, Calls, NotYet, Unsupported
from tdev_models.migrations.declared import Scaling, State, Table, resource

PARTS = ("table", "ttl", "pitr", "tag", "scaling", "alarm")
"""What is read by calls of its own; every property that is none of these is part of `table`."""


@dataclass(slots=True)
class Live:
    """What DynamoDB and its neighbours say of one table.

    Attributes:
        description: DescribeTable's answer; empty when there is no such table.
        parts: the state of each part that could be read.
        unknown: why a part, or the encryption, cannot be told; never the same as absent.
        policies: the names of scaling policies by resource and direction.
        own_key: ARN of the account's own KMS key for DynamoDB, once it was needed.
    """

    description: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, State] = field(default_factory=dict)
    unknown: dict[str, TdevError] = field(default_factory=dict)
    policies: dict[tuple[str, str], str] = field(default_factory=dict)
    own_key: str = ""

    @property
    def state(self) -> State:
        """Every property that is known."""
        return {target: value for part in self.parts.values() for target, value in part.items()}

    @property
    def denied(self) -> list[str]:
        """What is unknown because it may not be read."""
        return [str(error) for error in self.unknown.values() if isinstance(error, AccessDenied)]

    @property
    def later(self) -> list[str]:
        """The parts that DynamoDB tells only once the table is made."""
        return [part for part, error in self.unknown.items() if isinstance(error, NotYet)]

    @property
    def readable(self) -> bool:
        """Whether DynamoDB tells more of the table than its description."""
        return self.description.get("TableStatus") not in ("CREATING", "DELETING")

    @property
    def busy(self) -> list[str]:
        """What DynamoDB is still at work on; while it is, the table takes no other change."""
        status = self.description.get("TableStatus", "ACTIVE")
        at_work = [f"table {status}"] if status in ("CREATING", "UPDATING", "DELETING") else []
        encryption = self.description.get("SSEDescription", {}).get("Status", "ENABLED")
        if encryption in ("ENABLING", "DISABLING", "UPDATING"):
            at_work.append(f"encryption {encryption}")
        return at_work + [
            f"index {index['IndexName']} {index['IndexStatus']}"
            for index in self.description.get("GlobalSecondaryIndexes", ())
            if index.get("IndexStatus", "ACTIVE") != "ACTIVE"
        ]


def read(calls: Calls, table: Table, live: Live, parts: Iterable[str] = PARTS) -> Live:
    """Read parts of the snapshot again and return it.

    Raises:
        TdevError: a call failed. What may not be read, what the engine lacks and what it does not
            tell yet raise nothing: they are unknown.
    """
    readers = {
        "table": _table,
        "ttl": _ttl,
        "pitr": _pitr,
        "tag": _tags,
        "scaling": _scaling,
        "alarm": _alarms,
    }
    for part in parts:
        live.unknown.pop(part, None)
        try:
            if part in ("ttl", "pitr", "tag") and not live.readable:
                raise NotYet(f"the table is {live.description['TableStatus']}")
            live.parts[part] = readers[part](calls, table, live)
        except Absent:
            live.parts[part] = {}
        except (Unsupported, AccessDenied, NotYet) as error:
            live.parts[part] = {}
            live.unknown[part] = error
    return live


def _table(calls: Calls, table: Table, live: Live) -> State:
    live.description = {}
    live.unknown.pop("encryption", None)
    found = live.description = calls("DescribeTable", TableName=table.name)["Table"]
    billing = found.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    state: State = {
        ("keys",): declared.keys(found["KeySchema"], found["AttributeDefinitions"]),
        ("billing",): "on-demand" if billing == "PAY_PER_REQUEST" else "provisioned",
        ("protection",): found.get("DeletionProtectionEnabled", False),
    }
    staying = [
        index
        for index in found.get("GlobalSecondaryIndexes", ())
        if index.get("IndexStatus") != "DELETING"
    ]
    shape = {**found, "GlobalSecondaryIndexes": staying}
    state |= {("index", name): index for name, index in declared.indexes(shape).items()}
    if billing == "PROVISIONED":
        state["capacity",] = _units(found)
        state |= {("capacity", index["IndexName"]): _units(index) for index in staying}
    try:
        state["encryption",] = _encryption(calls, table, live)
    except (Unsupported, AccessDenied) as error:
        live.unknown["encryption"] = error
    return state


def _units(description: dict[str, Any]) -> tuple[int, int]:
    units = description["ProvisionedThroughput"]
    return units["ReadCapacityUnits"], units["WriteCapacityUnits"]


def _encryption(calls: Calls, table: Table, live: Live) -> str:
    found = live.description.get("SSEDescription", {})
    if found.get("Status", "DISABLED") in ("DISABLED", "DISABLING"):
        return "aws-owned"
    key = str(found.get("KMSMasterKeyArn", "kms"))
    if table.state["encryption",] == "kms":
        # Only KMS can tell the account's own key for DynamoDB from a customer's.
        if not live.own_key:
            live.own_key = calls("DescribeKey", KeyId="alias/aws/dynamodb")["KeyMetadata"]["Arn"]
        return "kms" if key == live.own_key else key
    return key


def _ttl(calls: Calls, table: Table, live: Live) -> State:
    found = calls("DescribeTimeToLive", TableName=table.name)["TimeToLiveDescription"]
    on = found["TimeToLiveStatus"] in ("ENABLED", "ENABLING")
    return {("ttl",): found.get("AttributeName") if on else None}


def _pitr(calls: Calls, table: Table, live: Live) -> State:
    answer = calls("DescribeContinuousBackups", TableName=table.name)
    found = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    on = found.get("PointInTimeRecoveryStatus") == "ENABLED"
    return {("pitr",): found.get("RecoveryPeriodInDays", 35) if on else 0}


def _tags(calls: Calls, table: Table, live: Live) -> State:
    if not live.description:
        return {}
    state: State = {}
    more: dict[str, str] = {}
    while True:
        answer = calls("ListTagsOfResource", ResourceArn=live.description["TableArn"], **more)
        state |= {("tag", tag["Key"]): tag["Value"] for tag in answer["Tags"]}
        if not answer.get("NextToken"):
            return state
        more = {"NextToken": answer["NextToken"]}


def _scaling(calls: Calls, table: Table, live: Live) -> State:
    live_indexes = declared.indexes(live.description) if live.description else {}
    names = {resource(table.name, of): of for of in ("", *table.indexes, *live_indexes)}
    answer = calls("DescribeScalableTargets", ServiceNamespace="dynamodb", ResourceIds=[*names])
    found: dict[str, dict[str, Scaling]] = {}
    for target in answer["ScalableTargets"]:
        suspended = any(target.get("SuspendedState", {}).values())
        of = found.setdefault(target["ResourceId"], {})
        direction = "Read" if "Read" in target["ScalableDimension"] else "Write"
        least, most = target["MinCapacity"], target["MaxCapacity"]
        # A suspended target scales nothing: as good as one with no range.
        of[direction] = Scaling(0, 0, None) if suspended else Scaling(least, most, None)
    for name, of in found.items():
        answer = calls("DescribeScalingPolicies", ServiceNamespace="dynamodb", ResourceId=name)
        for policy in answer["ScalingPolicies"]:
            direction = "Read" if "Read" in policy["ScalableDimension"] else "Write"
            if direction in of:
                target_value = policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"]
                of[direction] = of[direction]._replace(target=target_value)
                live.policies[name, direction] = policy["PolicyName"]
    return {("scaling", *filter(None, [names[name]])): of for name, of in found.items()}


def _alarms(calls: Calls, table: Table, live: Live) -> State:
    state: State = {}
    more: dict[str, str] = {}
    while True:
        answer = calls("DescribeAlarms", AlarmNamePrefix=f"{table.name}/", **more)
        for alarm in answer["MetricAlarms"]:
            state["alarm", alarm["AlarmName"].removeprefix(f"{table.name}/")] = {
                name: alarm.get(name)
                for name in (
                    "AlarmDescription",
                    "AlarmActions",
                    "ActionsEnabled",
                    "ComparisonOperator",
                    "Threshold",
                    "EvaluationPeriods",
                    "DatapointsToAlarm",
                    "TreatMissingData",
                )
            } | {"Metrics": declared.metrics(alarm.get("Metrics", ()))}
        if not answer.get("NextToken"):
            return state
        more = {"NextToken": answer["NextToken"]}
