"""What the metrics say of a range of time: usage, and the agents' performance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from pynamodb.expressions.condition import Condition

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.metrics.hours import Cell, instants, read_totals
from tdev_models.metrics.samples import row
from tdev_models.metrics.totals import Totals
from tdev_models.models import PipelineSession
from tdev_models.results import (
    AgentPerformance,
    FunnelStep,
    PerformanceReport,
    SessionCounts,
    SessionStatus,
    UsageReport,
)

G = TypeVar("G", bound=Hashable)

_MOST_COUNTED = 10_000

_AGENT: Callable[[Cell], str] = attrgetter("agent_name")
_ALL: Callable[[Cell], str] = lambda cell: "all"  # noqa: E731
_GROUPS: Sequence[Callable[[Cell], str]] = (
    _ALL,
    attrgetter("day"),
    lambda cell: f"{cell.hour:02}",
    attrgetter("dimension"),
    _AGENT,
)
_EVENTS = ("started", "completed", "failed", "abandoned", "resumed")


async def usage_report(client: Client, start: Any, end: Any) -> UsageReport:
    """Return what happened in a range: sessions, how far they got, what was made.

    From the automatic metrics, so it knows what was recorded while they were on. Whole UTC hours,
    as `query_metrics`: nine Queries a day of the range, consistent. A session counts where it
    began, and its end where it ended: at the edges of the range these are different sessions.
    Distinct users are not known from totals. The sessions that wait to be resumed are those of this
    moment: two Queries on status-index count them, up to 10,000, eventually consistent; half a read
    unit for 4 KB, some 60 units for 1,000 sessions.

    Args:
        start: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        end: instant, exclusive; at most 366 days later.

    Raises:
        InvalidRequest: a wrong value.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    (first, last), now = instants(start, end), client.now()

    async def read(name: str, group_of: Callable[[Cell], G]) -> dict[G, Totals]:
        return await read_totals(client, name, first, last, group_of)

    by_event = {
        event: await client.compute(_counts, await read(f"sessions_{event}", lambda cell: cell))
        for event in _EVENTS
    }
    by_all, by_day, by_hour, by_type, by_agent = await client.compute(
        lambda: [_grouped(by_event, group_of) for group_of in _GROUPS]
    )
    sessions = by_all[0] if by_all else SessionCounts(group="all", **dict.fromkeys(_EVENTS, 0))
    stopped = {row.group: row.failed + row.abandoned for row in by_agent if row.group}
    others = {name for name, count in stopped.items() if count} - {*client.settings.agents}
    durations = (await read("session_duration", _ALL)).get("all")
    runs = await read("agent_execution_time", _AGENT)
    technologies = _counts(await read("projects_saved", lambda cell: cell.dimension))
    due_at = PipelineSession.due_at
    due = await _count_failed(client, due_at <= now, now)
    later = await _count_failed(client, due_at > now, now)
    ended = sessions.completed + sessions.abandoned
    return UsageReport(
        sessions=sessions,
        success_rate=sessions.completed / ended if ended else None,
        abandonment_rate=sessions.abandoned / ended if ended else None,
        waiting=min(due + later, _MOST_COUNTED),
        due=due,
        by_day=by_day,
        by_hour=by_hour,
        by_type=by_type,
        funnel=tuple(
            FunnelStep(
                agent_name=name,
                completed=runs[name].count - runs[name].errors if name in runs else 0,
                stopped=stopped.get(name, 0),
            )
            for name in (*client.settings.agents, *sorted(others))
        ),
        seconds=row("session_duration", durations, (50, 90, 99)) if durations else None,
        technologies=dict(sorted(technologies.items(), key=lambda pair: (-pair[1], pair[0]))),
        downloads=_counts(await read("project_downloads", _ALL)).get("all", 0),
    )


async def _count_failed(client: Client, when: Condition, now: float) -> int:
    """Return how many sessions are FAILED and not expired, by a condition on their `due_at`."""
    expires_at = PipelineSession.expires_at
    return await client.sessions.count(
        SessionStatus.FAILED,
        _MOST_COUNTED,
        index=PipelineSession.status_index,
        range_condition=when,
        filter_condition=expires_at.does_not_exist() | (expires_at > now),
    )


async def agent_performance(client: Client, start: Any, end: Any) -> PerformanceReport:
    """Return how each agent did in a range, against the range of the same length before.

    From `agent_execution_time`, which the tracker records (what ran without it counts as far as the
    program recorded it), and `agent_retries`. Whole UTC hours; three Queries a day of the range,
    consistent.

    Args:
        start: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        end: instant, exclusive; at most 366 days later.

    Raises:
        InvalidRequest: a wrong value.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    first, last = instants(start, end)
    first, last = first // 3600 * 3600, -(-last // 3600) * 3600
    before = validation.instant("start", 2 * first - last)

    async def by_agent(name: str, start: float, end: float) -> dict[str, Totals]:
        return await read_totals(client, name, start, end, _AGENT)

    runs = await by_agent("agent_execution_time", first, last)
    former = await by_agent("agent_execution_time", before, first)
    retries = await by_agent("agent_retries", first, last)
    known = client.settings.agents
    order = [*known, *sorted(set(runs) - set(known))]
    agents = [
        AgentPerformance(
            agent_name=name,
            runs=runs[name].count,
            failures=runs[name].errors,
            success_rate=1 - runs[name].error_rate,
            retries=retries[name].count if name in retries else 0,
            mean=runs[name].mean,
            p50=runs[name].percentile(50),
            p95=runs[name].percentile(95),
            p99=runs[name].percentile(99),
            max=runs[name].max,
            trend=runs[name].mean / former[name].mean - 1
            if name in former and former[name].mean
            else None,
        )
        for name in order
        if name in runs
    ]
    failing = [agent for agent in agents if agent.failures]
    return PerformanceReport(
        agents=tuple(agents),
        slowest=max(agents, key=lambda agent: agent.p95).agent_name if agents else None,
        most_failing=min(failing, key=lambda agent: agent.success_rate).agent_name
        if failing
        else None,
    )


def _grouped(
    by_event: Mapping[str, Mapping[Cell, int]], group_of: Callable[[Cell], str]
) -> tuple[SessionCounts, ...]:
    groups: dict[str, Counter[str]] = {}
    for event, cells in by_event.items():
        for cell, count in cells.items():
            groups.setdefault(group_of(cell), Counter())[event] += count
    return tuple(
        SessionCounts(group=group, **{event: counts[event] for event in _EVENTS})
        for group, counts in sorted(groups.items())
    )


def _counts(groups: Mapping[G, Totals]) -> dict[G, int]:
    return {group: totals.count for group, totals in groups.items()}
