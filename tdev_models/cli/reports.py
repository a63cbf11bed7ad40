"""`tdev metrics`, `usage`, `agents`, `ab`: what the metrics say."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from rich.console import RenderableType

from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import Screen
from tdev_models.cli.tables import Column, Table
from tdev_models.errors import InvalidRequest, plain
from tdev_models.results import (
    Comparison,
    Difference,
    MetricRow,
    PerformanceReport,
    SessionCounts,
    UsageReport,
)
from tdev_models.sync import agent_performance, compare_variants, query_metrics, usage_report
from tdev_models.views.moments import local, moment
from tdev_models.views.numbers import percent, short
from tdev_models.views.weights import weights

PERCENTILES = (50, 95, 99)


# The units of the metrics that the package records by itself.
_UNITS = {
    "agent_execution_time": " s",
    "session_duration": " s",
    "agent_cost_usd": " $",
}


def run(options: argparse.Namespace) -> int:
    """Print the report that the options name."""
    start, end = asked_range(options)
    screen = Screen(options.json)
    with screen.counting():
        report, parts = _REPORTS[options.command](options, start, end)
        for record in report if isinstance(report, list) else [report]:
            screen.line(_plain_dict(record))
        screen.print(f"All hours from {local(start)} to {local(end)}", "")
        for part in parts:
            if not (isinstance(part, Table) and not part.rows):
                screen.print(part, "")
    return DONE


def asked_range(options: argparse.Namespace) -> tuple[float, float]:
    """Return the range that `--days`, `--start` and `--end` ask for."""
    if not 0 < options.days <= 366:
        raise InvalidRequest("days", "must be above 0, and at most 366")
    end = time.time() if options.end is None else moment("end", options.end)
    start = end - 86400 * options.days
    return start if options.start is None else moment("start", options.start), end


def _plain_dict(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record as JSON takes it, its mappings too."""
    return {
        name: dict(value) if isinstance(value, Mapping) and not hasattr(value, "to_dict") else value
        for name, value in record.to_dict().items()  # type: ignore[attr-defined]
    }


def _metrics(
    options: argparse.Namespace, start: float, end: float
) -> tuple[Any, list[RenderableType]]:
    rows = query_metrics(
        options.name,
        start,
        end,
        agent_name=options.agent,
        dimension=options.dimension,
        group_by=options.by,
        percentiles=PERCENTILES,
    )
    unit = _UNITS.get(options.name, "")
    values = [f"{name}{unit}" for name in ("mean", "p50", "p95", "p99", "max")]
    lines = [
        [
            _group(row, options.by),
            str(row.count),
            *map(short, (row.mean, *row.percentiles.values(), row.max)),
            percent(row.error_rate),
        ]
        for row in rows
    ]
    if not rows:
        return rows, [f"No samples of {plain(options.name)} there."]
    group = options.by + " (UTC)" * (options.by in ("hour", "day"))
    return rows, [_table(options.name, group, "count", *values, "failed %", lines=lines)]


def _group(row: MetricRow, by: str) -> str:
    if by in ("hour", "day"):
        return f"{row.day} {row.hour:02}h" if by == "hour" else str(row.day)
    return (row.agent_name if by == "agent" else row.dimension) or "(none)"


def _usage(
    options: argparse.Namespace, start: float, end: float
) -> tuple[UsageReport, list[RenderableType]]:
    report = usage_report(start, end)
    all_of = report.sessions
    rates = f"{percent(report.success_rate)} % of those that ended completed, "
    rates += f"{percent(report.abandonment_rate)} % abandoned"
    if report.success_rate is None:
        rates = "none has ended"
    who = "session waits" if report.waiting == 1 else "sessions wait"
    waiting = f"{report.waiting} FAILED {who} to be resumed; due by now: {report.due}."
    lasted = []
    if (row := report.seconds) is not None:
        numbers = (row.mean, row.min, row.max, *row.percentiles.values())
        lasted.append(["completed sessions", *map(short, numbers)])
    funnel = [[step.agent_name, str(step.completed), str(step.stopped)] for step in report.funnel]
    made = [[name, str(count)] for name, count in report.technologies.items()]
    return report, [
        waiting,
        _sessions(f"Sessions by day (UTC): {rates}", "day", [*report.by_day, all_of]),
        _sessions("Sessions by hour of the day (UTC)", "hour", report.by_hour),
        _sessions("Sessions by pipeline type", "type", report.by_type),
        _table("How far runs get", "agent", "completed", "stopped here", lines=funnel),
        _table(
            "Durations",
            "what",
            *(f"{name} s" for name in ("mean", "min", "max", "p50", "p90", "p99")),
            lines=lasted,
        ),
        _table("Technologies", "name", "projects", lines=made),
        f"Downloads: {report.downloads}",
    ]


