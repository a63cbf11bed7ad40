"""`tdev metrics`, `usage`, `agents`, `ab`: what the metrics say, in at most 80 columns."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tdev_models.errors import InvalidRequest
from tdev_models.results import (
    Comparison,
    Difference,
    MetricRow,
    PerformanceReport,
    SessionCounts,
    UsageReport,
)
from tdev_models.sync import agent_performance, compare_variants, query_metrics, usage_report
from tdev_models.validation import instant

PERCENTILES = (50, 95, 99)


def run(options: argparse.Namespace) -> int:
    """Print the report that the options name; return 0."""
    if not 0 < options.days <= 366:
        raise InvalidRequest("days", "must be above 0, and at most 366")
    end = time.time() if options.end is None else instant("end", options.end)
    start = end - 86400 * options.days
    if options.start is not None:
        start = instant("start", options.start)
    report, tables = _REPORTS[options.command](options, start, end)
    if options.json:
        sys.stdout.write(json.dumps(report, default=dict, indent=2) + "\n")
        return 0
    # Names are the users' own: nothing in them is markup.
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = min(console.width, 80)
    for table in tables:
        console.print(table)
        console.print()
    return 0


def _metrics(options: argparse.Namespace, start: float, end: float) -> tuple[Any, list[Any]]:
    rows = query_metrics(
        options.name,
        start,
        end,
        agent_name=options.agent,
        dimension=options.dimension,
        group_by=options.by,
        percentiles=PERCENTILES,
    )
    columns = ("count", "mean", "p50", "p95", "p99", "max", "failed")
    lines = [
        [
            _group(row, options.by),
            str(row.count),
            *map(_short, (row.mean, *row.percentiles.values(), row.max)),
            _percent(row.error_rate),
        ]
        for row in rows
    ]
    if not rows:
        return rows, [f"No samples of {_plain(options.name)} there."]
    return rows, [_table(options.name, options.by, *columns, lines=lines)]


def _group(row: MetricRow, by: str) -> str:
    if by in ("hour", "day"):
        return f"{row.day} {row.hour:02}h" if by == "hour" else str(row.day)
    return (row.agent_name if by == "agent" else row.dimension) or "(none)"


def _usage(options: argparse.Namespace, start: float, end: float) -> tuple[UsageReport, list[Any]]:
    report = usage_report(start, end)
    all_of = report.sessions
    rates = f"{_percent(report.success_rate)} of those that ended completed, "
    rates += f"{_percent(report.abandonment_rate)} abandoned"
    who = "session waits" if report.waiting == 1 else "sessions wait"
    waiting = f"{report.waiting} FAILED {who} to be resumed now, {report.due} of them due."
    lasted = []
    if (row := report.seconds) is not None:
        numbers = (row.mean, row.min, row.max, *row.percentiles.values())
        lasted.append(["completed sessions", *map(_short, numbers)])
    funnel = [[step.agent_name, str(step.completed), str(step.stopped)] for step in report.funnel]
    made = [[name, str(count)] for name, count in report.technologies.items()]
    return report, [
        waiting,
        _sessions(f"Sessions by day: {rates}", "day", [*report.by_day, all_of]),
        _sessions("Sessions by hour of the day (UTC)", "hour", report.by_hour),
        _sessions("Sessions by pipeline type", "type", report.by_type),
        _table("How far runs get", "agent", "completed", "stopped here", lines=funnel),
        _table("Seconds", "what", "mean", "min", "max", "p50", "p90", "p99", lines=lasted),
        _table("Technologies", "name", "projects", lines=made),
        f"Downloads: {report.downloads}",
    ]


def _sessions(title: str, group: str, counts: Iterable[SessionCounts]) -> Table:
    events = ("started", "completed", "failed", "abandoned", "resumed")
    lines = [[row.group or "(none)", *(str(row[event]) for event in events)] for row in counts]
    return _table(title, group, *events, lines=lines)


def _agents(
    options: argparse.Namespace, start: float, end: float
) -> tuple[PerformanceReport, list[Any]]:
    report = agent_performance(start, end)
    lines = [
        [
            agent.agent_name,
            str(agent.runs),
            _percent(agent.success_rate),
            str(agent.retries),
            *map(_short, (agent.mean, agent.p50, agent.p95, agent.p99)),
            "" if agent.trend is None else f"{100 * agent.trend:+.0f}%",
        ]
        for agent in report.agents
    ]
    columns = ("runs", "ok", "again", "mean", "p50", "p95", "p99", "trend")
    summary = (
        f"Slowest (p95): {report.slowest or 'none'}. Most failing: {report.most_failing or 'none'}."
    )
    return report, [_table("Agents, in seconds", "agent", *columns, lines=lines), summary]


def _ab(options: argparse.Namespace, start: float, end: float) -> tuple[Comparison, list[Any]]:
    comparison = compare_variants(
        options.agent,
        options.a,
        options.b,
        options.metric,
        start,
        end,
        effect=options.effect,
    )
    lines = [
        [
            variant.name,
            str(variant.count),
            _percent(variant.success_rate),
            *("" if value is None else _short(value) for value in (variant.mean, variant.typical)),
            *map(_short, (variant.p50, variant.p95, variant.p99)),
        ]
        for variant in (comparison.a, comparison.b)
        if variant is not None
    ]
    effects = [
        line
        for line in (
            _effect("success, points", comparison.success, 100, 0),
            _effect("typical value, %", comparison.ratio, 100, 1),
        )
        if line
    ]
    columns = ("count", "ok", "mean", "typical", "p50", "p95", "p99")
    return comparison, [
        _table(f"{options.metric} of {options.agent}", "variant", *columns, lines=lines),
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


def _effect(name: str, difference: Difference | None, scale: float, same: float) -> list[str]:
    if difference is None:
        return []
    effect, low, high = (
        f"{scale * (value - same):+.1f}"
        for value in (difference.effect, difference.low, difference.high)
    )
    return [name, effect, f"{low} to {high}", f"{difference.p_value:.3f}", str(difference.needed)]


_REPORTS = {"metrics": _metrics, "usage": _usage, "agents": _agents, "ab": _ab}


def _short(value: float) -> str:
    """Return about three digits, in six characters where a value lets them."""
    size = abs(value)
    if size == 0 or 0.001 <= size < 1:
        return f"{value:.4f}" if size else "0"
    if 1 <= size < 1000:
        return f"{value:.3g}" if size < 999.5 else "1000"
    return f"{value:.0f}" if 1000 <= size < 1e6 else f"{value:.0e}"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f}%"


def _table(title: str, *columns: str, lines: Sequence[Sequence[str]]) -> Table:
    table = Table(
        title=_plain(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    widest = max((len(line[0]) for line in lines), default=0)
    table.add_column(columns[0], min_width=min(18, widest), overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", overflow="fold")
    for line in lines:
        table.add_row(*map(_plain, line))
    return table


def _plain(text: str) -> str:
    """Return a text without characters that control the terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
