"""Write an execution as it was seen, with its session where there is a lease."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from tdev_models.dynamodb.client import Client
from tdev_models.errors import ConditionFailed, Conflict
from tdev_models.metrics.automatic import run_ended
from tdev_models.models import AgentExecution
from tdev_models.results import ExecutionStatus
from tdev_models.retry import CONTENDED_TRIES, Turns
from tdev_models.services.execution_states import (
    FORMS,
    actions_of,
    began_or_ended_with,
    change_of,
    seen_condition,
    stored_after,
)
from tdev_models.services.failed_attempts import NO_ERROR, failed_attempt, with_message
from tdev_models.services.payloads import stored_forms
from tdev_models.services.usage import NOTHING, Usage
from tdev_models.workers.lease import Lease
from tdev_models.workers.leased_writes import execution_after_end, leased_execution


async def write_execution(
    client: Client,
    execution_id: str,
    agent_name: str,
    values: Mapping[str, Any],
    seen: AgentExecution | None,
    lease: Lease | None,
    seconds: float | None = None,
    *,
    at: float | None = None,
    alone: bool = False,
    retry_seconds: float | None = None,
    usage: Usage = NOTHING,
    error: Mapping[str, str] = NO_ERROR,
) -> AgentExecution:
    """Write fields of an execution as last seen, with its session where there is a lease.

    Where others wrote it in between, the change is decided again from what they wrote. Where the
    reply of this call's own write was lost, the token in the attempt that it began or ended
    recognises it, and what others wrote since stays. An attempt that ends is counted in the
    metrics, with its `seconds` where they are given. What begins or ends with this write did so
    `at` that moment, else now: storing it takes longer. `alone`: this claim has ended the session,
    which stays as it is. Tried for `retry_seconds`, or as long as an owner's writes are. The same
    write adds `usage` to the execution and the session, once, and keeps an attempt that failed,
    with what `failed_attempts.facts_of` says of its `error`, as an item of its own.

    Returns:
        The execution; under a lease, or where it is FAILED, without inline payloads: transactions
        return nothing.

    Raises:
        InvalidTransition: the status may not become the given one.
        LeaseHeld: the execution was written under a lease, and there is none.
        LeaseLost: the lease is over; nothing was changed.
        Conflict: others wrote the execution again and again.
    """
    token = uuid.uuid4().hex[:16]
    seen = _same_item(seen, execution_id)
    values = _with_release(client, await _with_expiry(client, values, seen, lease))
    error = with_message(error, values)
    kms_seconds = _kms_seconds(client, lease, retry_seconds)
    values = await stored_forms(client, execution_id, agent_name, values, seen, lease, kms_seconds)
    fence = lease.fence if lease else None
    turns = Turns(client.sleep)
    while await turns.next():
        change = change_of(seen, execution_id, values, fence, at or client.now(), token)
        actions = [*actions_of(seen, change), *usage.added_to_execution()]
        condition = seen_condition(seen)
        written = stored_after(seen, execution_id, agent_name, change)
        try:
            failures = await failed_attempt(client, written, change, error, kms_seconds)
            part = client.executions.requests.update_part(
                execution_id, agent_name, actions=actions, condition=condition
            )
            adds = usage.added_to_session()
            if lease is not None and alone:
                await execution_after_end(client, lease, [part, *failures], retry_seconds, adds)
            elif lease is not None:
                if change.counts_as_ended is False or not FORMS["output_data"].isdisjoint(values):
                    lease.outputs.pop(agent_name, None)  # read again when it is asked for
                await leased_execution(
                    client,
                    lease,
                    agent_name,
                    part,
                    *failures,
                    ended=change.counts_as_ended,
                    retry_seconds=retry_seconds,
                    adds=adds,
                )
            elif failures:
                await client.sender.transact_write([part, *failures], uuid.uuid4().hex)
            else:
                written = await client.executions.update(
                    execution_id, agent_name, actions=actions, condition=condition
                )
        except ConditionFailed as refused:
            stored = client.executions.refused(refused.item)
            if not _is_written_with(stored, token):
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
    raise Conflict(f"execution {execution_id}: others wrote it {CONTENDED_TRIES} times in between")


def _kms_seconds(client: Client, lease: Lease | None, retry_seconds: float | None) -> float | None:
    """Return for how long KMS is tried: as long as the write is; None for that of settings."""
    owners = lease is not None and retry_seconds is None
    return client.settings.owner_retry_seconds if owners else retry_seconds


def _with_release(client: Client, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields with the release that writes them, where they change the status."""
    release = client.settings.release
    return {**values, "release": release} if release and "status" in values else values


def _same_item(seen: AgentExecution | None, execution_id: str) -> AgentExecution | None:
    """Return what was seen of an execution, or None where the agent ran under another id."""
    return seen if seen is not None and seen.execution_id == execution_id else None


def _is_written_with(stored: AgentExecution | None, token: str) -> bool:
    """Return whether the write of a token is in what is stored, whatever came after it."""
    return stored is not None and (
        stored.write_token == token or began_or_ended_with(stored, token)
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
