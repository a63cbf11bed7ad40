"""The next call that brings one change about; nothing here does I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tdev_models.migrations.declared import Index, Key, Scaling, Table, resource
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import PARTS, Live


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        operation: the operation, one of `calls.OPERATIONS`.
        request: its parameters.
        touches: the parts of the snapshot to read again.
    """

    operation: str
    request: dict[str, Any]
    touches: tuple[str, ...] = ("table",)


def next_step(table: Table, live: Live, change: Change) -> Step:
    """Return the next call towards a change; some changes take several, one after another."""
    kind, want = change.target[0], change.after
    name = {"TableName": table.name}
    match kind:
        case "keys":
            return Step("CreateTable", {**name, **_creation(table)}, PARTS)
        case "protection":
            return Step("UpdateTable", {**name, "DeletionProtectionEnabled": want})
        case "encryption":
            return Step("UpdateTable", {**name, "SSESpecification": _encryption(want)})
        case "pitr":
            recovery = {"PointInTimeRecoveryEnabled": want > 0}
            days = {"RecoveryPeriodInDays": want} if want else {}
            request = {**name, "PointInTimeRecoverySpecification": {**recovery, **days}}
            return Step("UpdateContinuousBackups", request, ("pitr",))
        case "billing":
            return Step("UpdateTable", {**name, **_billing(table, live)})
        case "index":
            return Step("UpdateTable", {**name, **_index(table, live, change)})
        case "capacity":
            units = {"ProvisionedThroughput": _units(want)}
            if not change.target[1:]:
                return Step("UpdateTable", {**name, **units})
            update = {"Update": {"IndexName": change.target[1], **units}}
            return Step("UpdateTable", {**name, "GlobalSecondaryIndexUpdates": [update]})
        case "scaling":
            return _scaling(table, live, change)
        case "ttl":
            # One attribute has to be turned off before another is turned on.
            on = change.before is None
            ttl = {"Enabled": on, "AttributeName": want if on else change.before}
            request = {**name, "TimeToLiveSpecification": ttl}
            return Step("UpdateTimeToLive", request, ("ttl",))
        case "tag":
            tags = [{"Key": change.target[1], "Value": want}]
            arn = live.description["TableArn"]
            return Step("TagResource", {"ResourceArn": arn, "Tags": tags}, ("tag",))
        case _:
            alarm = f"{table.name}/{change.target[1]}"
            if want is None:
                return Step("DeleteAlarms", {"AlarmNames": [alarm]}, ("alarm",))
            return Step("PutMetricAlarm", {"AlarmName": alarm, **want}, ("alarm",))


def _creation(table: Table) -> dict[str, Any]:
    state = table.state
    indexes = {target[1]: value for target, value in state.items() if target[0] == "index"}
    request: dict[str, Any] = {
        **_schema(state["keys",]),
        "AttributeDefinitions": _types([state["keys",], *(i.keys for i in indexes.values())]),
        "DeletionProtectionEnabled": state["protection",],
        "Tags": [{"Key": t[1], "Value": value} for t, value in state.items() if t[0] == "tag"],
        **_mode(table),
    }
    if indexes:
        made = [_index_creation(table, Live(), name, index) for name, index in indexes.items()]
        request["GlobalSecondaryIndexes"] = made
    if state["encryption",] != "aws-owned":
        request["SSESpecification"] = _encryption(state["encryption",])
    return request


def _schema(keys: Iterable[Key]) -> dict[str, Any]:
    return {"KeySchema": [{"AttributeName": key.name, "KeyType": key.role} for key in keys]}


def _types(keys: Iterable[Iterable[Key]]) -> list[dict[str, str]]:
    types = {key.name: key.type for of in keys for key in of}
    return [{"AttributeName": name, "AttributeType": kind} for name, kind in types.items()]


def _units(units: tuple[int, int]) -> dict[str, int]:
    return {"ReadCapacityUnits": units[0], "WriteCapacityUnits": units[1]}


