"""What declared units and alarms cost in a month: an estimate for those who agree to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tdev_models.migrations.declared import Property, Scaling, Table

# List prices in US dollars of us-east-1, without what AWS gives free: a unit for a month of 730
# hours, and a metric of an alarm, which is what CloudWatch counts.
_PRICES = "list prices of us-east-1, November 2024"
_READ_UNIT, _WRITE_UNIT, _ALARM_METRIC = 730 * 0.00013, 730 * 0.00065, 0.10
# A unit of on-demand requests in each second of the month.
_READ_REQUEST, _WRITE_REQUEST = 730 * 3600 * 0.125e-6, 730 * 3600 * 0.625e-6
# Target tracking makes four alarms for the reads, and four for the writes, of what it scales.
_ALARMS_OF_SCALING = 8


def as_text(tables: Iterable[Table]) -> str:
    """Return a line with the dollars a month at rest, and at the most that auto scaling may set."""
    least = most = alarms = 0.0
    requests = ""
    for state in (table.state for table in tables):
        for item, value in state.items():
            if item.kind == "capacity":
                scaling = state.get(Property("scaling", item.index))
                least += _units(scaling, "min", value)
                most += _units(scaling, "max", value)
                alarms += _ALARM_METRIC * _ALARMS_OF_SCALING * bool(scaling)
            elif item.kind == "maximum":
                most += value[0] * _READ_REQUEST + value[1] * _WRITE_REQUEST
                if not all(value):
                    requests = "on-demand requests, "
            elif item.kind == "alarm":
                alarms += _ALARM_METRIC * sum("MetricStat" in m for m in value["Metrics"])
    return (
        f"about {least + alarms:.0f} USD a month at rest, {most + alarms:.0f} at most: units"
        f" {least:.0f} to {most:.0f}, alarms {alarms:.0f}; besides {requests}storage and backups"
        f" ({_PRICES})"
    )


def _units(scaling: Mapping[str, Scaling] | None, end: str, provisioned: tuple[int, int]) -> float:
    """Return what the units of a table or an index cost at one end of their range."""
    scaled: Any = scaling and [getattr(scaling[way], end) for way in ("Read", "Write")]
    reads, writes = scaled or provisioned
    return float(reads * _READ_UNIT + writes * _WRITE_UNIT)
