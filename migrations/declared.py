"""The declared state: what every table should be, from the models and an environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from tdev_models.errors import InvalidRequest
from tdev_models.migrations.environments import Environment
from tdev_models.models import TABLES, BaseModel
from tdev_models.settings import Settings


@dataclass(frozen=True, slots=True)
class Property:
    """One property of a table, which has one declared and one live value.

    Attributes:
        kind: `keys`, `protection`, `pitr`, `encryption`, `billing`, `index`, `scaling`, `capacity`,
            `maximum`, `ttl`, `tag` or `alarm`; of what no declaration knows `table`, `stream`,
            `replicas` or `class`.
        index: the index that it is, or belongs to; empty for a property of the table.
        name: the key of a tag; the name of an alarm without the table's.
    """

    kind: str
    index: str = ""
    name: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.name or self.index)))


KEYS: Final = Property("keys")
BILLING: Final = Property("billing")
CAPACITY: Final = Property("capacity")
PROTECTION: Final = Property("protection")
PITR: Final = Property("pitr")
ENCRYPTION: Final = Property("encryption")
TTL: Final = Property("ttl")

State: TypeAlias = dict[Property, Any]
"""The value of each property, in the same form for the declared and the live state."""

OPERATIONS = (
    "GetItem",
    "PutItem",
    "UpdateItem",
    "Query",
    "TransactGetItems",
    "TransactWriteItems",
)
"""What the runtime role may send; CloudWatch counts system errors by operation."""

ALARMS = (
    "throttled-reads",
    "throttled-writes",
    "read-capacity-near-maximum",
    "write-capacity-near-maximum",
    "system-errors",
)
"""The alarms that may belong to a table; to an index, all but the last."""


class Key(NamedTuple):
    """One attribute of a key: `role` is HASH or RANGE, `type` is S, N or B."""

    name: str
    role: str
    type: str


class Index(NamedTuple):
    """A global secondary index."""

    keys: tuple[Key, ...]
    projection: str
    attributes: frozenset[str]


class Scaling(NamedTuple):
    """How auto scaling moves read or write capacity.

    Attributes:
        min: the least units that it sets.
        max: the most units that it sets.
        target: the utilisation that it aims at, in percent; None without a scaling policy.
    """

    min: int
    max: int
    target: float | None


@dataclass(frozen=True, slots=True)
class Table:
    """One declared table.

    Attributes:
        short: the name without prefix and environment, as `--table` and `--allow` take it.
        name: the name in DynamoDB.
        state: the declared value of every property.
    """

    short: str
    name: str
    state: State

    @property
    def indexes(self) -> list[str]:
        """The names of the declared indexes."""
        return indexes_in(self.state)


def indexes_in(state: State) -> list[str]:
    """Return the names of the indexes in a state."""
    return [item.index for item in state if item.kind == "index"]


def is_ours(item: Property) -> bool:
    """Return whether a property is an alarm of a name that this package gives."""
    return item.kind == "alarm" and item.name.removeprefix(f"index/{item.index}/") in ALARMS


def alarm(name: str) -> Property:
    """Return the property of an alarm: `WHAT` is the table's, `index/INDEX/WHAT` an index's."""
    return Property("alarm", name.split("/")[1] if name.startswith("index/") else "", name)


def tables(
    settings: Settings, environment: Environment, models: Iterable[type[BaseModel]] = TABLES
) -> list[Table]:
    """Return the declared tables, in the order in which they are created.

    Raises:
        InvalidRequest: the environment has settings of a table or an index that no model declares.
    """
    made = [_table(settings, environment, model) for model in models]
    names = {
        name for one in made for name in (one.short, *(f"{one.short}/{i}" for i in one.indexes))
    }
    if unknown := environment.tables.keys() - names:
        raise InvalidRequest(
            "tables", f"{', '.join(sorted(unknown))}: use {', '.join(sorted(names))}"
        )
    return made


def resource(table: str, index: str = "") -> str:
    """Return the name that ARNs and auto scaling use for a table or for its index."""
    return f"table/{table}/index/{index}" if index else f"table/{table}"


def keys(
    schema: Iterable[Mapping[str, str]], types: Iterable[Mapping[str, str]]
) -> tuple[Key, ...]:
    """Return the attributes of a key, the partition key first, as DynamoDB requires.

    Args:
        schema: the KeySchema of a table or an index.
        types: the AttributeDefinitions of the table.
    """
    type_of = {attribute["AttributeName"]: attribute["AttributeType"] for attribute in types}
    parts = [Key(k["AttributeName"], k["KeyType"], type_of[k["AttributeName"]]) for k in schema]
    return tuple(sorted(parts, key=lambda key: key.role))


def indexes(description: Mapping[str, Any]) -> dict[str, Index]:
    """Return the indexes in a table's description, as DescribeTable returns it, by name."""
    return {
        index["IndexName"]: Index(
            keys(index["KeySchema"], description["AttributeDefinitions"]),
            index["Projection"]["ProjectionType"],
            frozenset(index["Projection"].get("NonKeyAttributes", ())),
        )
        for index in description.get("GlobalSecondaryIndexes", ())
    }


