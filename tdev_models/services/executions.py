"""Agent executions: what each agent did in each run, attempt by attempt."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from tdev_models import json_form, settings, validation
from tdev_models.dynamodb import chunks, cursors
from tdev_models.dynamodb.client import Client
from tdev_models.errors import ConditionFailed, Conflict, InvalidRequest, LeaseHeld, NotFound, shown
from tdev_models.metrics.automatic import run_ended
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.models.execution import agent_of
from tdev_models.results import AGENTS, Attempt, Execution, ExecutionStatus, Page
from tdev_models.services.execution_states import (
    PAYLOADS,
    actions_of,
    began_or_ended_with,
    change_of,
    seen_condition,
    stored_after,
)
from tdev_models.services.usage import NOTHING, Usage
from tdev_models.workers.lease import Lease, current_lease, lease_lost_error
from tdev_models.workers.leased_writes import leased_execution
from tdev_models.workers.users import visible_to

T = TypeVar("T")

RULES, SESSION_RULES = AgentExecution.rules(), PipelineSession.rules()
_TRIES = 10
_OUTPUT = {"output_data", "output_ref"}


def execution_key(
    execution_id: str, agent_name: str | None = None, agents: Sequence[str] = AGENTS
) -> tuple[str, str, str]:
    """Return execution id, agent name and project id of a `{project_id}-{agent_name}` id.

    The project may hold dashes. An id of another form is its own project's. Without a name it is
    the one of the `agents` in which the id ends.

    Raises:
        InvalidRequest: no agent's name is given, and the id ends in no known one.
    """
    RULES["execution_id"]("execution_id", execution_id)
    if agent_name is None:
        known = [name for name in agents if execution_id.endswith(f"-{name}")]
        agent_name = max(known, key=len, default=None)
        if agent_name is None:
            raise InvalidRequest(
                "agent_name",
                f"{shown(execution_id)} ends in no known agent; give agent_name, or end the id in "
                f"-{{agent}} with one of {', '.join(agents)} (the setting agents)",
            )
    RULES["agent_name"]("agent_name", agent_name)
    project_id = execution_id.removesuffix(f"-{agent_of(agent_name)}")
    return execution_id, agent_name, project_id or execution_id


async def update_agent_execution(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> Execution:
    """Create an execution or change the given fields of one, and return it as it is now.

    One read and one conditional UpdateItem. Start and end times, `retry_count` and `attempts`
    follow from the status: RUNNING after FAILED is a new attempt, the same status again is none.
    A new execution is PENDING unless given otherwise. The session is never touched, except inside
    `track_session` or `async with resume`: there the write is one transaction with the session,
    under its lease, and moves the session's `current_agent` and `progress`. A session that was ever
    claimed takes no others: what is not refused (its id was not known before the read) is never
    handed back by a resume.
    Safe to call again with the same fields.

    Args:
        data: the fields, by name; `help(AgentExecution)` lists them with their limits. execution_id
            is required, and agent_name when the id does not end in a known one. None means not
            given.
        more: the same as keywords.

    Raises:
        InvalidRequest: a field is unknown or has a wrong value; nothing was sent.
        InvalidTransition: the status may not become the given one.
        LeaseHeld: the session was claimed, and this call carries no lease of it.
        LeaseLost: the lease that the call carries is over; nothing was changed.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    kept = AgentExecution.get_attributes()
    values = await checked_payload(
        client,
        (data, more),
        lambda: validation.checked(data, more, RULES, "execution_id", kept=kept),
    )
    execution_id, agent_name, project_id = execution_key(
        values.pop("execution_id"), values.pop("agent_name", None), client.settings.agents
    )
    key = execution_id, agent_name
    session_id = values.get("project_id", project_id)
    session: PipelineSession | None = None
    if current_lease(client, session_id):
        seen = await client.executions.get(*key)
    else:
        seen, session = await _read_with_session(client, *key, session_id)
    values.setdefault("project_id", (seen and seen.project_id) or project_id)
    lease = current_lease(client, values["project_id"])
    if session is not None and session.session_id == values["project_id"] and not lease:
        _check_never_claimed(session)
    written = await write_execution(client, *key, values, seen, lease)
    if lease is not None:
        written = await _read_execution(client, *key)
    return await _with_payloads(client, written)


