"""Metrics: samples in, totals by hour, day, agent or dimension out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.errors import InvalidRequest, shown
from tdev_models.metrics.hours import Cell, instants, read_totals
from tdev_models.metrics.recorder import CellKey, Recorder, check_not_writing
from tdev_models.metrics.totals import Totals
from tdev_models.results import MetricRow

_PART = validation.key(200, part=True)
RULES: Mapping[str, validation.Rule] = {
    "metric_name": _PART,
    "value": validation.number,
    "agent_name": _PART,
    "dimension": _PART,
    "timestamp": validation.instant,
    "error": validation.flag,
}
_GROUPS: Mapping[str, Callable[[Cell], tuple[Any, ...]]] = {
    "hour": lambda cell: (cell.day, cell.hour),
    "day": lambda cell: (cell.day,),
    "agent": lambda cell: (cell.agent_name,),
    "dimension": lambda cell: (cell.dimension,),
}


async def record_metric(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> None:
    """Record one sample; returns when it is durable.

    Calls made while a write is under way share the next one: one UpdateItem of the cell that this
    process has for the hour, name, agent and dimension. A write may be sent twice, and counts once.
    A call that is cancelled once it has begun has recorded its sample all the same.

    Args:
        data: the fields, by name: metric_name and value (required), agent_name, dimension (at most
            one of variant, pipeline type or technology), timestamp (epoch seconds, datetime or ISO
            text; now when not given), error (True counts into `error_rate`).
        more: the same as keywords.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value; nothing was sent.
        Conflict, Throttled, Unavailable: this sample, and those that shared its write, may have
            been counted; a second call is a second sample. Samples of other writes are not touched.
    """
    values = validation.checked(data, more, RULES, "metric_name", "value")
    moment = values.get("timestamp")
    key = CellKey(
        int((client.now() if moment is None else moment) // 3600),
        values["metric_name"],
        values.get("agent_name", ""),
        values.get("dimension", ""),
    )
    await client.wait_for(
        Recorder.for_settings(client.settings).add(
            key, float(values["value"]), values.get("error", False), awaited=True
        )
    )


async def flush_metrics(client: Client) -> None:
    """Wait until the metrics that the package recorded by itself are written, or were lost.

    They are written in the background, and for up to five seconds at the exit of the process.
    Needed only before reading them at once, or where a process ends without its exit handlers
    (`os._exit`, children of multiprocessing).

    Raises:
        TdevError: called from within a write of metrics (by a hook), which would wait for itself.
    """
    check_not_writing("flush")
    for future in Recorder.for_settings(client.settings).unsettled():
        with suppress(Exception):  # the call that recorded it raised the error, or it was logged
            await client.wait_for(future)


async def query_metrics(
    client: Client,
    name: str,
    start: Any,
    end: Any,
    *,
    agent_name: str | None = None,
    dimension: str | None = None,
    group_by: str = "hour",
    percentiles: Sequence[float] = (),
) -> list[MetricRow]:
    """Return the totals of one metric, in order of their group; groups without samples are absent.

    Queries on the table, consistent, a day each (more where a day's cells pass 1 MB), eight days
    side by side. Whole hours: every hour that [start, end) touches.

    Args:
        name: the metric.
        start: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        end: instant, exclusive; at most 366 days later.
        agent_name: only this agent's samples; "": only those of none.
        dimension: only samples of this dimension; "": only those of none.
        group_by: "hour" and "day" (UTC), "agent" or "dimension".
        percentiles: numbers from 0 to 100, the keys of each row's `percentiles`: (50, 95, 99.9).
            Nearest rank, within 2 % of the sample at that rank.

    Raises:
        InvalidRequest: a wrong value.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    name = _PART("name", name)
    agent_name, dimension = (
        # By its kind first: comparing what a caller gave runs code of its own.
        value if value is None or (isinstance(value, str) and not value) else _PART(field, value)
        for field, value in (("agent_name", agent_name), ("dimension", dimension))
    )
    if not isinstance(group_by, str) or group_by not in _GROUPS:
        raise InvalidRequest("group_by", f"{shown(group_by)} is not one of {', '.join(_GROUPS)}")
    _check_percentiles(percentiles)

    def group_of(cell: Cell) -> tuple[Any, ...] | None:
        return _GROUPS[group_by](cell) if dimension in (None, cell.dimension) else None

    groups = await read_totals(client, name, *instants(start, end), group_of, agent_name)
    # In a thread: a year of hours has 26,000 percentiles.
    return await client.compute(
        lambda: [
            row(
                name,
                totals,
                percentiles,
                day=key[0] if group_by in ("hour", "day") else None,
                hour=key[1] if group_by == "hour" else None,
                agent_name=key[0] if group_by == "agent" else agent_name,
                dimension=key[0] if group_by == "dimension" else dimension,
            )
            for key, totals in sorted(groups.items(), key=itemgetter(0))
        ]
    )


def _check_percentiles(percentiles: Any) -> None:
    if not isinstance(percentiles, Sequence) or isinstance(percentiles, str | bytes):
        raise InvalidRequest("percentiles", "must be a sequence of numbers: (50, 95)")
    for percent in percentiles:
        if not 0 <= validation.number("percentiles", percent) <= 100:
            raise InvalidRequest("percentiles", f"{shown(percent)} is not from 0 to 100")


def row(name: str, totals: Totals, percentiles: Sequence[float], **group: Any) -> MetricRow:
    """Return the samples of one group as a row; there must be some."""
    return MetricRow(
        metric_name=name,
        count=totals.count,
        sum=totals.sum,
        mean=totals.mean,
        min=totals.min,
        max=totals.max,
        error_rate=totals.error_rate,
        percentiles={percent: totals.percentile(percent) for percent in percentiles},
        **group,
    )
