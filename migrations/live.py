"""The live state of a table, in parts, so that only what a step changed is read again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tdev_models.errors import AccessDenied, TdevError
from tdev_models.migrations import declared
from tdev_models.migrations.calls import Absent, Calls, NotYet, Unsupported
from tdev_models.migrations.declared import (
    BILLING,
    ENCRYPTION,
    KEYS,
    PITR,
    PROTECTION,
    TTL,
    Property,
    Scaling,
    State,
    Table,
    resource,
)

_USUAL_CLASSES = (None, "STANDARD")
_DEAD = {
    "ARCHIVING": "its KMS key cannot be used: make the key usable again",
    "ARCHIVED": "its KMS key could not be used for 7 days: restore it from the backup of that time",
    "INACCESSIBLE_ENCRYPTION_CREDENTIALS": "its KMS key cannot be used: enable the key, or its"
    " grant, again",
    "REPLICATION_NOT_AUTHORIZED": "its replicas may not be written: give the role that permission",
}
"""The statuses in which nothing can be read or written, and what ends them."""

_OF_AN_ALARM = (
    "AlarmDescription",
    "AlarmActions",
    "ActionsEnabled",
    "ComparisonOperator",
    "Threshold",
    "EvaluationPeriods",
    "DatapointsToAlarm",
    "TreatMissingData",
)

# What no declaration can say of a scaling policy and of an alarm: it is reported and kept.
_OWN_OF_A_POLICY = ("DisableScaleIn", "ScaleInCooldown", "ScaleOutCooldown")
_OWN_OF_AN_ALARM = ("OKActions", "InsufficientDataActions")

PARTS = ("table", "ttl", "pitr", "tag", "scaling", "alarm")
"""What is read separately; properties of every other kind are read with `table`."""


@dataclass(slots=True)
class Live:
    """What DynamoDB, auto scaling and CloudWatch report of one table.

    Attributes:
        description: DescribeTable's response; empty when there is no such table.
        parts: the state of each part; empty for a part that is absent or could not be read.
        unknown: why a part, or the encryption, could not be read; unknown never means absent.
        policies: the names of scaling policies by resource and direction.
        kept: what no declaration can say, and who writes a scaling policy or an alarm has to
            repeat: by resource and direction, or by the alarm's property.
        noticed: what no declaration can say, in each part: the property, and what it is.
        own_key: ARN of the account's own KMS key for DynamoDB; empty until it is needed.
    """

    description: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, State] = field(default_factory=dict)
    unknown: dict[str, TdevError] = field(default_factory=dict)
    policies: dict[tuple[str, str], str] = field(default_factory=dict)
    kept: dict[tuple[str, str] | Property, dict[str, Any]] = field(default_factory=dict)
    noticed: dict[str, dict[Property, str]] = field(default_factory=dict)
    own_key: str = ""

    @property
    def state(self) -> State:
        """Every property that is known."""
        return {item: value for part in self.parts.values() for item, value in part.items()}

    @property
    def dead(self) -> str:
        """Why nothing can be read from or written to the table; empty when it is alive."""
        status = self.description.get("TableStatus", "")
        return f"the table is {status}: {_DEAD[status]}" if status in _DEAD else ""

    @property
    def made_or_deleted(self) -> bool:
        """Whether DynamoDB makes, restores or deletes the table: no rows and few parts are read."""
        return self.description.get("TableStatus") in ("CREATING", "DELETING")

    @property
    def vanished(self) -> bool:
        """Whether there is no table, but what belongs to it: somebody has deleted it."""
        left = self.parts.get("scaling") or any(
            declared.is_ours(item) for item in self.parts.get("alarm", ())
        )
        return bool(left) and not self.description and "table" not in self.unknown

    @property
    def denied(self) -> list[str]:
        """The errors of what is unknown because the role may not read it."""
        return [str(error) for error in self.unknown.values() if isinstance(error, AccessDenied)]

    @property
    def not_yet_readable(self) -> list[str]:
        """The parts that DynamoDB reports only once it has created the table."""
        return [part for part, error in self.unknown.items() if isinstance(error, NotYet)]

    @property
    def busy(self) -> list[str]:
        """The changes that DynamoDB still carries out; until then it accepts no other."""
        status = self.description.get("TableStatus", "ACTIVE")
        running = [f"table {status}"] if status in ("CREATING", "UPDATING", "DELETING") else []
        encryption = self.description.get("SSEDescription", {}).get("Status", "ENABLED")
        if encryption in ("ENABLING", "DISABLING", "UPDATING"):
            running.append(f"encryption {encryption}")
        return running + [
            f"index {index['IndexName']} {index['IndexStatus']}"
            for index in self.description.get("GlobalSecondaryIndexes", ())
            if index.get("IndexStatus", "ACTIVE") != "ACTIVE"
        ]


def read(calls: Calls, table: Table, live: Live, parts: Iterable[str] = PARTS) -> Live:
    """Read parts of the live state again and return it.

    A part that the role may not read, that the engine lacks or does not report yet is noted in
    `unknown`.

    Raises:
        TdevError: a call failed for any other reason.
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
        live.noticed[part] = {}
        try:
            if part in ("ttl", "pitr", "tag") and live.made_or_deleted:
                raise NotYet(f"the table is {live.description['TableStatus']}")
            live.parts[part] = readers[part](calls, table, live)
        except Absent:
            live.parts[part] = {}
        except (Unsupported, AccessDenied, NotYet) as error:
            live.parts[part], live.unknown[part] = {}, error
    return live