def metrics(alarm_metrics: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return an alarm's metrics sorted, with only the fields that a declaration sets."""
    names = ("Id", "Expression", "ReturnData", "MetricStat")
    ordered = sorted(alarm_metrics, key=lambda metric: str(metric["Id"]))
    chosen = [{name: metric[name] for name in names if name in metric} for metric in ordered]
    for metric in chosen:
        if "MetricStat" in metric:
            stat = metric["MetricStat"]
            by_name = sorted(stat["Metric"]["Dimensions"], key=lambda pair: str(pair["Name"]))
            metric["MetricStat"] = {**stat, "Metric": {**stat["Metric"], "Dimensions": by_name}}
    return chosen


def _table(settings: Settings, environment: Environment, model: type[BaseModel]) -> Table:
    meta: Any = model.Meta
    name, whole = settings.table_name(meta.table), environment
    environment = whole.of(meta.table)
    schema = model.meta_table(name).data
    declared_indexes = indexes(schema)
    state: State = {
        KEYS: keys(schema["KeySchema"], schema["AttributeDefinitions"]),
        BILLING: environment.billing,
        PROTECTION: environment.deletion_protection,
        PITR: environment.backup_days,
        ENCRYPTION: environment.encryption,
        TTL: meta.ttl_attribute,
    }
    tags = {"application": settings.prefix, "environment": settings.environment}
    state |= {
        Property("tag", name=key): value for key, value in {**tags, **environment.tags}.items()
    }
    state |= {Property("index", index): value for index, value in declared_indexes.items()}
    for index in ("", *declared_indexes):
        own = whole.of(f"{meta.table}/{index}" if index else meta.table)
        if own.billing == "provisioned":
            state[Property("capacity", index)] = (own.read_units, own.write_units)
            if own.autoscaling:
                scaling = Scaling(own.min_units, own.max_units, own.target_percent)
                state[Property("scaling", index)] = {"Read": scaling, "Write": scaling}
        else:
            state[Property("maximum", index)] = (own.most_reads, own.most_writes)
        if own.alarms:
            state |= _alarms(name, index, own)
    return Table(meta.table, name, state)


def _alarms(table: str, index: str, environment: Environment) -> State:
    """Return the alarms of a table, or of an index: throttling, capacity nearly used, errors."""
    alarms: State = {}
    dimensions = {"TableName": table} | ({"GlobalSecondaryIndexName": index} if index else {})

    def add(what: str, threshold: float, expression: str, inputs: list[dict[str, Any]]) -> None:
        alarms[alarm(f"index/{index}/{what}" if index else what)] = {
            "AlarmDescription": f"{what.replace('-', ' ')} in 3 of 5 minutes",
            "AlarmActions": [environment.alarm_topic] if environment.alarm_topic else [],
            "ActionsEnabled": True,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": threshold,
            # Data of a minute may come late, and counts as 0 until then: 3 of 5, not 3 of 3.
            "EvaluationPeriods": 5,
            "DatapointsToAlarm": 3,
            "TreatMissingData": "notBreaching",
            "Metrics": metrics(
                [{"Id": "value", "Expression": expression, "ReturnData": True}, *inputs]
            ),
        }

    for direction in ("Read", "Write"):
        metric = _metric("m", f"{direction}ThrottleEvents", dimensions)
        add(f"throttled-{direction.lower()}s", 0.0, "FILL(m, 0)", [metric])
        if environment.billing == "provisioned":
            most = environment.max_units if environment.autoscaling else None
            most = most or getattr(environment, f"{direction.lower()}_units")
            metric = _metric("m", f"Consumed{direction}CapacityUnits", dimensions)
            what = f"{direction.lower()}-capacity-near-maximum"
            add(what, 0.8 * most, "FILL(m, 0) / PERIOD(m)", [metric])
    if not index:
        errors = [
            _metric(f"m{number}", "SystemErrors", {**dimensions, "Operation": operation})
            for number, operation in enumerate(OPERATIONS)
        ]
        add("system-errors", 0.0, "SUM(FILL(METRICS(), 0))", errors)
    return alarms


def _metric(metric_id: str, metric: str, dimensions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "Id": metric_id,
        "MetricStat": {
            "Metric": {
                "Namespace": "AWS/DynamoDB",
                "MetricName": metric,
                "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
            },
            "Period": 60,
            "Stat": "Sum",
        },
        "ReturnData": False,
    }
