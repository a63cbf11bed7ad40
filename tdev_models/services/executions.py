"""Agent executions: what each agent did in each run, attempt by attempt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import NOT_DECRYPTED, is_plain, shown_field
from tdev_models.errors import (
    InvalidRequest,
    ItemTooLarge,
    LeaseHeld,
    NotFound,
    StoreError,
    Throttled,
    shown,
)
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.models.execution import agent_of
from tdev_models.results import AGENTS, Attempt, Execution, ExecutionStatus, Page
from tdev_models.services.execution_states import PAYLOADS
from tdev_models.services.execution_writes import write_execution
from tdev_models.services.payloads import checked_payload, shown_payload, stands_in_item
from tdev_models.workers.bindings import after_beginnings, current_lease
from tdev_models.workers.lease import Lease
from tdev_models.workers.users import visible_to

RULES, SESSION_RULES = AgentExecution.rules(), PipelineSession.rules()

_KEYS, _FEWER_KEYS = 100, 10  # of one TransactGetItems
_AT_ONCE = 10


def execution_key(
    execution_id: str, agent_name: str | None = None, agents: Sequence[str] = AGENTS
) -> tuple[str, str, str]:
    """Return execution id, agent name and project id of a `{project_id}-{agent_name}` id.

    The project may hold dashes. An id of another form is its own project's. Without a name it is
    the one of the `agents` in which the id ends.

    Raises:
        InvalidRequest: no agent's name is given, and the id ends in no known one.
    """
    execution_id = RULES["execution_id"]("execution_id", execution_id)
    if agent_name is None:
        known = [name for name in agents if execution_id.endswith(f"-{name}")]
        agent_name = max(known, key=len, default=None)
        if agent_name is None:
            raise InvalidRequest(
                "agent_name",
                f"{shown(execution_id)} ends in no known agent; give agent_name, or end the id in "
                f"-{{agent}} with one of {', '.join(agents)} (the setting agents)",
            )
    agent_name = RULES["agent_name"]("agent_name", agent_name)
    project_id = execution_id.removesuffix(f"-{agent_of(agent_name)}")
    return execution_id, agent_name, project_id or execution_id


async def update_agent_execution(
    client: Client, data: Mapping[str, Any] | None = None, /, **more: Any
) -> Execution:
    """Create an execution or change the given fields of one, and return it as it is now.

    One read and one conditional UpdateItem; a failure is a transaction, with the item that keeps
    it, and is read again. Start and end times, `retry_count` and `attempts` follow from the status:
    RUNNING after FAILED is a new attempt, the same status again is none.
    A new execution is PENDING unless given otherwise. The session is never touched, except inside
    `track_session` or `async with resume`: there the write is one transaction with the session,
    under its lease, then read again, and moves the session's `current_agent` and `progress`. A
    session that was ever claimed takes no others: what is not refused (its id was not known before
    the read) is never handed back by a resume.
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
        Conflict, Throttled, Unavailable: after all retries; safe to call again.
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
    if lease := current_lease(client, session_id):
        await after_beginnings(client, lease)
        seen = await client.executions.get(*key)
    else:
        seen, session = await _read_with_session(client, *key, session_id)
    values.setdefault("project_id", (seen and seen.project_id) or project_id)
    lease = current_lease(client, values["project_id"])
    if session is not None and session.session_id == values["project_id"] and not lease:
        _check_never_claimed(session)
    written = await write_execution(client, *key, values, seen, lease)
    if lease is not None or written.status == ExecutionStatus.FAILED:
        written = await _read_execution(client, *key)
    result = await _with_payloads(client, written)
    if lease is not None:
        _note_end(lease, agent_name, values, written)
    if lease is not None and result.status == ExecutionStatus.COMPLETED:
        lease.outputs[agent_name] = result.output_data
    return result


def _note_end(
    lease: Lease, agent_name: str, values: Mapping[str, Any], written: AgentExecution
) -> None:
    """Let a session end as what calls inside its block have made of an agent, too."""
    lease.executions[agent_name] = written
    if values.get("status") == ExecutionStatus.COMPLETED or written.critical is False:
        lease.note_end(agent_name, None)
    elif values.get("status") == ExecutionStatus.FAILED:
        before = lease.failures.get(agent_name, "FAILED by update_agent_execution")
        lease.note_end(agent_name, values.get("error_message", before))


async def _read_with_session(
    client: Client, execution_id: str, agent_name: str, session_id: str
) -> tuple[AgentExecution | None, PipelineSession | None]:
    """Return an execution and its session, by one request."""
    execution, session = await client.sender.transact_get(
        [
            *client.executions.requests.get_parts([(execution_id, agent_name)]),
            *client.sessions.requests.get_parts([(session_id,)]),
        ]
    )
    return client.executions.live(execution), client.sessions.live(session)