def _table(calls: Calls, table: Table, live: Live) -> State:
    live.description = {}
    for name in [*live.unknown]:
        if name in ("encryption", "maximum") or name.startswith("capacity"):
            del live.unknown[name]
    description = live.description = calls("DescribeTable", TableName=table.name)["Table"]
    billing = description.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
    state: State = {
        KEYS: declared.keys(description["KeySchema"], description["AttributeDefinitions"]),
        BILLING: "on-demand" if billing == "PAY_PER_REQUEST" else "provisioned",
        PROTECTION: description.get("DeletionProtectionEnabled", False),
    }
    live.noticed["table"] |= _undeclared(description)
    staying = [
        index
        for index in description.get("GlobalSecondaryIndexes", ())
        if index.get("IndexStatus") != "DELETING"
    ]
    indexes = declared.indexes({**description, "GlobalSecondaryIndexes": staying})
    state |= {Property("index", name): index for name, index in indexes.items()}
    resources = {"": description, **{index["IndexName"]: index for index in staying}}
    state |= _throughput(calls, table, live, resources, state[BILLING])
    try:
        state[ENCRYPTION] = _encryption(calls, table, live)
    except (Unsupported, AccessDenied) as error:
        live.unknown["encryption"] = error
    return state


def _throughput(
    calls: Calls, table: Table, live: Live, resources: dict[str, dict[str, Any]], billing: str
) -> State:
    """Return the units of the table, whose name here is empty, and of its indexes."""
    state: State = {}
    if billing == "provisioned":
        for name, resource in resources.items():
            units = _units(resource)
            if any(units):
                state[Property("capacity", name)] = units
            else:  # dynoxide, of an index that was added, or that was on-demand before
                live.unknown[f"capacity {name}"] = Unsupported("this endpoint reports no units")
    elif not calls.local:
        state = {Property("maximum", name): _maximum(each) for name, each in resources.items()}
    if calls.local and any(
        any(value) for item, value in table.state.items() if item.kind == "maximum"
    ):
        live.unknown["maximum"] = Unsupported("a local engine limits no requests")
    return state


def _undeclared(description: dict[str, Any]) -> State:
    """Return what a table has that no declaration knows, and that is left alone."""
    noticed: State = {}
    if description.get("StreamSpecification", {}).get("StreamEnabled"):
        noticed[Property("stream")] = description["StreamSpecification"]["StreamViewType"]
    if replicas := [replica["RegionName"] for replica in description.get("Replicas", ())]:
        noticed[Property("replicas")] = ", ".join(replicas)
    if (kind := description.get("TableClassSummary", {}).get("TableClass")) not in _USUAL_CLASSES:
        noticed[Property("class")] = str(kind)
    return noticed


def _units(description: dict[str, Any]) -> tuple[int, int]:
    units = description["ProvisionedThroughput"]
    return units["ReadCapacityUnits"], units["WriteCapacityUnits"]


def _maximum(description: dict[str, Any]) -> tuple[int, int]:
    """Return the most read and write units of an on-demand table or index, 0 where any will do."""
    most = description.get("OnDemandThroughput", {})
    return max(0, most.get("MaxReadRequestUnits", 0)), max(0, most.get("MaxWriteRequestUnits", 0))


