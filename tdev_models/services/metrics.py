"""Metrics: samples in, totals by hour, day, agent or dimension out."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from tdev_models import fields
from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.models import Metric
from tdev_models.services.changes import put_all
from tdev_models.store.client import Client
from tdev_models.types import MetricRow

_log = logging.getLogger(__name__)

_PART = fields.key(200, part=True)
RULES: Mapping[str, fields.Rule] = {
    "metric_name": _PART,
    "value": fields.number,
    "agent_name": _PART,
    "dimension": _PART,
    "timestamp": fields.instant,
    "error": fields.flag,
}
_GROUPS = ("hour", "day", "agent", "dimension")
_MOST_DAYS = 366
_DAYS_AT_ONCE = 8


async def record_metric(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> None:
    """Record one sample; returns when it is durable.

    One UpdateItem of a cell of its own, so it may be sent twice and counts once.

    Args:
        data: the fields, by name: metric_name and value (required), agent_name, dimension (at most
            one of variant, pipeline type or technology), timestamp (epoch seconds, datetime or ISO
            text; now when not given), error (True counts into `error_rate`).
        more: the same as keywords.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value; nothing was sent.
        Throttled, Unavailable: the sample may have been counted; a second call is a second sample.
    """
    values = fields.checked(data, more, RULES, "metric_name", "value")
    moment = datetime.fromtimestamp(values.get("timestamp") or client.now(), UTC)
    value, failed = values["value"], int(values.get("error", False))
    agent_name, dimension = values.get("agent_name", ""), values.get("dimension", "")
    cell = f"{values['metric_name']}#{agent_name}#{moment:%H}#{dimension}#{uuid.uuid4().hex}"
    totals = {
        "value": value,
        "sample_count": 1,
        "avg_response_time": value,
        "error_count": failed,
        "error_rate": failed,
        "hour": moment.hour,
        "seq": 1,
        "smallest": value,
        "largest": value,
    }
    if agent_name:
        totals["agent_name"] = agent_name
    await client.metrics.update(f"{moment:%Y-%m-%d}", cell, actions=put_all(Metric, totals))


async def record_quietly(client: Client, **sample: Any) -> None:
    """Record one sample; a failure is logged, for the pipeline goes on without it."""
    try:
        await record_metric(client, sample)
    except TdevError as error:
        _log.warning("metric %s not recorded: %s", sample["metric_name"], error)


async def query_metrics(
    client: Client,
    name: str,
    start: Any,
    end: Any,
    *,
    agent_name: str | None = None,
    dimension: str | None = None,
    group_by: str = "hour",
) -> list[MetricRow]:
    """Return the totals of one metric, in order of their group; groups without samples are absent.

    Queries on the table, consistent, a day each (more where a day's cells pass 1 MB), eight days
    side by side. Whole hours: every hour that [start, end) touches.

    Args:
        name: the metric.
        start: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        end: instant, exclusive; at most 366 days later.
        agent_name: only this agent's samples.
        dimension: only samples of this dimension.
        group_by: "hour" and "day" (UTC), "agent" or "dimension".

    Raises:
        InvalidRequest: a wrong value.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    _PART("name", name)
    for field, value in (("agent_name", agent_name), ("dimension", dimension)):
        if value is not None:
            _PART(field, value)
    if group_by not in _GROUPS:
        raise InvalidRequest("group_by", f"{group_by!r} is not one of {', '.join(_GROUPS)}")
    first, last = fields.instant("start", start), fields.instant("end", end)
    if not 0 < last - first <= _MOST_DAYS * 86400:
        raise InvalidRequest("end", f"must be after start, by at most {_MOST_DAYS} days")
    prefix = f"{name}#" if agent_name is None else f"{name}#{agent_name}#"
    days = _days(first, last)
    pages = await client.gather(
        [partial(_cells, client, day, prefix) for day in days], _DAYS_AT_ONCE
    )

    groups: dict[tuple[Any, ...], _Totals] = {}
    for cell in (cell for page in pages for cell in page):
        _, agent, hour, dimension_of_cell, _ = cell.cell.split("#")
        hour_start = datetime.fromisoformat(f"{cell.date}T{hour}:00:00+00:00").timestamp()
        if not (first - 3600 < hour_start < last) or dimension not in (None, dimension_of_cell):
            continue
        key = {
            "hour": (cell.date, int(hour)),
            "day": (cell.date,),
            "agent": (agent,),
            "dimension": (dimension_of_cell,),
        }[group_by]
        groups.setdefault(key, _Totals()).add(cell)
    return [_row(name, group_by, key, groups[key], agent_name, dimension) for key in sorted(groups)]


def _days(first: float, last: float) -> list[str]:
    day = datetime.fromtimestamp(first, UTC).date()
    end = datetime.fromtimestamp(last, UTC)
    days = []
    while datetime(day.year, day.month, day.day, tzinfo=UTC) < end:
        days.append(day.isoformat())
        day += timedelta(days=1)
    return days


async def _cells(client: Client, day: str, prefix: str) -> list[Metric]:
    cells: list[Metric] = []
    start = None
    while True:
        page, start = await client.metrics.page(
            day, range_condition=Metric.cell.startswith(prefix), start=start
        )
        cells += page
        if start is None:
            return cells


class _Totals:
    """The merged totals of some cells."""

    def __init__(self) -> None:
        self.count, self.sum, self.errors = 0, 0.0, 0
        self.min, self.max = float("inf"), float("-inf")

    def add(self, cell: Metric) -> None:
        self.count += int(cell.sample_count)
        self.sum += cell.value
        self.errors += int(cell.error_count or 0)
        self.min, self.max = min(self.min, cell.smallest), max(self.max, cell.largest)


def _row(
    name: str,
    group_by: str,
    key: tuple[Any, ...],
    totals: _Totals,
    agent_name: str | None,
    dimension: str | None,
) -> MetricRow:
    return MetricRow(
        metric_name=name,
        day=key[0] if group_by in ("hour", "day") else None,
        hour=key[1] if group_by == "hour" else None,
        agent_name=key[0] if group_by == "agent" else agent_name,
        dimension=key[0] if group_by == "dimension" else dimension,
        count=totals.count,
        sum=totals.sum,
        mean=totals.sum / totals.count,
        min=totals.min,
        max=totals.max,
        error_rate=totals.errors / totals.count,
    )
