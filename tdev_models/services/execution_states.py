"""The state machine of one execution: what a write makes of the stored item, without I/O.

What a write does to the execution's attempts follows from the status that is stored and from the
status that the write gives::

    stored       no status    PENDING    RUNNING    COMPLETED          FAILED
    ---------    ---------    -------    -------    ---------------    ---------------
    no status    waits        waits      begins     begins and ends    begins and ends
    PENDING      waits        waits      begins     begins and ends    begins and ends
    RUNNING      stays        returns    stays      ends               ends
    COMPLETED    stays        refused    refused    stays              refused
    FAILED       stays        refused    begins     refused            stays
    any other    refused      refused    refused    refused            refused
    older        stays        waits      begins     begins and ends    begins and ends

- no status, stored: there is no item, or it was made without the services.
- older: some status, stored under an older claim of the session than that of the write, or under
  none. A new owner may run any agent again, so what came before is a former attempt.
- waits: the execution is PENDING. Attempts that it had are kept.
- stays: no attempt begins or ends; other fields may change.
- returns: the attempt is CANCELLED, and the execution PENDING again: its owner gives the work back.
  Refused without a claim.
- begins: a new attempt begins. What the former one left (output, error) is removed; if it never
  ended, its worker was killed or lost the session, and it is marked LOST.
- refused: InvalidTransition, for FAILED with the remedy that a retry begins with RUNNING.

A write without a claim to an execution that was written under one is refused before that, with
LeaseHeld.

Whether the pipeline may go on past the agent after the write::

    COMPLETED                        yes
    FAILED                           only if the agent is not critical
    PENDING, RUNNING                 no
    older, and no status is given    as before: the stored status may be outdated
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb.expressions import is_as_read, set_fields, set_to
from tdev_models.errors import InvalidTransition, LeaseHeld
from tdev_models.models import AgentExecution
from tdev_models.models.attributes import AttemptsAttribute
from tdev_models.results import ExecutionStatus
from tdev_models.security.fields import SUFFIX
from tdev_models.workers.lease import worker_name

KEPT_ATTEMPTS = 20
_ERROR_CHARACTERS = 500

PENDING, RUNNING = ExecutionStatus.PENDING, ExecutionStatus.RUNNING
COMPLETED, FAILED = ExecutionStatus.COMPLETED, ExecutionStatus.FAILED
_FINAL = (COMPLETED, FAILED)
CANCELLED = "CANCELLED"
"""The status of an attempt that its owner gave back; no failure of its agent."""
_LOST = "LOST"  # a status of attempts alone


class Step(Enum):
    """What a write does to the attempts of an execution; the words of the table above."""

    WAITS = "waits"
    STAYS = "stays"
    BEGINS = "begins"
    ENDS = "ends"
    RETURNS = "returns"
    WHOLE = "begins and ends"
    REFUSED = "refused"

    @property
    def begins(self) -> bool:
        """Whether a new attempt begins."""
        return self in (Step.BEGINS, Step.WHOLE)

    @property
    def ends(self) -> bool:
        """Whether the attempt ends."""
        return self in (Step.ENDS, Step.WHOLE)


_WAITS, _STAYS, _BEGINS, _ENDS, _RETURNS, _WHOLE, _REFUSED = Step

# fmt: off
_GIVEN =     (None,     PENDING,  RUNNING,  COMPLETED, FAILED)
_STEPS: Mapping[str | None, tuple[Step, ...]] = {
    None:      (_WAITS, _WAITS,   _BEGINS,  _WHOLE,    _WHOLE),
    PENDING:   (_WAITS, _WAITS,   _BEGINS,  _WHOLE,    _WHOLE),
    RUNNING:   (_STAYS, _RETURNS, _STAYS,   _ENDS,     _ENDS),
    COMPLETED: (_STAYS, _REFUSED, _REFUSED, _STAYS,    _REFUSED),
    FAILED:    (_STAYS, _REFUSED, _BEGINS,  _REFUSED,  _STAYS),
}
_OLDER =       (_STAYS, _WAITS,   _BEGINS,  _WHOLE,    _WHOLE)
# fmt: on
_OTHER = (_REFUSED,) * len(_GIVEN)

PAYLOADS = {"input_data": "input_ref", "output_data": "output_ref"}
"""The payload fields, and the attributes that hold the envelope of a large one instead."""

FORMS = {
    field: frozenset(f"{name}{end}" for name in (field, reference) for end in ("", SUFFIX))
    for field, reference in PAYLOADS.items()
}
"""The attributes of which one holds a payload: itself or an envelope, in clear or encrypted."""

ERROR_FORMS = frozenset({"error_message", f"error_message{SUFFIX}"})

# What a new attempt does not take over from the one before.
_OF_ONE_ATTEMPT = {"critical"} | ERROR_FORMS | FORMS["output_data"]


_ABSENT = AgentExecution()


@dataclass(frozen=True, slots=True)
class Transition:
    """What happens to an execution.

    Attributes:
        step: what happens to its attempts.
        status: its status from then on.
        is_outdated: the status is still that of an older claim.
    """

    step: Step
    status: str
    is_outdated: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What one write changes.

    Attributes:
        sets: the attributes to set, by name; payloads are JSON text.
        removes: the names of the attributes to remove.
        attempt: the attempt as it is to be stored; None while the execution is PENDING.
        lost: the attempt before it, as it is to be stored, if it never ended; else None.
        ends: the attempt ends with this write.
        counts_as_ended: the pipeline may go on past this agent; None leaves it as it was.
        retried: the attempt came after one that had ended.
    """

    sets: Mapping[str, Any] = field(repr=False)
    removes: frozenset[str]
    attempt: Mapping[str, Any] | None = field(repr=False)
    lost: Mapping[str, Any] | None = field(repr=False)
    ends: bool
    counts_as_ended: bool | None
    retried: bool


