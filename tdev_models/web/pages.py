"""The pages: what each reads, by the public calls, and shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

import tdev_models
from tdev_models.errors import InvalidRequest, shown
from tdev_models.results import Execution, Page, Session, SessionStatus
from tdev_models.views import attempts, failure_groups
from tdev_models.views.moments import fixed
from tdev_models.views.weights import weights
from tdev_models.web.access import check_sees_all, reader, shown_to, site
from tdev_models.web.api import following, stream, tagged
from tdev_models.web.charts import columns, gantt, lines
from tdev_models.web.languages import language, translate
from tdev_models.web.live import MOST_EXECUTIONS, cheap_executions, list_polls
from tdev_models.web.parameters import takes, whole
from tdev_models.web.rendering import STATIC, address, rendered

PERCENTILES = (50, 95, 99)
_LISTS: Mapping[str, tuple[str, ...]] = {
    "open": (SessionStatus.ACTIVE, SessionStatus.FAILED),
    **{str(status): (status,) for status in SessionStatus},
    "all": tuple(SessionStatus),
}
_LIMIT, _FAILURES = 25, 200
_OF_SESSIONS = ("show", "user_id", "since", "older_than", "cursor", "limit")
_EVENTS = ("completed", "failed", "abandoned")


async def page(request: Request, template: str, **values: Any) -> Response:
    """Return a page, or 304 where the reader has the same already."""
    values.setdefault("is_user", await reader(request) is not None)
    return tagged(request, HTMLResponse(html(request, template, values)))


def html(request: Request, template: str, values: Mapping[str, Any]) -> str:
    """Return a page as text."""
    chosen = language(request.headers.get("accept-language", ""))
    url = address(request.scope.get("root_path", ""))
    given = {"language": chosen, "may_act": site(request).action_token is not None}
    return rendered(template, translate(chosen), url, {**given, **values})


@takes(*_OF_SESSIONS)
async def sessions(request: Request) -> Response:
    """Show sessions: open ones, of a status, of a user, or due."""
    user_id = await reader(request)
    asked = _asked(request, user_id)
    return await page(
        request,
        "sessions.html",
        **asked,
        lists=[*_LISTS, "due"],
        pages=await _pages(asked),
        is_user=user_id is not None,
    )


@takes(*_OF_SESSIONS)
async def sessions_live(request: Request) -> Response:
    """Send the list of sessions every ten seconds."""
    user_id = await reader(request)
    asked = _asked(request, user_id)

    def text(pages: Any) -> str:
        shown = {**asked, "pages": pages, "is_user": user_id is not None}
        return html(request, "sessions_live.html", shown)

    key = ("sessions", user_id, *asked.values())
    found = site(request).watches.follow(key, lambda: list_polls(lambda: _pages(asked)))
    return await following(request, found, _form(request, user_id), text)


def _form(request: Request, user_id: str | None) -> tuple[Any, ...]:
    """Return what decides how a watched state looks."""
    chosen = language(request.headers.get("accept-language", ""))
    return chosen, request.scope.get("root_path", ""), user_id is not None


def _asked(request: Request, user_id: str | None) -> dict[str, Any]:
    """Return what a query string asks for of the list of sessions."""
    given = request.query_params
    asked: dict[str, Any] = {
        name: given.get(name, "").strip() for name in ("user_id", "since", "older_than", "cursor")
    }
    if user_id is not None:
        asked["user_id"] = user_id
    # Nothing lists one user's sessions by their status.
    asked["show"] = "all" if asked["user_id"] else given.get("show") or "open"
    if asked["show"] not in (*_LISTS, "due"):
        raise InvalidRequest(
            "show", f"{shown(asked['show'])} is not one of {', '.join(_LISTS)}, due"
        )
    asked["limit"] = whole("limit", given["limit"]) if given.get("limit") else _LIMIT
    return asked


async def _pages(asked: Mapping[str, Any]) -> list[tuple[str, Page[Session], dict[str, str]]]:
    """Return each list that is asked for, with its status, and the ages that its cursor is of."""
    paging: dict[str, Any] = {"limit": asked["limit"], "cursor": asked["cursor"] or None}
    ages = {name: asked[name] and fixed(name, asked[name]) for name in ("since", "older_than")}
    if asked["show"] == "due":
        if any(ages.values()):
            raise InvalidRequest("show", "due takes no age: the longest due come first")
        return [("due", await tdev_models.get_failed_sessions(**paging), ages)]
    paging |= {"created_after": ages["since"] or None, "created_before": ages["older_than"] or None}
    if user_id := asked["user_id"]:
        return [("", await tdev_models.list_pipeline_sessions(user_id=user_id, **paging), ages)]
    statuses = _LISTS[asked["show"]]
    if paging["cursor"] and len(statuses) > 1:
        raise InvalidRequest("cursor", "belongs to a list of one status, or of one user")
    lists = [tdev_models.list_pipeline_sessions(status=status, **paging) for status in statuses]
    found = await asyncio.gather(*lists)
    return [(str(status), one, ages) for status, one in zip(statuses, found, strict=True)]


@takes("session_id", "tracebacks")
async def session(request: Request) -> Response:
    """Show one session: its agents against time, errors, tokens and cost."""
    user_id = await reader(request)
    session_id = _required(request, "session_id")
    found = await tdev_models.get_pipeline_session(session_id, user_id=user_id)
    if found.status == SessionStatus.ACTIVE:
        executions = await cheap_executions(session_id)
    else:
        executions = await tdev_models.get_agent_executions(
            session_id, attempts=True, limit=MOST_EXECUTIONS
        )
    failures = None
    wanted = request.query_params.get("tracebacks") or attempts.lack_texts(executions)
    if user_id is None and wanted:
        failures = await tdev_models.get_failed_executions(
            session_id=session_id, include_recovered=True, limit=_FAILURES
        )
    values = _facts(found, executions, user_id)
    return await page(request, "session.html", **values, failures=failures)


@takes("session_id")
async def session_live(request: Request) -> Response:
    """Send the live part of a session's page at each poll, until the session has ended."""
    user_id = await reader(request)

    def text(watched: Any) -> str:
        values = _facts(watched.session, watched.executions, user_id)
        return html(request, "session_live.html", values)

    return await stream(request, user_id, text, *_form(request, user_id))