def _check_never_claimed(session: PipelineSession) -> None:
    if session.fence is not None:
        raise LeaseHeld(
            f"session {session.session_id} was claimed (claim {int(session.fence)}); executions "
            "of it are written inside its track_session or resume only"
        )


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
        PayloadDamaged: it, or a payload, cannot be read.
    """
    execution_id, agent_name, project_id = execution_key(
        execution_id, agent_name, client.settings.agents
    )
    if user_id is not None:
        SESSION_RULES["user_id"]("user_id", user_id)
    await after_beginnings(client, current_lease(client, project_id), writes=False)
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
    """Return one execution with its payloads, and what is encrypted of it."""
    result = execution_result(execution)
    fields = [field for field in PAYLOADS if not stands_in_item(client, execution, field)]
    jobs = [partial(shown_payload, client, execution, field) for field in fields]
    values = await client.gather(jobs, len(jobs)) if jobs else []
    changes = dict(zip(fields, values, strict=True))
    if not is_plain(client, execution, "error_message"):
        message = await shown_field(client, execution, "error_message")
        attempts = _with_message(result, message)
        changes |= {"error_message": message, "attempts": attempts}
    return replace(result, **changes) if changes else result


def _with_message(execution: Execution, message: str | None) -> tuple[Attempt, ...]:
    """Return the attempts, the last one with why it failed: an encrypted text stands once."""
    *former, last = execution.attempts or (None,)
    if last is None or last.status != ExecutionStatus.FAILED or message is None:
        return execution.attempts
    return (*former, replace(last, error_message=message))


async def get_agent_executions(
    client: Client,
    project_id: str,
    *,
    user_id: str | None = None,
    attempts: bool = False,
    limit: int = 100,
    cursor: str | None = None,
) -> Page[Execution]:
    """Return a page of the executions of one project, by start time, oldest first.

    One Query on project-index, eventually consistent: a change shows after a moment. Without
    payloads: read those with `get_agent_execution`.

    Args:
        project_id: the project, which is the session's id.
        user_id: only if the session is this user's, which costs one GetItem.
        attempts: True: with their attempts, and as they are: one TransactGetItems for each 100.
        limit: 1..1000 executions.
        cursor: of the page before.

    Raises:
        NotFound: there is no session of this user under that id.
        InvalidRequest: limit out of range, or a cursor of another query.
    """
    RULES["project_id"]("project_id", project_id)
    validation.LIMIT("limit", limit)
    validation.flag("attempts", attempts)
    query = ("get_agent_executions", client.executions.name, project_id)
    index = AgentExecution.project_index
    start = cursors.decode(query, cursor, client.executions.is_start(project_id, index))
    if user_id is not None:
        SESSION_RULES["user_id"]("user_id", user_id)
        await _check_reader(client, project_id, user_id)
    await after_beginnings(client, current_lease(client, project_id), writes=False)
    executions, last = await client.executions.page(
        project_id, index=index, limit=limit, start=start, unreadable=[]
    )
    if attempts:
        keys = [(one.execution_id, one.agent_name) for one in executions]
        stored = await read_many(client, keys)
        executions = [one for one in stored if one is not None]
        for one in executions:
            one.input_data = one.output_data = None  # as lists show it
    return Page(map(execution_result, executions), cursors.encode(query, last) if last else None)


async def read_many(client: Client, keys: Sequence[tuple[str, str]]) -> list[AgentExecution | None]:
    """Return executions as they are, in the order of their keys; None where one cannot be read.

    TransactGetItems of 100; of 10 where those hold more than the 4 MB that one may read, which
    takes items of other programs, or are more than the table's capacity lets through at once.
    """
    unreadable: list[str] = []

    async def read(some: Sequence[tuple[str, str]]) -> list[AgentExecution | None]:
        return await client.executions.get_many(some, unreadable=unreadable)

    def batches(size: int) -> list[Callable[[], Awaitable[list[AgentExecution | None]]]]:
        return [partial(read, keys[at : at + size]) for at in range(0, len(keys), size)]

    try:
        found = await client.gather(batches(_KEYS), _AT_ONCE)
    except (ItemTooLarge, StoreError, Throttled):
        found = await client.gather(batches(_FEWER_KEYS), _AT_ONCE)
    return [item for batch in found for item in batch]


def execution_result(execution: AgentExecution) -> Execution:
    """Return the frozen result of one execution, its attempts in order."""
    known = Attempt.__dataclass_fields__
    attempts = [
        attempt
        for attempt in (execution.attempts or {}).values()
        if {"number", "status"} <= attempt.keys()  # of another program, it may lack them
    ]
    attempts.sort(key=lambda attempt: attempt["number"])
    tries = tuple(
        Attempt(**{name: value for name, value in attempt.items() if name in known})
        for attempt in attempts
    )
    values = {**execution.attribute_values, "attempts": tries}
    if execution.error_message_encrypted is not None:
        values["error_message"] = NOT_DECRYPTED
    return Execution.of(values)