def step_of(stored: str | None, given: str | None, *, older: bool) -> Step:
    """Return the table's entry for a stored and a given status; `older` chooses its last row."""
    row = _OLDER if older and stored is not None else _STEPS.get(stored, _OTHER)
    return row[_GIVEN.index(given)]


def counts_as_ended(status: str | None, critical: bool | None) -> bool:
    """Return whether a pipeline may go on past an agent whose execution is like this."""
    return status == COMPLETED or (status == FAILED and critical is False)


def _transition(
    stored: AgentExecution, execution_id: str, given: str | None, fence: int | None
) -> Transition:
    """Return what happens to a stored execution that is given a status; raise if refused."""
    if fence is None and stored.fence is not None:
        raise LeaseHeld(
            f"execution {execution_id} was written under claim {int(stored.fence)} of its session; "
            "call inside track_session or resume"
        )
    older = fence is not None and (stored.fence or 0) < fence and stored.status is not None
    status = given or stored.status or PENDING
    step = step_of(stored.status, given, older=older)
    if step is Step.REFUSED or (step is Step.RETURNS and fence is None):
        remedy = "a retry begins with RUNNING" if stored.status == FAILED else ""
        raise InvalidTransition(f"execution {execution_id}", stored.status, status, remedy)
    return Transition(step, status, older and given is None)


def change_of(
    seen: AgentExecution | None,
    execution_id: str,
    values: Mapping[str, Any],
    fence: int | None,
    now: float,
    token: str,
) -> Change:
    """Return what a write changes in an execution as it was seen.

    Args:
        seen: the stored execution; None where there is none.
        execution_id: names it in errors.
        values: the checked fields that the write gives.
        fence: the number of the claim under which it is written; None without one.
        now: the time of the write.
        token: tells this write from all others.

    Raises:
        InvalidTransition: the status may not become the given one.
        LeaseHeld: the execution was written under a claim, and `fence` is None.
    """
    stored = _ABSENT if seen is None else seen
    transition = _transition(stored, execution_id, values.get("status"), fence)
    step, status = transition.step, transition.status
    number = _attempt_number(stored, step)
    sets = {**values, "status": status, "write_token": token}
    sets |= _new_times(stored, status, step, now)
    if step.begins or stored.retry_count is None:
        sets["retry_count"] = number - 1
    if fence is not None and (seen is None or "status" in values):
        sets["fence"] = fence
    waits = status == PENDING and step is not Step.RETURNS
    critical = values.get("critical", None if step.begins else stored.critical)
    before = _kept_attempt(stored, number - 1)
    return Change(
        sets,
        frozenset() if seen is None else _outdated(seen, values, status, step),
        None if waits else _attempt(stored, sets, number, step, now),
        {**before, "status": _LOST} if step.begins and _was_cut_off(before) else None,
        ends="end_time" in sets,
        counts_as_ended=None if transition.is_outdated else counts_as_ended(status, critical),
        retried=_has_ended(before) and before["status"] != CANCELLED,
    )


def _attempt_number(stored: AgentExecution, step: Step) -> int:
    """Return the number of the attempt that a write belongs to, from 1."""
    was_tried = stored.attempts is not None or stored.status not in (None, PENDING)
    return int(stored.retry_count or 0) + 1 + (step.begins and was_tried)


