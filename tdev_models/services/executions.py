"""Agent executions: what each agent did in each run, try by try."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb import chunks, cursors
from tdev_models.dynamodb.client import Client
from tdev_models.errors import ConditionFailed, Conflict, InvalidRequest, NotFound
from tdev_models.metrics.automatic import run_ended
from tdev_models.models import AgentExecution
from tdev_models.results import AGENTS, Attempt, Execution, ExecutionStatus, Page
from tdev_models.services.execution_states import PAYLOADS, change_of, is_own, seen_condition
from tdev_models.workers.lease import Lease, current_lease
from tdev_models.workers.leased_writes import leased_execution

RULES = AgentExecution.rules()
_TRIES = 10
_OUTPUT = {"output_data", "output_ref"}


def execution_key(execution_id: str, agent_name: str | None = None) -> tuple[str, str, str]:
    """Return execution id, agent name and project id of a `{project_id}-{agent_name}` id.

    The project may hold dashes. An id of another form is its own project's.

    Raises:
        InvalidRequest: no agent's name is given, and the id ends in no known one.
    """
    RULES["execution_id"]("execution_id", execution_id)
    if agent_name is None:
        agent_name = execution_id.rpartition("-")[2]
        if agent_name not in AGENTS:
            raise InvalidRequest(
                "agent_name",
                f"{execution_id!r} ends in no known agent; give agent_name, or end the id in "
                f"-{{agent}} with one of {', '.join(AGENTS)}",
            )
    RULES["agent_name"]("agent_name", agent_name)
    project_id = execution_id.removesuffix(f"-{agent_name}")
    return execution_id, agent_name, project_id or execution_id


async def update_agent_execution(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> Execution:
    """Create an execution or change the given fields of one, and return it as it is now.

    One GetItem and one conditional UpdateItem. Start and end times, `retry_count` and `attempts`
    follow from the status: RUNNING after FAILED is a new attempt, the same status again is none.
    A new execution is PENDING unless given otherwise. The session is never touched, except inside
    `track_session` or `async with resume`: there the write is one transaction with the session,
    under its lease, and moves the session's `current_agent` and `progress`.
    Safe to call again with the same fields.

    Args:
        data: the fields, by name; `help(AgentExecution)` lists them with their limits. execution_id
            is required, and agent_name when the id does not end in a known one. None means not
            given.
        more: the same as keywords.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value; nothing was sent.
        InvalidTransition: the status may not become the given one.
        LeaseHeld: the execution was written under a lease, and this call carries none.
        LeaseLost: the lease that the call carries is over; nothing was changed.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    kept = AgentExecution.get_attributes()
    values = validation.checked(data, more, RULES, "execution_id", kept=kept)
    execution_id, agent_name, project_id = execution_key(
        values.pop("execution_id"), values.pop("agent_name", None)
    )
    key = execution_id, agent_name
    seen = await client.executions.get(*key)
    values.setdefault("project_id", (seen and seen.project_id) or project_id)
    lease = current_lease(client, values["project_id"])
    written = await write_execution(client, *key, values, seen, lease)
    return await _with_payloads(client, written or await _stored(client, *key))


async def write_execution(
    client: Client,
    execution_id: str,
    agent_name: str,
    values: Mapping[str, Any],
    seen: AgentExecution | None,
    lease: Lease | None,
    seconds: float | None = None,
) -> AgentExecution | None:
    """Write fields of an execution as last seen, with its session where there is a lease.

    The attempt that it ends is counted, and its `seconds` where they are given.

    Returns the execution, or None under a lease: transactions return nothing. Someone else's write
    in between is looked at again. The token of an attempt's begin or end tells this call's own
    write, whose reply was lost: what others wrote since then stays.
    """
    token = uuid.uuid4().hex[:16]
    if seen is not None and seen.execution_id != execution_id:
        seen = None  # the agent was done under an id of another form
    expires_at = await _expiry(client, values["project_id"], seen, lease)
    if expires_at is not None:
        values = {**values, "expires_at": expires_at}
    values = await _with_chunks(client, execution_id, agent_name, values, seen, lease)
    for _ in range(_TRIES):
        change = change_of(seen, execution_id, values, lease, client.now(), token)
        condition = seen_condition(seen)
        written: AgentExecution | None = None
        try:
            if lease is None:
                written = await client.executions.update(
                    execution_id, agent_name, actions=change.actions, condition=condition
                )
            else:
                part = client.executions.requests.update_part(
                    execution_id, agent_name, actions=change.actions, condition=condition
                )
                if change.ended is False or not _OUTPUT.isdisjoint(values):
                    lease.outputs.pop(agent_name, None)  # read again when it is asked for
                await leased_execution(client, lease, agent_name, part, ended=change.ended)
        except ConditionFailed as refused:
            found = client.executions.refused(refused.item)
            if found is None or not is_own(found, token):
                seen = found
                continue
            written = found
            if lease is not None:
                lease.ended_agents = lease.ended_after(agent_name, change.ended)
        run_ended(
            client,
            agent_name,
            ends=change.ends,
            seconds=seconds,
            failed=values.get("status") == ExecutionStatus.FAILED,
            retried=change.retried,
            variant=values.get("variant") or getattr(seen, "variant", None),
        )
        return written
    raise Conflict(f"execution {execution_id}: others wrote it {_TRIES} times in between")