async def write_execution(
    client: Client,
    execution_id: str,
    agent_name: str,
    values: Mapping[str, Any],
    seen: AgentExecution | None,
    lease: Lease | None,
    seconds: float | None = None,
    *,
    alone: bool = False,
    retry_seconds: float | None = None,
    usage: Usage = NOTHING,
) -> AgentExecution:
    """Write fields of an execution as last seen, with its session where there is a lease.

    Where others wrote it in between, the change is decided again from what they wrote. Where the
    reply of this call's own write was lost, the token in the attempt that it began or ended
    recognises it, and what others wrote since stays. An attempt that ends is counted in the
    metrics, with its `seconds` where they are given. `alone` writes it without its session, which
    this claim has ended. Tried for `retry_seconds`, or as long as an owner's writes are. The same
    write adds `usage`, once.

    Returns:
        The execution; under a lease without inline payloads, since transactions return nothing.

    Raises:
        InvalidTransition: the status may not become the given one.
        LeaseHeld: the execution was written under a lease, and there is none.
        LeaseLost: the lease is over; nothing was changed.
        Conflict: others wrote the execution again and again.
    """
    token = uuid.uuid4().hex[:16]
    seen = _same_item(seen, execution_id)
    values = await _with_expiry(client, values, seen, lease)
    values = await _with_chunks_written(client, execution_id, agent_name, values, seen, lease)
    fence = lease.fence if lease else None
    for _ in range(_TRIES):
        change = change_of(seen, execution_id, values, fence, client.now(), token)
        actions = [*actions_of(seen, change), *usage.added_to_execution()]
        condition = seen_condition(seen)
        written = stored_after(seen, execution_id, agent_name, change)
        try:
            if lease is None or alone:
                written = await client.executions.update(
                    execution_id, agent_name, actions=actions, condition=condition
                )
            else:
                part = client.executions.requests.update_part(
                    execution_id, agent_name, actions=actions, condition=condition
                )
                if change.counts_as_ended is False or not _OUTPUT.isdisjoint(values):
                    lease.outputs.pop(agent_name, None)  # read again when it is asked for
                await leased_execution(
                    client,
                    lease,
                    agent_name,
                    part,
                    ended=change.counts_as_ended,
                    retry_seconds=retry_seconds,
                    adds=usage.added_to_session(),
                )
        except ConditionFailed as refused:
            stored = client.executions.refused(refused.item)
            if not _is_written_with(stored, token):
                if lease is not None and alone:  # a later owner's work stays
                    raise lease_lost_error(lease) from None
                seen = stored
                continue
            written = stored or written
            if lease is not None:
                lease.ended_agents = lease.ended_after(agent_name, change.counts_as_ended)
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


def _same_item(seen: AgentExecution | None, execution_id: str) -> AgentExecution | None:
    """Return what was seen of an execution, or None where the agent ran under another id."""
    return seen if seen is not None and seen.execution_id == execution_id else None


def _is_written_with(stored: AgentExecution | None, token: str) -> bool:
    """Return whether the write of a token is in what is stored, whatever came after it."""
    return stored is not None and (
        stored.write_token == token or began_or_ended_with(stored, token)
    )


async def _read_with_session(
    client: Client, execution_id: str, agent_name: str, session_id: str
) -> tuple[AgentExecution | None, PipelineSession | None]:
    """Return an execution and its session, by one request."""
    execution, session = await client.sender.transact_get(
        [
            client.executions.requests.get_part(execution_id, agent_name),
            client.sessions.requests.get_part(session_id),
        ]
    )
    return client.executions.live(execution), client.sessions.live(session)


def _check_never_claimed(session: PipelineSession) -> None:
    if session.fence is not None:
        raise LeaseHeld(
            f"session {session.session_id} was claimed (claim {int(session.fence)}); executions "
            "of it are written inside its track_session or resume only"
        )


async def _with_expiry(
    client: Client, values: Mapping[str, Any], seen: AgentExecution | None, lease: Lease | None
) -> Mapping[str, Any]:
    """Return the fields with when the execution expires, if it does."""
    expires_at = await _expires_at(client, values["project_id"], seen, lease)
    return values if expires_at is None else {**values, "expires_at": expires_at}