def _new_times(
    stored: AgentExecution, status: str, step: Step, now: float
) -> dict[str, float | None]:
    """Return the start and the end of the attempt, where they change."""
    times: dict[str, float | None] = {}
    if step.begins or stored.start_time is None:
        times["start_time"] = now
    # An execution that the services did not write may be in a final status without an end.
    if step.ends or (status in _FINAL and stored.end_time is None):
        times["end_time"] = now
    if status == FAILED and (step.ends or stored.failed_at is None):
        times["failed_at"] = times.get("end_time", stored.end_time)
    return times


def _outdated(
    seen: AgentExecution, values: Mapping[str, Any], status: str, step: Step
) -> frozenset[str]:
    """Return the attributes that do not hold any more after the write."""
    names = set[str]()
    for forms in (*FORMS.values(), ERROR_FORMS):
        if not forms.isdisjoint(values):
            names |= forms
    if step.begins:
        names |= _OF_ONE_ATTEMPT
    if status not in _FINAL:
        names.add("end_time")
    if status != FAILED and seen.failed_at is not None:
        names.add("failed_at")
    return frozenset(names - values.keys())


def _attempt(
    stored: AgentExecution, sets: Mapping[str, Any], number: int, step: Step, now: float
) -> dict[str, Any]:
    """Return the attempt as it is to be stored, once the other attributes are set."""
    former = _ABSENT if step.begins else stored  # what this attempt has left so far
    kept, token = _kept_attempt(former, number), sets["write_token"]
    error = sets.get("error_message") or former.error_message
    returned = step is Step.RETURNS
    return {
        "number": number,
        "status": CANCELLED if returned else str(sets["status"]),
        "start_time": sets.get("start_time", stored.start_time),
        "end_time": now if returned else sets.get("end_time", former.end_time),
        "error_message": error and _cut(error),
        "worker": worker_name(),
        "begin_token": token if step.begins else kept.get("begin_token"),
        "end_token": token if returned or "end_time" in sets else kept.get("end_token"),
    }


def _cut(error: str) -> str:
    return error if len(error) <= _ERROR_CHARACTERS else f"{error[: _ERROR_CHARACTERS - 1]}…"


def _kept_attempt(execution: AgentExecution, number: int) -> Mapping[str, Any]:
    return (execution.attempts or {}).get(_slot(number), {})


def _has_ended(attempt: Mapping[str, Any]) -> bool:
    return attempt.get("end_time") is not None


def _was_cut_off(attempt: Mapping[str, Any]) -> bool:
    return bool(attempt) and not _has_ended(attempt)


def _slot(number: int) -> str:
    return str(number % KEPT_ATTEMPTS)


def stored_after(
    seen: AgentExecution | None, execution_id: str, agent_name: str, change: Change
) -> AgentExecution:
    """Return an execution as a change leaves it, without inline payloads."""
    values = {} if seen is None else dict(seen.attribute_values)
    for name in change.removes:
        values.pop(name, None)
    values |= {"execution_id": execution_id, "agent_name": agent_name, **change.sets}
    for name in PAYLOADS:
        values.pop(name, None)
        values.pop(f"{name}{SUFFIX}", None)
    if change.attempt is not None:
        slot = _slot(change.attempt["number"])
        values["attempts"] = {**(values.get("attempts") or {}), slot: dict(change.attempt)}
    return AgentExecution.having(values)


def actions_of(seen: AgentExecution | None, change: Change) -> list[Action]:
    """Return the update actions that make a change of an execution as it was seen."""
    attributes = AgentExecution.get_attributes()
    actions = set_fields(AgentExecution, change.sets)
    actions += [attributes[name].remove() for name in sorted(change.removes)]
    for attempt in filter(None, (change.lost, change.attempt)):
        slot = _slot(attempt["number"])
        if seen is None or seen.attempts is None:
            actions.append(set_to(AgentExecution.attempts, {slot: attempt}))
        else:
            entry = AttemptsAttribute.entry(attempt)
            actions.append(AgentExecution.attempts[slot].set(entry))
    return actions


def began_or_ended_with(execution: AgentExecution, token: str) -> bool:
    """Return whether an attempt began or ended with the write of a token, whatever came after."""
    attempts = (execution.attempts or {}).values()
    return any(token in (entry.get("begin_token"), entry.get("end_token")) for entry in attempts)


def seen_condition(seen: AgentExecution | None) -> Condition:
    """Return the condition that an execution is as it was seen."""
    if seen is None:
        return AgentExecution.execution_id.does_not_exist()
    same: Condition = is_as_read(AgentExecution.write_token, seen.write_token)
    same &= is_as_read(AgentExecution.status, seen.status)
    return same
