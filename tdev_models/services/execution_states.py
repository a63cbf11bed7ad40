"""The state machine of one execution: which change a write makes, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb.expressions import is_as_read, set_fields, set_to
from tdev_models.errors import InvalidTransition, LeaseHeld
from tdev_models.models import AgentExecution
from tdev_models.models.attributes import AttemptsAttribute
from tdev_models.results import ExecutionStatus
from tdev_models.workers.lease import Lease, worker_name

KEPT_ATTEMPTS = 20
_ERROR_CHARACTERS = 500

PENDING, RUNNING = ExecutionStatus.PENDING, ExecutionStatus.RUNNING
COMPLETED, FAILED = ExecutionStatus.COMPLETED, ExecutionStatus.FAILED

# The same status again is no error. COMPLETED or FAILED at once is a whole attempt.
_NEXT: Mapping[str | None, tuple[ExecutionStatus, ...]] = {
    None: (PENDING, RUNNING, COMPLETED, FAILED),
    PENDING: (PENDING, RUNNING, COMPLETED, FAILED),
    RUNNING: (RUNNING, COMPLETED, FAILED),
    COMPLETED: (COMPLETED,),
    FAILED: (FAILED, RUNNING),
}

PAYLOADS = {"input_data": "input_ref", "output_data": "output_ref"}
"""The payload fields, and the attributes that hold the envelope of a large one instead."""

# What a new attempt does not take over from the one before.
_OF_ONE_ATTEMPT = ("error_message", "output_data", "output_ref", "critical")


@dataclass(frozen=True, slots=True)
class Change:
    """What one write does.

    Attributes:
        ends: the attempt ends with it.
        ended: the pipeline goes on past this agent; None leaves it as it was.
        retried: the attempt came after one that had ended.
    """

    actions: list[Action]
    ends: bool
    ended: bool | None
    retried: bool


def change_of(
    seen: AgentExecution | None,
    execution_id: str,
    values: Mapping[str, Any],
    lease: Lease | None,
    now: float,
    token: str,
) -> Change:
    """Return the change that makes an execution, as it was seen, what the fields say.

    Raises:
        InvalidTransition: the status may not become the given one.
        LeaseHeld: the execution was written under a lease, and there is none.
    """
    before = seen.status if seen else None
    fence = seen.fence if seen else None
    if lease is None and fence is not None:
        raise LeaseHeld(
            f"execution {execution_id} was written under claim {int(fence)} of its session; "
            "call inside track_session or resume"
        )
    # A new owner may do any agent again: what a former one wrote is a former attempt.
    taken_over = lease is not None and (fence or 0) < lease.fence and before is not None
    status = ExecutionStatus(values.get("status") or before or PENDING)
    if not taken_over and status not in _NEXT.get(before, ()):
        remedy = "a retry begins with RUNNING" if before == FAILED else ""
        raise InvalidTransition(f"execution {execution_id}", before, status, remedy)

    tried = seen is not None and (seen.attempts is not None or before not in (None, PENDING))
    begins = status != PENDING and (
        before in (None, PENDING)
        or (before == FAILED and status == RUNNING)
        or (taken_over and "status" in values)
    )
    number = int((seen.retry_count if seen else None) or 0) + 1 + (begins and tried)
    actions = set_fields(AgentExecution, values)
    if "status" not in values:
        actions.append(set_to(AgentExecution.status, status))
    if lease is not None and (begins or "status" in values or seen is None):
        actions.append(set_to(AgentExecution.fence, lease.fence))
    if begins or seen is None or seen.retry_count is None:
        actions.append(set_to(AgentExecution.retry_count, number - 1))
    start, end, removed = _times(seen, status, begins, now)
    if seen is None or start != seen.start_time:
        actions.append(set_to(AgentExecution.start_time, start))
    if end is not None:
        actions.append(set_to(AgentExecution.end_time, end))
    outdated = {reference for name, reference in PAYLOADS.items() if name in values}
    outdated |= {name for name, reference in PAYLOADS.items() if reference in values}
    outdated |= set(_OF_ONE_ATTEMPT if begins else ())
    attributes = AgentExecution.get_attributes()
    removed += [attributes[name] for name in sorted(outdated - values.keys())]
    if seen is not None:
        actions += [attribute.remove() for attribute in removed]
    if status != PENDING:
        former = seen if seen and not begins else AgentExecution()  # what this attempt wrote
        error = values.get("error_message") or former.error_message
        entry = (former.attempts or {}).get(_slot(number), {})
        attempt = {
            "number": number,
            "status": str(status),
            "start_time": start,
            "end_time": end or former.end_time,
            "error_message": error and error[:_ERROR_CHARACTERS],
            "worker": worker_name(),
            "begin_token": token if begins else entry.get("begin_token"),
            "end_token": token if end is not None else entry.get("end_token"),
        }
        actions.append(_put_attempt(seen, number, attempt))
    actions.append(set_to(AgentExecution.write_token, token))
    critical = values.get("critical", seen.critical if seen and not begins else None)
    ended: bool | None = status == COMPLETED or (status == FAILED and critical is False)
    if taken_over and "status" not in values:
        ended = None  # still a former claim's, which may be outdated
    former_end = ((seen and seen.attempts) or {}).get(_slot(number - 1), {}).get("end_time")
    return Change(actions, end is not None, ended, number > 1 and former_end is not None)


def _times(
    seen: AgentExecution | None, status: ExecutionStatus, begins: bool, now: float
) -> tuple[float, float | None, list[Any]]:
    """Return the start, the end to set if any, and the attributes to remove."""
    start = now if begins or seen is None or seen.start_time is None else seen.start_time
    if status in (COMPLETED, FAILED):
        ended_before = seen is not None and seen.end_time is not None and not begins
        return start, None if ended_before else now, []
    return start, None, [AgentExecution.end_time]


def _put_attempt(seen: AgentExecution | None, number: int, attempt: dict[str, Any]) -> Action:
    if seen is None or seen.attempts is None:
        return set_to(AgentExecution.attempts, {_slot(number): attempt})
    return AgentExecution.attempts[_slot(number)].set(AttemptsAttribute.entry(attempt))


def _slot(number: int) -> str:
    return str(number % KEPT_ATTEMPTS)


def is_own(execution: AgentExecution, token: str) -> bool:
    """Return whether an attempt began or ended with this write, whatever came after it."""
    attempts = (execution.attempts or {}).values()
    return any(token in (one.get("begin_token"), one.get("end_token")) for one in attempts)


def seen_condition(seen: AgentExecution | None) -> Condition:
    """Return the condition that an execution is as it was seen."""
    if seen is None:
        return AgentExecution.execution_id.does_not_exist()
    same: Condition = is_as_read(AgentExecution.write_token, seen.write_token)
    same &= is_as_read(AgentExecution.status, seen.status)
    return same
