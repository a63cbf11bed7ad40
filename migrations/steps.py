"""The next call that makes a change of a plan; nothing here does I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tdev_models.migrations.declared import (
    BILLING,
    CAPACITY,
    ENCRYPTION,
    KEYS,
    PROTECTION,
    Index,
    Key,
    Property,
    Scaling,
    Table,
    indexes_in,
    resource,
)
from tdev_models.migrations.diff import Change
from tdev_models.migrations.live import PARTS, Live

_MOST = ("MaxReadRequestUnits", "MaxWriteRequestUnits")


@dataclass(frozen=True, slots=True)
class Step:
    """One call.

    Attributes:
        operation: one of `calls.OPERATIONS`.
        request: its parameters.
        touches: the parts of the live state that it may change.
    """

    operation: str
    request: dict[str, Any]
    touches: tuple[str, ...] = ("table",)


def next_step(table: Table, live: Live, change: Change, backfill_units: int = 0) -> Step:
    """Return the next call towards a change; some take several, each chosen by the live state.

    Args:
        table: the declared table.
        live: its live state.
        change: what has to change.
        backfill_units: see `new_index_units`.
    """
    target, want = change.target, change.after
    name = {"TableName": table.name}
    match target.kind:
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
            return Step("UpdateTable", {**name, **_index(table, live, change, backfill_units)})
        case "capacity" | "maximum":
            units = _throughput(target.kind, want)
            if not target.index:
                return Step("UpdateTable", {**name, **units})
            update = {"Update": {"IndexName": target.index, **units}}
            return Step("UpdateTable", {**name, "GlobalSecondaryIndexUpdates": [update]})
        case "scaling":
            return _scaling(table, live, change)
        case "ttl":
            # TTL on one attribute has to be turned off before it is turned on for another.
            on = change.before is None
            ttl = {"Enabled": on, "AttributeName": want if on else change.before}
            request = {**name, "TimeToLiveSpecification": ttl}
            return Step("UpdateTimeToLive", request, ("ttl",))
        case "tag":
            tags = [{"Key": target.name, "Value": want}]
            arn = live.description["TableArn"]
            return Step("TagResource", {"ResourceArn": arn, "Tags": tags}, ("tag",))
        case _:
            alarm = f"{table.name}/{target.name}"
            if want is None:
                return Step("DeleteAlarms", {"AlarmNames": [alarm]}, ("alarm",))
            own = live.kept.get(target, {})
            return Step("PutMetricAlarm", {"AlarmName": alarm, **own, **want}, ("alarm",))


def _creation(table: Table) -> dict[str, Any]:
    state = table.state
    indexes = {item.index: value for item, value in state.items() if item.kind == "index"}
    tags = {item.name: value for item, value in state.items() if item.kind == "tag"}
    request: dict[str, Any] = {
        **_schema(state[KEYS]),
        "AttributeDefinitions": _types([state[KEYS], *(i.keys for i in indexes.values())]),
        "DeletionProtectionEnabled": state[PROTECTION],
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        **_billing_mode(table),
        **_limits(table),
    }
    if indexes:
        request["GlobalSecondaryIndexes"] = [
            _index_creation(table, Live(), name, index, 0) for name, index in indexes.items()
        ]
    if state[ENCRYPTION] != "aws-owned":
        request["SSESpecification"] = _encryption(state[ENCRYPTION])
    return request


def _schema(keys: Iterable[Key]) -> dict[str, Any]:
    return {"KeySchema": [{"AttributeName": key.name, "KeyType": key.role} for key in keys]}


def _types(keys: Iterable[Iterable[Key]]) -> list[dict[str, str]]:
    types = {part.name: part.type for key in keys for part in key}
    return [{"AttributeName": name, "AttributeType": kind} for name, kind in types.items()]


def _units(units: tuple[int, int]) -> dict[str, int]:
    return {"ReadCapacityUnits": units[0], "WriteCapacityUnits": units[1]}


def _throughput(kind: str, units: tuple[int, int]) -> dict[str, Any]:
    if kind == "capacity":
        return {"ProvisionedThroughput": _units(units)}
    # -1 takes a limit away.
    return {
        "OnDemandThroughput": {name: most or -1 for name, most in zip(_MOST, units, strict=True)}
    }


def _limits(table: Table, index: str = "") -> dict[str, Any]:
    """Return what a table or an index is created with where requests are limited."""
    units = table.state.get(Property("maximum", index), (0, 0))
    limits = {name: most for name, most in zip(_MOST, units, strict=True) if most}
    return {"OnDemandThroughput": limits} if limits else {}


def _billing_mode(table: Table) -> dict[str, Any]:
    if table.state[BILLING] == "on-demand":
        return {"BillingMode": "PAY_PER_REQUEST"}
    return {
        "BillingMode": "PROVISIONED",
        "ProvisionedThroughput": _units(table.state[CAPACITY]),
    }


def _billing(table: Table, live: Live) -> dict[str, Any]:
    """Return the change of billing; one to provisioned must give units to every live index."""
    request = _billing_mode(table)
    indexes = indexes_in(live.state)
    if "ProvisionedThroughput" in request and indexes:
        of_table = table.state[CAPACITY]
        units = {i: table.state.get(Property("capacity", i)) or of_table for i in indexes}
        request["GlobalSecondaryIndexUpdates"] = [
            {"Update": {"IndexName": name, "ProvisionedThroughput": _units(units[name])}}
            for name in indexes
        ]
    return request


def _encryption(wanted: str) -> dict[str, Any]:
    if wanted == "aws-owned":
        return {"Enabled": False}
    key = {} if wanted == "kms" else {"KMSMasterKeyId": wanted}
    return {"Enabled": True, "SSEType": "KMS", **key}


def _index(table: Table, live: Live, change: Change, backfill_units: int) -> dict[str, Any]:
    name = change.target.index
    if change.before is not None:  # a replacement is created by a later step
        return {"GlobalSecondaryIndexUpdates": [{"Delete": {"IndexName": name}}]}
    in_use = [value.keys for item, value in live.state.items() if item.kind == "index"]
    create = _index_creation(table, live, name, change.after, backfill_units)
    return {
        "AttributeDefinitions": _types([live.state[KEYS], *in_use, change.after.keys]),
        "GlobalSecondaryIndexUpdates": [{"Create": create}],
    }


def new_index_units(
    table: Table, live: Live, name: str, backfill_units: int = 0
) -> tuple[int, int] | None:
    """Return the units with which an index is created; its build takes the write units.

    Where auto scaling may set them: `backfill_units`, or else the table's, within its range. It
    does not reach an index before it is built, and an index with fewer units than the table slows
    the table's writes down.
    """
    units: tuple[int, int] | None = table.state.get(Property("capacity", name))
    scaling = table.state.get(Property("scaling", name))
    if not units or not scaling:
        return units
    reads, writes = live.state.get(CAPACITY) or units
    writes = backfill_units or writes
    return (
        max(units[0], min(reads, scaling["Read"].max)),
        max(units[1], min(writes, scaling["Write"].max)),
    )


def _index_creation(
    table: Table, live: Live, name: str, index: Index, backfill_units: int
) -> dict[str, Any]:
    projection: dict[str, Any] = {"ProjectionType": index.projection}
    if index.attributes:
        projection["NonKeyAttributes"] = sorted(index.attributes)
    request: dict[str, Any] = {"IndexName": name, **_schema(index.keys), "Projection": projection}
    if units := new_index_units(table, live, name, backfill_units):
        request["ProvisionedThroughput"] = _units(units)
    return {**request, **_limits(table, name)}


def _scaling(table: Table, live: Live, change: Change) -> Step:
    """Return the next of at most four calls: targets before policies, reads before writes."""
    index = change.target.index
    name = resource(table.name, index)
    have: dict[str, Scaling] = change.before or {}
    want: dict[str, Scaling] = change.after or {}

    def step(operation: str, direction: str, **more: Any) -> Step:
        dimension = f"dynamodb:{'index' if index else 'table'}:{direction}CapacityUnits"
        request = {
            "ServiceNamespace": "dynamodb",
            "ResourceId": name,
            "ScalableDimension": dimension,
            **more,
        }
        return Step(operation, request, ("scaling",))

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
        **live.kept.get((name, direction), {}),
    }
    # A second policy for the same metric is refused: an existing one is changed, under its name.
    default = f"DynamoDB{direction}CapacityUtilization:{name}"
    return step(
        "PutScalingPolicy",
        direction,
        PolicyName=live.policies.get((name, direction), default),
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
