"""What the declared units and alarms cost in a month; an estimate for the one who agrees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tdev_models.migrations.declared import BILLING, Table

PRICES = "us-east-1, November 2024"
_HOURS = 730
_READ_UNIT_HOUR, _WRITE_UNIT_HOUR = 0.00013, 0.00065
_ALARM_METRIC = 0.10
# Target tracking makes four alarms for each read and write capacity that it scales.
_ALARMS_OF_SCALING = 4


class Cost(NamedTuple):
    """US dollars a month.

    Attributes:
        units: provisioned units, at the least that is declared.
        most_units: the same at the most that auto scaling may set.
        alarms: alarms, those of auto scaling too.
        on_demand: whether a table is on-demand, and costs by requests besides.
    """

    units: float
    most_units: float
    alarms: float
    on_demand: bool


def cost(tables: Iterable[Table]) -> Cost:
    """Return what the tables cost as declared, without requests, storage, backups and KMS."""
    units = most = alarms = 0.0
    on_demand = False
    for table in tables:
        on_demand |= table.state[BILLING] == "on-demand"
        scaled = {item.index: value for item, value in table.state.items() if item.kind == "scaling"}
        for item, value in table.state.items():
            if item.kind == "capacity":
                scaling = scaled.get(item.index)
                least, top = value, value
                if scaling:
                    least, top = zip(*((scaling[d].min, scaling[d].max) for d in ("Read", "Write")))
                    alarms += 2 * _ALARMS_OF_SCALING * _ALARM_METRIC
                units += _units(*least)
                most += _units(*top)
            if item.kind == "alarm":
                stats = sum("MetricStat" in metric for metric in value["Metrics"])
                alarms += stats * _ALARM_METRIC
    return Cost(units, most, alarms, on_demand)


def _units(reads: int, writes: int) -> float:
    return _HOURS * (reads * _READ_UNIT_HOUR + writes * _WRITE_UNIT_HOUR)


def as_text(tables: Iterable[Table]) -> str:
    """Return the line that a plan ends with."""
    found = cost(tables)
    parts = [f"units {found.units:.0f} to {found.most_units:.0f}", f"alarms {found.alarms:.0f}"]
    parts += ["on-demand requests besides"] * found.on_demand
    rest, most = (n + found.alarms for n in (found.units, found.most_units))
    return (
        f"Cost: about {rest:.0f} USD a month at rest, {most:.0f} at most ({', '.join(parts)};"
        f" without requests, storage and backups; prices of {PRICES})"
    )