def _facts(found: Session, executions: Iterable[Execution], user_id: str | None) -> dict[str, Any]:
    """Return what the page of a session shows."""
    shown_executions = [shown_to(user_id, one) for one in executions]
    rows = attempts.rows(found, shown_executions, time.time())
    errors = [row for row in rows if row.attempt.error_message]
    return {
        "session": shown_to(user_id, found),
        "rows": rows,
        "gantt": gantt(rows),
        "errors": sorted(errors, key=lambda row: row.end),
        "is_user": user_id is not None,
    }


@takes("execution_id", "agent_name")
async def execution(request: Request) -> Response:
    """Show one execution: its in- and output, and each attempt."""
    user_id = await reader(request)
    found = await tdev_models.get_agent_execution(
        _required(request, "execution_id"),
        request.query_params.get("agent_name") or None,
        user_id=user_id,
    )
    return await page(request, "execution.html", execution=shown_to(user_id, found))


@takes("since", "agent_name", "open", "cursor")
async def failures(request: Request) -> Response:
    """Show what failed, by agent and message."""
    await check_sees_all(request)
    given = request.query_params
    since = given.get("since") or "24 hours ago"
    agent_name, is_open = given.get("agent_name", ""), bool(given.get("open"))
    of_cursor = fixed("since", since)
    found = await tdev_models.get_failed_executions(
        of_cursor,
        agent_name or None,
        include_recovered=not is_open,
        limit=_FAILURES,
        cursor=given.get("cursor") or None,
    )
    return await page(
        request,
        "failures.html",
        since=since,
        of_cursor=of_cursor,
        agent_name=agent_name,
        is_open=is_open,
        groups=failure_groups.grouped(found),
        found=found,
    )


