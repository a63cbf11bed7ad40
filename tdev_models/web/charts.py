"""What the pages draw, as places in per cent: the templates make SVG of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import NamedTuple

from tdev_models.results import MetricRow, SessionCounts
from tdev_models.views.attempts import Axis, Row
from tdev_models.views.moments import duration

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)
_MOST_TICKS = 6
_APART = 16  # per cent, of marks below a line
_PAUSE, _LEAST = 2.5, 0.6  # per cent


class Bar(NamedTuple):
    """One attempt."""

    row: Row
    x: float
    width: float


class Tick(NamedTuple):
    """A mark of an axis."""

    place: float
    label: str


class Gantt(NamedTuple):
    """The attempts of a session against time; `pauses` are cut out, and drawn where they were."""

    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    pauses: Sequence[Tick]


def gantt(rows: Sequence[Row]) -> Gantt:
    """Return the drawing of attempts; empty without any."""
    if not rows:
        return Gantt((), (), ())
    axis = Axis(rows, 100, _PAUSE)
    bars = []
    for row in rows:
        x = min(axis.place(row.start), 100 - _LEAST)
        bars.append(Bar(row, round(x, 3), round(max(_LEAST, axis.place(row.end) - x), 3)))
    pauses = [
        Tick(round(axis.place(start) + _PAUSE / 2, 3), duration(end - start))
        for start, end in axis.pauses
    ]
    return Gantt(bars, _ticks(axis), pauses)


def _ticks(axis: Axis) -> list[Tick]:
    """Return the marks of the axis: seconds since the first attempt, at round numbers."""
    shown = axis.end - axis.begin - sum(end - start for start, end in axis.pauses)
    step = next((one for one in _STEPS if shown / one < _MOST_TICKS), 0)
    while not step or shown / step >= _MOST_TICKS:
        step = (step or _STEPS[-1]) * 2
    ticks: list[Tick] = []
    moment = axis.begin
    while moment <= axis.end and len(ticks) < 10 * _MOST_TICKS:
        if pause := next((one for one in axis.pauses if one[0] < moment < one[1]), None):
            # Nothing is drawn in there: on with the first round number after it.
            moment = axis.begin + math.ceil((pause[1] - axis.begin) / step) * step
            continue
        place = axis.place(moment)
        if place < 97 and (not ticks or place - ticks[-1].place > 8):
            ticks.append(Tick(round(place, 3), duration(moment - axis.begin)))
        moment += step
    return ticks


class Column(NamedTuple):
    """One column of stacked parts: from below, each its y and height."""

    label: str
    x: float
    width: float
    parts: Sequence[tuple[str, float, float, int]]


def columns(counts: Sequence[SessionCounts], parts: Sequence[str]) -> list[Column]:
    """Return days of sessions as columns, each at its time, the highest as high as the drawing."""
    most = max((sum(one[part] for part in parts) for one in counts), default=0) or 1
    days = [date.fromisoformat(one.group).toordinal() for one in counts]
    wide, drawn = 100 / (days[-1] - days[0] + 1) if days else 100, []
    for day, one in zip(days, counts, strict=True):
        y, stack = 100.0, []
        for part in parts:
            height = 100 * one[part] / most
            y -= height
            stack.append((part, round(y, 3), round(height, 3), one[part]))
        x, width = round((day - days[0] + 0.12) * wide, 3), round(wide * 0.76, 3)
        drawn.append(Column(one.group, x, width, stack))
    return drawn


class Lines(NamedTuple):
    """Lines over time: of each name its points, and the marks of both axes."""

    lines: Mapping[str, Sequence[tuple[float, float]]]
    xs: Sequence[Tick]
    ys: Sequence[Tick]


def lines(rows: Sequence[MetricRow], percentiles: Iterable[float]) -> Lines:
    """Return the percentiles of a metric, in seconds, by hour or day, each at its time."""
    found = {f"p{one:g}": [row.percentiles[one] for row in rows] for one in percentiles}
    most = max((value for line in found.values() for value in line), default=0.0)
    if most <= 0:
        return Lines({}, (), ())
    step = _round(most / 4)
    high = step * math.ceil(most / step)
    hours = [_hour(row) for row in rows]
    span = hours[-1] - hours[0]
    xs = [round(100 * (hour - hours[0]) / span, 3) if span else 50.0 for hour in hours]
    marks: list[Tick] = []
    for x, row in zip(xs, rows, strict=True):
        if not marks or x - marks[-1].place >= _APART:
            marks.append(Tick(x, _when(row)))
    return Lines(
        {
            name: [(x, _height(value, high)) for x, value in zip(xs, line, strict=True)]
            for name, line in found.items()
        },
        marks,
        [
            Tick(_height(number * step, high), f"{number * step:.4g} s")
            for number in range(round(high / step) + 1)
        ],
    )


def _height(value: float, high: float) -> float:
    return round(100 - 100 * value / high, 3)


def _round(size: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ... that is not below a size."""
    unit: float = 10 ** math.floor(math.log10(size))
    return next(unit * one for one in (1, 2, 5, 10) if unit * one >= size)


def _hour(row: MetricRow) -> int:
    return date.fromisoformat(row.day or "").toordinal() * 24 + (row.hour or 0)


def _when(row: MetricRow) -> str:
    day = (row.day or "")[5:]
    return day if row.hour is None else f"{day} {row.hour:02}h"
