"""The page's views of a range of time as one file, which needs neither network nor scripts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

import tdev_models
from tdev_models.results import Failure, MetricRow, Page, Session, SessionStatus
from tdev_models.views import attempts, failure_groups
from tdev_models.web.charts import gantt, lines
from tdev_models.web.languages import translate
from tdev_models.web.pages import PERCENTILES, over_time, usage_facts
from tdev_models.web.rendering import STATIC, rendered

Asked: TypeAlias = tuple[str, str, str, Mapping[str, float] | None]
"""An agent, two of its variants, and their weights."""

_SESSIONS, _DRAWN, _FAILURES = 100, 20, 1000


async def report(
    start: float,
    end: float,
    *,
    language: str = "en",
    comparisons: Sequence[Asked] = (),
) -> str:
    """Return the HTML of a range: usage, agents over time, failures by message, sessions, workers.

    Usage, agents and comparisons are those of the range, failures its newest 1000. Sessions are
    those that are ACTIVE or FAILED now, 100 of each; 20 of them are drawn against time, FAILED ones
    first. Where there are more, the file says so.

    Args:
        start: epoch seconds, inclusive.
        end: epoch seconds, exclusive; at most 366 days later.
        language: `en` or `ko`.
        comparisons: agent, two of its variants and their weights (None: equal), each.

    Raises:
        InvalidRequest: a wrong range, or a wrong comparison.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    compared = [
        await tdev_models.compare_variants(
            agent, a, b, "agent_execution_time", start, end, weights=weights
        )
        for agent, a, b, weights in comparisons
    ]
    agents = await tdev_models.agent_performance(start, end)
    names = [agent.agent_name for agent in agents.agents]
    if end - start <= 2 * 86400:
        drawn = [await over_time(name, start, end) for name in names]
    else:
        by_day = await _by_day(start, end)
        drawn = [(lines(by_day[name], PERCENTILES), by_day[name]) for name in names]
    failures = await _failures(start, end)
    lists = [
        await tdev_models.list_pipeline_sessions(status=status, limit=_SESSIONS)
        for status in (SessionStatus.FAILED, SessionStatus.ACTIVE)
    ]
    open_ones = [session for page in lists for session in page]
    shown = await asyncio.gather(*map(_drawn, open_ones[:_DRAWN]))
    style = STATIC["style.css"]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    ids = {session.session_id: number for number, session in enumerate(open_ones[:_DRAWN])}

    def url(name: str, **parameters: Any) -> str:
        """Return the place in the file; most pages are not in it."""
        number = ids.get(parameters.get("session_id", ""))
        return f"#session-{number}" if name == "session" and number is not None else ""

    values = {
        "language": language,
        "is_user": False,
        "is_report": True,
        "start": start,
        "end": end,
        "style": style,
        "digest": digest,
        "usage": await usage_facts(start, end),
        "performance": agents,
        "over_time": list(zip(names, drawn, strict=True)),
        "comparisons": compared,
        "failures": failures,
        "groups": failure_groups.grouped(failures),
        "open": open_ones,
        "are_more_open": any(page.cursor for page in lists),
        "drawn": shown,
        "workers": await tdev_models.list_workers(),
        "made": time.time(),
    }
    return rendered("report.html", translate(language), url, values)


async def _failures(start: float, end: float) -> Page[Failure]:
    """Return the newest failures of a range; its cursor, if any, says that there are more."""
    found, cursor = list[Failure](), None
    while len(found) < _FAILURES:
        page = await tdev_models.get_failed_executions(
            start, include_recovered=True, limit=_FAILURES, cursor=cursor
        )
        found += [one for one in page if (one.failed_at or 0) < end]
        if (cursor := page.cursor) is None:
            break
    return Page(found, cursor)


async def _by_day(start: float, end: float) -> Mapping[str, list[MetricRow]]:
    """Return the rows of `over_time` of all agents: a Query a day instead of one for each agent."""
    rows = defaultdict[str, list[MetricRow]](list)
    while start < end:
        midnight = min(end, (start // 86400 + 1) * 86400)
        day = datetime.fromtimestamp(start, UTC).date().isoformat()
        for row in await tdev_models.query_metrics(
            "agent_execution_time", start, midnight, group_by="agent", percentiles=PERCENTILES
        ):
            rows[row.agent_name or ""].append(replace(row, day=day))
        start = midnight
    return rows


async def _drawn(session: Session) -> dict[str, Any]:
    """Return a session, its attempts against time, and its errors."""
    session_id = session.session_id
    executions = await tdev_models.get_agent_executions(session_id, attempts=True, limit=1000)
    rows = attempts.rows(session, executions, time.time())
    errors = [row for row in rows if row.attempt.error_message]
    return {"session": session, "gantt": gantt(rows), "errors": errors}