def _encryption(calls: Calls, table: Table, live: Live) -> str:
    encryption = live.description.get("SSEDescription", {})
    if encryption.get("Status", "DISABLED") in ("DISABLED", "DISABLING"):
        return "aws-owned"
    key = str(encryption.get("KMSMasterKeyArn", "kms"))
    if table.state[ENCRYPTION] == "kms":
        # Only KMS knows which key is the account's own key for DynamoDB.
        if not live.own_key:
            live.own_key = calls("DescribeKey", KeyId="alias/aws/dynamodb")["KeyMetadata"]["Arn"]
        return "kms" if key == live.own_key else key
    return key


def _ttl(calls: Calls, table: Table, live: Live) -> State:
    ttl = calls("DescribeTimeToLive", TableName=table.name)["TimeToLiveDescription"]
    on = ttl["TimeToLiveStatus"] in ("ENABLED", "ENABLING")
    return {TTL: ttl.get("AttributeName") if on else None}


def _pitr(calls: Calls, table: Table, live: Live) -> State:
    answer = calls("DescribeContinuousBackups", TableName=table.name)
    recovery = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    on = recovery.get("PointInTimeRecoveryStatus") == "ENABLED"
    return {PITR: recovery.get("RecoveryPeriodInDays", 35) if on else 0}


def _tags(calls: Calls, table: Table, live: Live) -> State:
    if not live.description:
        return {}
    arn = live.description["TableArn"]
    tags = calls.every("ListTagsOfResource", "Tags", ResourceArn=arn)
    return {Property("tag", name=tag["Key"]): tag["Value"] for tag in tags}


def _scaling(calls: Calls, table: Table, live: Live) -> State:
    # Those of an index that is gone stay registered. Only a list of all targets shows them.
    whole = resource(table.name)
    scaled: dict[str, dict[str, Scaling]] = {}
    live.kept = {key: own for key, own in live.kept.items() if isinstance(key, Property)}
    dynamodb = {"ServiceNamespace": "dynamodb"}
    for target in calls.every("DescribeScalableTargets", "ScalableTargets", **dynamodb):
        name = target["ResourceId"]
        if name == whole or name.startswith(f"{whole}/index/"):
            suspended = any(target.get("SuspendedState", {}).values())
            least, most = target["MinCapacity"], target["MaxCapacity"]
            # A suspended target scales nothing, so its range must never equal a declared one.
            scaling = Scaling(0, 0, None) if suspended else Scaling(least, most, None)
            scaled.setdefault(name, {})[_direction(target)] = scaling
    for name, scalings in scaled.items():
        asked = {**dynamodb, "ResourceId": name}
        for policy in calls.every("DescribeScalingPolicies", "ScalingPolicies", **asked):
            direction = _direction(policy)
            tracking = policy["TargetTrackingScalingPolicyConfiguration"]
            # One for a metric of somebody's own stands beside that of the utilisation.
            of_use = "PredefinedMetricSpecification" in tracking
            # moto, asked for an index's, returns those of its table too.
            if policy["ResourceId"] == name and direction in scalings and of_use:
                percent = tracking["TargetValue"]
                scalings[direction] = scalings[direction]._replace(target=percent)
                live.policies[name, direction] = policy["PolicyName"]
                item = Property("scaling", _index_of(name))
                _keep(live, item, (name, direction), tracking, _OWN_OF_A_POLICY)
    return {Property("scaling", _index_of(name)): scalings for name, scalings in scaled.items()}


def _keep(
    live: Live,
    item: Property,
    key: tuple[str, str] | Property,
    described: dict[str, Any],
    names: Iterable[str],
) -> None:
    """Note what a policy or an alarm has of its own, and report it."""
    live.kept[key] = own = {name: described[name] for name in names if described.get(name)}
    if own:
        noticed = live.noticed[item.kind]
        texts = [f"{name}: {_listed(value)}" for name, value in own.items()]
        noticed[item] = "; ".join(filter(None, (noticed.get(item), *texts)))


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _index_of(resource_name: str) -> str:
    return resource_name.partition("/index/")[2]


def _direction(scalable: dict[str, Any]) -> str:
    return "Read" if "Read" in scalable["ScalableDimension"] else "Write"


def _alarms(calls: Calls, table: Table, live: Live) -> State:
    state: State = {}
    for alarm in calls.every("DescribeAlarms", "MetricAlarms", AlarmNamePrefix=f"{table.name}/"):
        item = declared.alarm(alarm["AlarmName"].removeprefix(f"{table.name}/"))
        if declared.is_ours(item):
            _keep(live, item, item, alarm, _OWN_OF_AN_ALARM)
        state[item] = {name: alarm.get(name) for name in _OF_AN_ALARM}
        state[item]["Metrics"] = declared.metrics(alarm.get("Metrics", ()))
    return state
