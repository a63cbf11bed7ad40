"""The declared state: what every table should be, from models and environment settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from tdev_models.migrations.environments import Environment
from tdev_models.models import TABLES, BaseModel
from tdev_models.settings import Settings

Target: TypeAlias = tuple[str, ...]
"""A property of a table, such as `("ttl",)`, `("index", "status-index")` or `("tag", "owner")`."""

State: TypeAlias = dict[Target, Any]
"""The value of each property, in one form for the declared and for the live state."""

OPERATIONS = (
    "GetItem",
    "PutItem",
    "UpdateItem",
    "Query",
    "TransactGetItems",
    "TransactWriteItems",
)
"""What the services send; CloudWatch counts system errors by operation."""


class Key(NamedTuple):
    """One attribute of a key."""

    name: str
    role: str
    type: str


class Index(NamedTuple):
    """A global secondary index."""

    keys: tuple[Key, ...]
    projection: str
    attributes: frozenset[str]


class Scaling(NamedTuple):
    """How auto scaling moves one kind of capacity; `target` is None where no policy is."""

    min: int
    max: int
    target: float | None


@dataclass(frozen=True, slots=True)
class Table:
    """One declared table.

    Attributes:
        short: the name without prefix and environment, as `--table` and `--allow` take it.
        name: the name in DynamoDB.
        state: what is declared.
    """

    short: str
    name: str
    state: State

    @property
    def indexes(self) -> list[str]:
        """The names of the declared indexes."""
        return [target[1] for target in self.state if target[0] == "index"]


def tables(
    settings: Settings, environment: Environment, models: Iterable[type[BaseModel]] = TABLES
) -> list[Table]:
    """Return what is declared, in the order in which tables are created."""
    return [_table(settings, environment, model) for model in models]


def resource(table: str, index: str = "") -> str:
    """Return the name that ARNs and auto scaling use for a table or for its index."""
    return f"table/{table}/index/{index}" if index else f"table/{table}"


def keys(
    schema: Iterable[Mapping[str, str]], types: Iterable[Mapping[str, str]]
) -> tuple[Key, ...]:
    """Return a key in one form, partition key first as DynamoDB wants it."""
    type_of = {attribute["AttributeName"]: attribute["AttributeType"] for attribute in types}
    found = [Key(k["AttributeName"], k["KeyType"], type_of[k["AttributeName"]]) for k in schema]
    return tuple(sorted(found, key=lambda key: key.role))


def indexes(description: Mapping[str, Any]) -> dict[str, Index]:
    """Return the indexes of a table, given as DescribeTable gives them."""
    return {
        index["IndexName"]: Index(
            keys(index["KeySchema"], description["AttributeDefinitions"]),
            index["Projection"]["ProjectionType"],
            frozenset(index["Projection"].get("NonKeyAttributes", ())),
        )
        for index in description.get("GlobalSecondaryIndexes", ())
    }


def metrics(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of an alarm in one form, with only what is ever declared of them."""
    names = ("Id", "Expression", "ReturnData", "MetricStat")
    ordered = sorted(found, key=lambda metric: str(metric["Id"]))
    chosen = [{name: metric[name] for name in names if name in metric} for metric in ordered]
    for metric in chosen:
        if "MetricStat" in metric:
            stat = metric["MetricStat"]
            by_name = sorted(stat["Metric"]["Dimensions"], key=lambda of: str(of["Name"]))
            metric["MetricStat"] = {**stat, "Metric": {**stat["Metric"], "Dimensions": by_name}}
    return chosen


def _table(settings: Settings, environment: Environment, model: type[BaseModel]) -> Table:
    meta: Any = model.Meta
    name = settings.table_name(meta.table)
    schema = model.meta_table(name).data
    found = indexes(schema)
    state: State = {
        ("keys",): keys(schema["KeySchema"], schema["AttributeDefinitions"]),
        ("billing",): environment.billing,
        ("protection",): environment.deletion_protection,
        ("pitr",): environment.backup_days,
        ("encryption",): environment.encryption,
        ("ttl",): meta.ttl_attribute,
    }
    tags = {"application": settings.prefix, "environment": settings.environment}
    state |= {("tag", key): value for key, value in {**tags, **environment.tags}.items()}
    state |= {("index", index): value for index, value in found.items()}
    if environment.billing == "provisioned":
        for of in ((), *((index,) for index in found)):
            state["capacity", *of] = (environment.read_units, environment.write_units)
            if environment.autoscaling:
                scaling = Scaling(
                    environment.min_units, environment.max_units, environment.target_percent
                )
                state["scaling", *of] = {"Read": scaling, "Write": scaling}
    if environment.alarms:
        for index in ("", *found):
            state |= _alarms(name, index, environment)
    return Table(meta.table, name, state)


def _alarms(table: str, index: str, environment: Environment) -> State:
    """Return the alarms of a table or an index: throttled, capacity near its end, system errors."""
    alarms: State = {}
    dimensions = {"TableName": table} | ({"GlobalSecondaryIndexName": index} if index else {})

    def add(what: str, threshold: float, expression: str, of: list[dict[str, Any]]) -> None:
        alarms["alarm", f"index/{index}/{what}" if index else what] = {
            "AlarmDescription": f"{what.replace('-', ' ')} in 3 of 5 minutes",
            "AlarmActions": [environment.alarm_topic] if environment.alarm_topic else [],
            "ActionsEnabled": True,
            "ComparisonOperator": "GreaterThanThreshold",
            "Threshold": threshold,
            # Of 5, for a late minute is counted as 0 at first.
            "EvaluationPeriods": 5,
            "DatapointsToAlarm": 3,
            "TreatMissingData": "notBreaching",
            "Metrics": metrics(
                [{"Id": "value", "Expression": expression, "ReturnData": True}, *of]
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
        of = [
            _metric(f"m{number}", "SystemErrors", {**dimensions, "Operation": operation})
            for number, operation in enumerate(OPERATIONS)
        ]
        add("system-errors", 0.0, "SUM(FILL(METRICS(), 0))", of)
    return alarms


def _metric(name: str, metric: str, dimensions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "Id": name,
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
