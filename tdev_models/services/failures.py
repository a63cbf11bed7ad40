"""Find what failed: sessions that failed or stalled, executions that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import NOT_DECRYPTED, is_plain, listed_result, shown_field
from tdev_models.models import AgentExecution
from tdev_models.models.execution import FAILED_ATTEMPT, agent_of, attempt_key
from tdev_models.models.worker import WORKER
from tdev_models.results import ExecutionStatus, Failure, Page, Session
from tdev_models.services.due import (
    ACTIVE,
    FAILED,
    Bounds,
    Starts,
    are_bounds,
    are_starts,
    due_sessions,
)
from tdev_models.services.executions import RULES, read_many

_PAGE = validation.whole(1, 100)
_CANDIDATES = 1000

_Start: TypeAlias = Mapping[str, Any] | None


class _Attempt(NamedTuple):
    """Names one attempt of one execution."""

    execution_id: str
    agent_name: str
    number: int

    @property
    def keys(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The keys of its execution, and of the item that keeps it."""
        agent_name = attempt_key(self.agent_name, self.number)
        return (self.execution_id, self.agent_name), (self.execution_id, agent_name)


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
    shape = {"at": lambda at: are_starts(client, starts, at), "bounds": are_bounds}
    stored = cursors.decode(query, cursor, lambda value: cursors.has_shape(value, shape))
    if stored is not None:
        bounds = Bounds(**stored["bounds"])
        starts = stored["at"]
    sessions, starts = await due_sessions(client, bounds, starts, limit)
    return Page(
        (listed_result(Session, session) for session in sessions),
        cursors.encode(query, {"at": starts, "bounds": asdict(bounds)}) if starts else None,
    )


async def get_failed_executions(
    client: Client,
    since: Any = None,
    agent_name: str | None = None,
    session_id: str | None = None,
    *,
    include_recovered: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Failure]:
    """Return a page of failures, newest first: of each execution that is FAILED, its last attempt.

    With `include_recovered` all attempts that failed, also those after which the agent was tried
    again: what failed last night and was repaired since. `recovered` says whether one of those
    later attempts has COMPLETED.

    Queries on failure-index (eventually consistent: a change shows after a moment), which hold keys
    alone; with `agent_name` those of other agents are read too, at least 1000 at once. With
    `session_id` a Query on project-index instead, whatever else has failed. Then one
    TransactGetItems for each 50 failures reads them and their executions: each was as returned when
    it was read. With `session_id` each page reads all failures of the session. One that cannot be
    read is logged and left out. Encrypted texts are decrypted with `session_id` alone.

    Args:
        since: only what failed at this instant or later; epoch seconds, datetime (naive: local
            time) or ISO text.
        agent_name: only failures of this agent, whatever its key; `agent@key` of one key.
        session_id: only failures of this session.
        include_recovered: also those that were followed by another attempt.
        limit: 1..1000 failures.
        cursor: of the page before.

    Raises:
        InvalidRequest: a wrong value, or a cursor of another query.
    """
    validation.LIMIT("limit", limit)
    validation.flag("include_recovered", include_recovered)
    if agent_name is not None:
        RULES["agent_name"]("agent_name", agent_name)
    if session_id is not None:
        RULES["project_id"]("session_id", session_id)
    begin = None if since is None else validation.instant("since", since)
    table = client.executions.name
    query = ("get_failed_executions", table, begin, agent_name, session_id, include_recovered)
    wanted = FAILED_ATTEMPT if include_recovered else ExecutionStatus.FAILED
    is_start = client.executions.is_start(wanted, AgentExecution.failure_index)
    start = cursors.decode(query, cursor, is_start if session_id is None else _is_moment)
    if session_id is None:
        found, last = await _newest_failures(client, wanted, begin, agent_name, limit, start)
    else:
        found = await _failures_of_session(client, session_id, agent_name, include_recovered)
        found = [one for one in found if begin is None or (one.failed_at or 0) >= begin]
        found, last = _page_of(found, limit, start)
    return Page(found, cursors.encode(query, last) if last else None)


async def _newest_failures(
    client: Client,
    wanted: str,
    begin: float | None,
    agent_name: str | None,
    limit: int,
    start: _Start,
) -> tuple[list[Failure], _Start]:
    """Return failures by failure-index, newest first, and where the next page begins."""
    index, found = AgentExecution.failure_index, list[Failure]()
    while True:
        rows, start = await client.executions.page(
            wanted,
            index=index,
            range_condition=None if begin is None else AgentExecution.failed_at >= begin,
            limit=limit if agent_name is None else max(limit, _CANDIDATES),
            newest_first=True,
            start=start,
            unreadable=[],
        )
        rows = [row for row in rows if _is_of(agent_name, row)]
        room = limit - len(found)
        if len(rows) > room:
            rows = rows[:room]
            start = client.executions.position(rows[-1], index)
        attempts = [
            _Attempt(row.execution_id, _agent(row), int(row.retry_count or 0) + 1) for row in rows
        ]
        found += await _read(client, attempts, wanted == FAILED_ATTEMPT)
        if start is None or len(found) == limit:
            return found, start