def _mode(table: Table) -> dict[str, Any]:
    if table.state["billing",] == "on-demand":
        return {"BillingMode": "PAY_PER_REQUEST"}
    return {
        "BillingMode": "PROVISIONED",
        "ProvisionedThroughput": _units(table.state["capacity",]),
    }


def _billing(table: Table, live: Live) -> dict[str, Any]:
    """Return the switch of billing, which to provisioned must name every live index."""
    request = _mode(table)
    indexes = [target[1] for target in live.state if target[0] == "index"]
    if "ProvisionedThroughput" in request and indexes:
        units = {"ProvisionedThroughput": request["ProvisionedThroughput"]}
        updates = [{"Update": {"IndexName": name, **units}} for name in indexes]
        request["GlobalSecondaryIndexUpdates"] = updates
    return request


def _encryption(wanted: str) -> dict[str, Any]:
    if wanted == "aws-owned":
        return {"Enabled": False}
    key = {} if wanted == "kms" else {"KMSMasterKeyId": wanted}
    return {"Enabled": True, "SSEType": "KMS", **key}


def _index(table: Table, live: Live, change: Change) -> dict[str, Any]:
    name = change.target[1]
    if change.before is not None:  # goes; if another is declared, it comes with a step of its own
        return {"GlobalSecondaryIndexUpdates": [{"Delete": {"IndexName": name}}]}
    in_use = [value.keys for target, value in live.state.items() if target[0] == "index"]
    create = _index_creation(table, live, name, change.after)
    return {
        "AttributeDefinitions": _types([live.state["keys",], *in_use, change.after.keys]),
        "GlobalSecondaryIndexUpdates": [{"Create": create}],
    }


def _index_creation(table: Table, live: Live, name: str, index: Index) -> dict[str, Any]:
    projection: dict[str, Any] = {"ProjectionType": index.projection}
    if index.attributes:
        projection["NonKeyAttributes"] = sorted(index.attributes)
    request: dict[str, Any] = {"IndexName": name, **_schema(index.keys), "Projection": projection}
    if ("capacity", name) in table.state:
        units = table.state["capacity", name]
        if ("scaling", name) in table.state:
            # Nothing scales it while it is made, and the table's writes wait for it.
            of = live.state.get(("capacity",)) or units
            units = (max(units[0], of[0]), max(units[1], of[1]))
        request["ProvisionedThroughput"] = _units(units)
    return request


def _scaling(table: Table, live: Live, change: Change) -> Step:
    """Return the next of at most four calls: targets before policies, reads before writes."""
    index = change.target[1] if change.target[1:] else ""
    name = resource(table.name, index)
    have: dict[str, Scaling] = change.before or {}
    want: dict[str, Scaling] = change.after or {}

    def step(operation: str, direction: str, **more: Any) -> Step:
        dimension = f"dynamodb:{'index' if index else 'table'}:{direction}CapacityUnits"
        of = {"ServiceNamespace": "dynamodb", "ResourceId": name, "ScalableDimension": dimension}
        return Step(operation, {**of, **more}, ("scaling",))

    for direction in ("Read", "Write"):
        if direction in have and direction not in want:
            return step("DeregisterScalableTarget", direction)
    for direction, wanted in want.items():
        if direction not in have or have[direction][:2] != wanted[:2]:
            running = {
                f"{which}Suspended": False
                for which in ("DynamicScalingIn", "DynamicScalingOut", "ScheduledScaling")
            }
            return step(
                "RegisterScalableTarget",
                direction,
                MinCapacity=wanted.min,
                MaxCapacity=wanted.max,
                SuspendedState=running,
            )
    direction = next(d for d in want if have[d] != want[d])
    metric = {"PredefinedMetricType": f"DynamoDB{direction}CapacityUtilization"}
    tracking = {
        "TargetValue": want[direction].target,
        "PredefinedMetricSpecification": metric,
    }
    # There can be one such policy only: one that was made by hand is taken over under its name.
    default = f"DynamoDB{direction}CapacityUtilization:{name}"
    return step(
        "PutScalingPolicy",
        direction,
        PolicyName=live.policies.get((name, direction), default),
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