@takes("agent_name", "days")
async def agents(request: Request) -> Response:
    """Show runs, failures and times of each agent, and of one of them its percentiles over time."""
    await check_sees_all(request)
    days, start, end = _range(request)
    report = await tdev_models.agent_performance(start, end)
    agent_name = request.query_params.get("agent_name") or report.slowest or ""
    drawn, rows = await over_time(agent_name, start, end) if agent_name else (lines((), ()), [])
    return await page(
        request,
        "agents.html",
        days=days,
        report=report,
        agent_name=agent_name,
        drawn=drawn,
        rows=rows,
    )


async def over_time(agent_name: str, start: float, end: float) -> tuple[Any, Any]:
    """Return an agent's percentiles by hour or day, as a drawing and as rows."""
    rows = await tdev_models.query_metrics(
        "agent_execution_time",
        start,
        end,
        agent_name=agent_name,
        group_by="hour" if end - start <= 2 * 86400 else "day",
        percentiles=PERCENTILES,
    )
    return lines(rows, PERCENTILES), rows


@takes("days")
async def usage(request: Request) -> Response:
    """Show sessions by day, how far they get, technologies and costs."""
    await check_sees_all(request)
    days, start, end = _range(request)
    return await page(request, "usage.html", days=days, **await usage_facts(start, end))


async def usage_facts(start: float, end: float) -> dict[str, Any]:
    """Return what the page of usage shows of a range."""
    report, costs, tokens = await asyncio.gather(
        tdev_models.usage_report(start, end),
        tdev_models.query_metrics("agent_cost_usd", start, end, group_by="agent"),
        tdev_models.query_metrics("agent_tokens", start, end, group_by="agent"),
    )
    return {
        "report": report,
        "costs": costs,
        "tokens": {row.agent_name: row.sum for row in tokens},
        "by_day": columns(report.by_day, _EVENTS),
    }


@takes("agent_name", "a", "b", "metric", "weights", "days")
async def comparison(request: Request) -> Response:
    """Show one variant of an agent against another."""
    await check_sees_all(request)
    given = request.query_params
    asked = {name: given.get(name, "").strip() for name in ("agent_name", "a", "b")}
    metric = given.get("metric") or "agent_execution_time"
    days, start, end = _range(request)
    found, variants, uneven = None, [], given.get("weights", "").strip()
    if all(asked.values()):  # first: a wrong value is refused before anything is read
        found = await tdev_models.compare_variants(
            asked["agent_name"],
            asked["a"],
            asked["b"],
            metric,
            start,
            end,
            weights=weights("weights", uneven) if uneven else None,
        )
    if asked["agent_name"]:
        variants = await tdev_models.query_metrics(
            metric, start, end, agent_name=asked["agent_name"], group_by="dimension"
        )
    return await page(
        request,
        "comparison.html",
        **asked,
        metric=metric,
        weights=uneven,
        days=days,
        comparison=found,
        variants=[row for row in variants if row.dimension],
    )


@takes("cursor")
async def workers(request: Request) -> Response:
    """Show who works: alive, draining, silent or dead."""
    await check_sees_all(request)
    found = await tdev_models.list_workers(cursor=request.query_params.get("cursor") or None)
    return await page(request, "workers.html", workers=found)


@takes("user_id", "cursor")
async def projects(request: Request) -> Response:
    """Show the projects of one user."""
    user_id = await reader(request)
    given = request.query_params
    of = user_id or given.get("user_id", "").strip()
    found = None
    if of:
        found = await tdev_models.list_user_projects(
            of, limit=_LIMIT, cursor=given.get("cursor") or None
        )
    return await page(request, "projects.html", user_id=of, projects=found)


def _required(request: Request, name: str) -> str:
    if not (value := request.query_params.get(name)):
        raise HTTPException(404, f"the address names no {name}")
    return value


def _range(request: Request) -> tuple[int, float, float]:
    """Return how many days are asked for, and their begin and end."""
    days = whole("days", request.query_params.get("days") or "7")
    if not 1 <= days <= 366:
        raise InvalidRequest("days", "must be 1 to 366")
    end = time.time()
    return days, end - 86400 * days, end


async def static(request: Request) -> Response:
    """Return one of the files that pages load; its address changes with it."""
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404, "there is no such file")
    kind = {"css": "text/css", "js": "text/javascript"}[name.rpartition(".")[2]]
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(STATIC[name], media_type=kind, headers=kept)