async def _expires_at(
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


async def _with_chunks_written(
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
        if text is not None and chunks.is_large(text):
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


async def checked_payload(client: Client, payload: Any, check: Callable[[], T]) -> T:
    """Return the result of a check that encodes a payload: in a thread if that takes long."""

    def work() -> T:
        with settings.use(client.settings):
            return check()

    return work() if json_form.is_small(payload) else await client.compute(work)


async def read_payload(client: Client, execution: AgentExecution, field: str) -> Any:
    """Return the input or the output of an execution, read from its chunks where it is large.

    Raises:
        PayloadDamaged: chunks are missing or were changed.
    """
    envelope = getattr(execution, PAYLOADS[field])
    if envelope is None:
        return getattr(execution, field)
    return await chunks.read(client, execution.execution_id, envelope)


async def _read_execution(client: Client, execution_id: str, agent_name: str) -> AgentExecution:
    execution = await client.executions.get(execution_id, agent_name)
    if execution is None:
        raise _missing(execution_id, agent_name)
    return execution


def _missing(execution_id: str, agent_name: str) -> NotFound:
    return NotFound(f"there is no execution {execution_id} of {agent_name}")


async def get_agent_execution(
    client: Client,
    execution_id: str,
    agent_name: str | None = None,
    *,
    user_id: str | None = None,
) -> Execution:
    """Return one execution with its payloads and its last 20 attempts, read consistently.

    Args:
        execution_id: the execution.
        agent_name: its agent; not needed where the id ends in a known one.
        user_id: only if its session is this user's, which costs one more GetItem.

    Raises:
        NotFound: there is none, or its session is not the given user's.
        InvalidRequest: no agent's name is given, and the id ends in no known one.
    """
    execution_id, agent_name, project_id = execution_key(
        execution_id, agent_name, client.settings.agents
    )
    if user_id is not None:
        SESSION_RULES["user_id"]("user_id", user_id)
    execution = await _read_execution(client, execution_id, agent_name)
    if user_id is not None:
        try:
            await _check_reader(client, execution.project_id or project_id, user_id)
        except NotFound:
            raise _missing(execution_id, agent_name) from None
    return await _with_payloads(client, execution)


async def _check_reader(client: Client, session_id: str, user_id: str) -> None:
    """Raise NotFound if there is no session of this id and user."""
    visible_to(await client.sessions.get(session_id), session_id, user_id)


async def _with_payloads(client: Client, execution: AgentExecution) -> Execution:
    jobs = [partial(read_payload, client, execution, field) for field in PAYLOADS]
    values = await client.gather(jobs, len(jobs))
    return replace(execution_result(execution), **dict(zip(PAYLOADS, values, strict=True)))


async def get_agent_executions(
    client: Client,
    project_id: str,
    *,
    user_id: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Execution]:
    """Return a page of the executions of one project, by start time, oldest first.

    One Query on project-index, eventually consistent: a change shows after a moment. Without
    payloads and attempts: read those with `get_agent_execution`.

    Args:
        project_id: the project, which is the session's id.
        user_id: only if the session is this user's, which costs one GetItem.
        limit: 1..1000 executions.
        cursor: of the page before.

    Raises:
        NotFound: there is no session of this user under that id.
        InvalidRequest: limit out of range, or a cursor of another query.
    """
    RULES["project_id"]("project_id", project_id)
    validation.LIMIT("limit", limit)
    query = ("get_agent_executions", client.executions.name, project_id)
    start = cursors.decode(query, cursor)
    if user_id is not None:
        SESSION_RULES["user_id"]("user_id", user_id)
        await _check_reader(client, project_id, user_id)
    executions, last = await client.executions.page(
        project_id, index=AgentExecution.project_index, limit=limit, start=start, unreadable=[]
    )
    return Page(map(execution_result, executions), cursors.encode(query, last) if last else None)


def execution_result(execution: AgentExecution) -> Execution:
    """Return the frozen result of one execution, its attempts in order."""
    names = [name for name in Execution.__dataclass_fields__ if name != "attempts"]
    known = Attempt.__dataclass_fields__
    attempts = [
        attempt
        for attempt in (execution.attempts or {}).values()
        if {"number", "status"} <= attempt.keys()  # of another program, it may lack them
    ]
    attempts.sort(key=lambda attempt: attempt["number"])
    return Execution(
        **{name: getattr(execution, name) for name in names},
        attempts=tuple(
            Attempt(**{name: value for name, value in attempt.items() if name in known})
            for attempt in attempts
        ),
    )