async def _failures_of_session(
    client: Client, session_id: str, agent_name: str | None, include_recovered: bool
) -> list[Failure]:
    """Return all failures of one session, newest first."""
    attempts: list[_Attempt] = []
    start: _Start = None
    while True:
        rows, start = await client.executions.page(
            session_id, index=AgentExecution.project_index, start=start, unreadable=[]
        )
        for row in rows:
            if _is_of(agent_name, row):
                retries = int(row.retry_count or 0)
                last = retries + (row.status == ExecutionStatus.FAILED)
                numbers = range(1 if include_recovered else retries + 1, last + 1)
                attempts += [_Attempt(row.execution_id, row.agent_name, one) for one in numbers]
        if start is None:
            break
    found = await _read(client, attempts, include_recovered, decrypts=True)
    return sorted(found, key=_moment, reverse=True)


def _page_of(failures: list[Failure], limit: int, start: _Start) -> tuple[list[Failure], _Start]:
    """Return a page of sorted failures, and where the next one begins."""
    if start is not None:
        failures = [one for one in failures if _moment(one) < tuple(start["at"])]
    page = failures[:limit]
    return page, {"at": _moment(page[-1])} if len(failures) > limit else None


def _is_moment(value: Any) -> bool:
    """Return whether a value says after which failure of a session the next page begins."""
    return cursors.has_shape(
        value,
        {
            "at": lambda at: (
                isinstance(at, list)
                and len(at) == 4
                and cursors.is_number(at[0])
                and [type(one) for one in at[1:]] == [str, str, int]
            )
        },
    )


def _moment(failure: Failure) -> tuple[float, str, str, int]:
    at = failure.failed_at or 0
    return at, failure.execution_id, failure.agent_name, failure.number


def _agent(row: AgentExecution) -> str:
    """Return the agent of an execution, or of the item that keeps one of its attempts."""
    return str(row.agent_name).partition("#")[0]


def _is_of(agent_name: str | None, row: AgentExecution) -> bool:
    return agent_name in (None, _agent(row), agent_of(_agent(row)))


async def _read(
    client: Client,
    attempts: Iterable[_Attempt],
    include_recovered: bool,
    *,
    decrypts: bool = False,
) -> list[Failure]:
    """Return what is stored of attempts, in their order, without those that have not failed."""
    attempts = list(dict.fromkeys(attempts))
    keys = list(dict.fromkeys(key for attempt in attempts for key in attempt.keys))
    items = await read_many(client, keys)
    stored = dict(zip(keys, items, strict=True))
    found: list[Failure] = []
    for attempt in attempts:
        execution, kept = (stored[key] for key in attempt.keys)
        failure = await _failure(client, attempt, execution, kept, include_recovered, decrypts)
        if failure is not None:
            found.append(failure)
    return found


async def _text(client: Client, source: AgentExecution, name: str, decrypts: bool) -> str | None:
    """Return one text of a failure, decrypted or marked where it is encrypted."""
    if decrypts or is_plain(client, source, name):
        text: str | None = await shown_field(client, source, name)
        return text
    return NOT_DECRYPTED


async def _failure(
    client: Client,
    attempt: _Attempt,
    execution: AgentExecution | None,
    kept: AgentExecution | None,
    include_recovered: bool,
    decrypts: bool,
) -> Failure | None:
    """Return an attempt that failed, as its execution and the item that keeps it show it."""
    if execution is None:
        return None
    is_last = execution.status == ExecutionStatus.FAILED
    is_last &= int(execution.retry_count or 0) + 1 == attempt.number
    source = kept or (execution if is_last else None)
    if source is None or not (is_last or include_recovered):
        return None
    return Failure(
        **attempt._asdict(),
        session_id=execution.project_id,
        start_time=source.start_time,
        failed_at=source.failed_at or source.end_time,  # of a release that kept no attempts
        worker=source.worker,
        error_class=source.error_class,
        error_message=await _text(client, source, "error_message", decrypts),
        traceback=await _text(client, source, "traceback", decrypts),
        critical=source.critical is not False,
        variant=source.variant,
        recovered=any(
            other.get("status") == ExecutionStatus.COMPLETED
            and other.get("number", 0) > attempt.number
            for other in (execution.attempts or {}).values()
        ),
    )
