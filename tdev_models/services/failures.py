"""Find what failed: sessions that failed or stalled, executions that failed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import result_of
from tdev_models.models import AgentExecution
from tdev_models.models.execution import agent_of
from tdev_models.models.worker import WORKER
from tdev_models.results import Execution, ExecutionStatus, Page, Session
from tdev_models.services.due import ACTIVE, FAILED, Bounds, Starts, due_sessions
from tdev_models.services.executions import RULES, execution_result

_PAGE = validation.whole(1, 100)
_CANDIDATES = 100


async def get_failed_sessions(
    client: Client,
    older_than: Any = None,
    include_stalled: bool = True,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Session]:
    """Return a page of what waits to be resumed: FAILED and stalled ACTIVE sessions.

    First those whose worker's lease has ended, then by `due_at`, longest due first. FAILED sessions
    in backoff (`due_at` in the future) are not among them;
    `list_pipeline_sessions(status="FAILED")` shows those, too. Stalled: the worker's lease has
    ended, the owner handed the session back, the deadline of an agent has passed, or it never had a
    lease, and neither it nor its latest executions were written for the setting
    `stalled_after_seconds` (one Query for each such one). Queries on status-index and worker-index
    find candidates (one for each worker that died within the hour); TransactGetItems reads them
    consistently, so each was FAILED or stalled when it was read. A page is short only at the end. A
    session that cannot be read is logged and left out.

    Args:
        older_than: only sessions last updated before this instant (epoch seconds, datetime or ISO
            text), or longer ago than this timedelta.
        include_stalled: False leaves out the ACTIVE ones.
        limit: 1..100 sessions.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    _PAGE("limit", limit)
    validation.flag("include_stalled", include_stalled)
    bounds = Bounds.at(client.now(), older_than)
    starts: Starts = dict.fromkeys((WORKER, FAILED, ACTIVE) if include_stalled else (FAILED,))
    query = ("get_failed_sessions", client.sessions.name, include_stalled)
    if (stored := cursors.decode(query, cursor)) is not None:
        bounds = Bounds(**stored["bounds"])
        starts = stored["at"]
    sessions, starts = await due_sessions(client, bounds, starts, limit)
    return Page(
        (result_of(Session, session) for session in sessions),
        cursors.encode(query, {"at": starts, "bounds": asdict(bounds)}) if starts else None,
    )


async def get_failed_executions(
    client: Client,
    since: Any = None,
    agent_name: str | None = None,
    *,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Execution]:
    """Return a page of failed executions, newest first.

    Queries on status-index, eventually consistent: a change shows after a moment. With
    `agent_name` the failures of other agents are read too, at least 100 at once, and billed, but
    not returned. Without payloads and attempts.

    Args:
        since: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        agent_name: only failures of this agent, whatever its key; `agent@key` of one key.
        limit: 1..1000 executions.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    validation.LIMIT("limit", limit)
    if agent_name is not None:
        RULES["agent_name"]("agent_name", agent_name)
    begin = None if since is None else validation.instant("since", since)
    query = ("get_failed_executions", client.executions.name, begin, agent_name)
    start = cursors.decode(query, cursor)
    failures: list[AgentExecution] = []
    while True:
        executions, last = await client.executions.page(
            ExecutionStatus.FAILED,
            index=AgentExecution.status_index,
            range_condition=None if begin is None else AgentExecution.end_time >= begin,
            limit=limit if agent_name is None else max(limit, _CANDIDATES),
            newest_first=True,
            start=start,
            unreadable=[],
        )
        for execution in executions:
            if agent_name in (None, execution.agent_name, agent_of(execution.agent_name)):
                failures.append(execution)
                if len(failures) == limit:
                    last = client.executions.position(execution, AgentExecution.status_index)
                    break
        if last is None or len(failures) == limit:
            return Page(
                map(execution_result, failures), cursors.encode(query, last) if last else None
            )
        start = last