async def _expiry(
    client: Client, project_id: str, seen: AgentExecution | None, lease: Lease | None
) -> float | None:
    """Return when the execution expires: with its session, where that is known."""
    if seen is not None and seen.expires_at is not None:
        return seen.expires_at
    if lease is not None or client.settings.retention_days is None:
        return lease.expires_at if lease else None
    session = await client.sessions.get(project_id)
    created_at = session.created_at if session else None
    return (session and session.expires_at) or client.expiry(created_at or client.now())


async def _with_chunks(
    client: Client,
    execution_id: str,
    agent_name: str,
    values: Mapping[str, Any],
    seen: AgentExecution | None,
    lease: Lease | None,
) -> dict[str, Any]:
    """Return the fields with large payloads written, and envelopes in their place."""
    result = dict(values)
    for field, reference in PAYLOADS.items():
        text = result.get(field)
        if text is not None and len(text.encode()) > chunks.INLINE_BYTES:
            retries = int(seen.retry_count or 0) if seen else 0
            key = f"{agent_name}#{field}#{retries}#{lease.fence if lease else 0}"
            result[reference] = await chunks.write(
                client,
                execution_id,
                key,
                text,
                expires_at=result.get("expires_at"),
                stored=getattr(seen, reference, None),
            )
            del result[field]
    return result


async def payload(client: Client, execution: AgentExecution, field: str) -> Any:
    """Return the input or the output of an execution, read from its chunks where it is large.

    Raises:
        PayloadDamaged: chunks are missing or were changed.
    """
    envelope = getattr(execution, PAYLOADS[field])
    if envelope is None:
        return getattr(execution, field)
    return await chunks.read(client, execution.execution_id, envelope)


async def _stored(client: Client, execution_id: str, agent_name: str) -> AgentExecution:
    execution = await client.executions.get(execution_id, agent_name)
    if execution is None:
        raise NotFound(f"there is no execution {execution_id} of {agent_name}")
    return execution


async def get_agent_execution(
    client: Client, execution_id: str, agent_name: str | None = None
) -> Execution:
    """Return one execution with its payloads and its last 20 attempts, read consistently.

    Raises:
        NotFound: there is none.
        InvalidRequest: no agent's name is given, and the id ends in no known one.
    """
    execution_id, agent_name, _ = execution_key(execution_id, agent_name)
    return await _with_payloads(client, await _stored(client, execution_id, agent_name))


async def _with_payloads(client: Client, execution: AgentExecution) -> Execution:
    jobs = [partial(payload, client, execution, field) for field in PAYLOADS]
    values = await client.gather(jobs, len(jobs))
    return replace(record_of(execution), **dict(zip(PAYLOADS, values, strict=True)))


async def get_agent_executions(
    client: Client, project_id: str, *, limit: int = 100, cursor: str | None = None
) -> Page[Execution]:
    """Return a page of the executions of one project, by start time, oldest first.

    One Query on project-index, eventually consistent: a change shows after a moment. Without
    payloads and attempts: read those with `get_agent_execution`.

    Raises:
        InvalidRequest: limit not in 1..1000, or a cursor of another query.
    """
    RULES["project_id"]("project_id", project_id)
    validation.LIMIT("limit", limit)
    query = ("get_agent_executions", client.executions.name, project_id)
    start = cursors.decode(query, cursor)
    found, last = await client.executions.page(
        project_id, index=AgentExecution.project_index, limit=limit, start=start
    )
    return Page(map(record_of, found), cursors.encode(query, last) if last else None)


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
    `agent_name` the failures of other agents are read too, and billed, but not returned. Without
    payloads and attempts.

    Args:
        since: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        agent_name: only failures of this agent.
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
    results: list[AgentExecution] = []
    while True:
        found, last = await client.executions.page(
            ExecutionStatus.FAILED,
            index=AgentExecution.status_index,
            range_condition=None if begin is None else AgentExecution.end_time >= begin,
            limit=limit,
            newest_first=True,
            start=start,
        )
        for execution in found:
            if agent_name in (None, execution.agent_name):
                results.append(execution)
                if len(results) == limit:
                    last = client.executions.position(execution, AgentExecution.status_index)
                    break
        if last is None or len(results) == limit:
            return Page(map(record_of, results), cursors.encode(query, last) if last else None)
        start = last


def record_of(execution: AgentExecution) -> Execution:
    """Return the frozen result of one execution, its attempts in order."""
    fields_of = Execution.__dataclass_fields__
    names = [name for name in fields_of if name != "attempts"]
    attempts = sorted((execution.attempts or {}).values(), key=lambda one: one["number"])
    known = Attempt.__dataclass_fields__
    return Execution(
        **{name: getattr(execution, name) for name in names},
        attempts=tuple(
            Attempt(**{name: value for name, value in one.items() if name in known})
            for one in attempts
        ),
    )