def _sessions(title: str, group: str, counts: Iterable[SessionCounts]) -> Table[Sequence[str]]:
    events = ("started", "completed", "failed", "abandoned", "resumed")
    lines = [[row.group or "(none)", *(str(row[event]) for event in events)] for row in counts]
    return _table(title, group, *events, lines=lines)


def _agents(
    options: argparse.Namespace, start: float, end: float
) -> tuple[PerformanceReport, list[RenderableType]]:
    report = agent_performance(start, end)
    lines = [
        [
            agent.agent_name,
            str(agent.runs),
            percent(agent.success_rate),
            str(agent.retries),
            *map(short, (agent.mean, agent.p50, agent.p95, agent.p99)),
            "" if agent.trend is None else f"{100 * agent.trend:+.0f}",
        ]
        for agent in report.agents
    ]
    columns = ("runs", "ok %", "retries", "mean s", "p50 s", "p95 s", "p99 s", "trend %")
    summary = (
        f"Slowest (p95): {report.slowest or 'none'}. Most failing: {report.most_failing or 'none'}."
    )
    return report, [_table("Agents", "agent", *columns, lines=lines), plain(summary)]


def _ab(
    options: argparse.Namespace, start: float, end: float
) -> tuple[Comparison, list[RenderableType]]:
    comparison = compare_variants(
        options.agent,
        options.a,
        options.b,
        options.metric,
        start,
        end,
        weights=None if options.weights is None else weights("weights", options.weights),
        effect=options.effect,
    )
    lines = [
        [
            variant.name,
            str(variant.count),
            percent(variant.success_rate),
            *("" if value is None else short(value) for value in (variant.mean, variant.typical)),
            *map(short, (variant.p50, variant.p95, variant.p99)),
        ]
        for variant in (comparison.a, comparison.b)
        if variant is not None
    ]
    effects = [
        line
        for line in (
            _effect("success, points", comparison.success, 0),
            _effect("typical value, %", comparison.ratio, 1),
        )
        if line
    ]
    unit = _UNITS.get(options.metric, "")
    columns = ["count", "ok %"]
    columns += [f"{name}{unit}" for name in ("mean", "typical", "p50", "p95", "p99")]
    what = f"{options.metric} of {options.agent}"
    if not lines:
        return comparison, [f"{plain(what)}: {comparison.verdict}"]
    return comparison, [
        _table(what, "variant", *columns, lines=lines),
        _table(
            f"{options.b} against {options.a}",
            "measure",
            "effect",
            "95% interval",
            "p",
            "needed",
            lines=effects,
        ),
        comparison.verdict,
    ]


def _effect(name: str, difference: Difference | None, same: float) -> list[str]:
    if difference is None:
        return []
    effect, low, high = (
        f"{100 * (value - same):+.1f}"
        for value in (difference.effect, difference.low, difference.high)
    )
    return [name, effect, f"{low} to {high}", f"{difference.p_value:.3f}", str(difference.needed)]


_REPORTS = {"metrics": _metrics, "usage": _usage, "agents": _agents, "ab": _ab}


def _table(title: str, *heads: str, lines: Sequence[Sequence[str]]) -> Table[Sequence[str]]:
    """Return a table of a name and numbers, of which the last are left out first."""
    columns: list[Column[Sequence[str]]] = [
        Column(
            head=head,
            cell=itemgetter(number),
            kind="number" if number else "name",
            drop=max(0, number - 1),
        )
        for number, head in enumerate(heads)
    ]
    return Table(title, columns, lines)
