"""The state machine of executions, without I/O."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tdev_models import AgentExecution, InvalidTransition, LeaseHeld
from tdev_models.services import execution_states
from tdev_models.services.execution_states import (
    KEPT_ATTEMPTS,
    Change,
    Step,
    began_or_ended_with,
    change_of,
    counts_as_ended,
    step_of,
)

NAME = "p-parser"
COLUMNS = (None, "PENDING", "RUNNING", "COMPLETED", "FAILED")
STORED = ("PENDING", "RUNNING", "COMPLETED", "FAILED")


def execution(status: str | None, **more: Any) -> AgentExecution:
    return AgentExecution(NAME, "parser", status=status, **more)


def change(
    seen: AgentExecution | None,
    *,
    fence: int | None = None,
    now: float = 9.0,
    token: str = "t",
    **values: Any,
) -> Change:
    return change_of(seen, NAME, values, fence, now, token)


def after(seen: AgentExecution | None, made: Change) -> AgentExecution:
    """Return the item that is stored after a change, as DynamoDB makes it."""
    item = execution(None) if seen is None else copy.deepcopy(seen)
    for name in made.removes:
        setattr(item, name, None)
    for name, value in made.sets.items():
        setattr(item, name, value)
    for attempt in filter(None, (made.lost, made.attempt)):
        slot = str(attempt["number"] % KEPT_ATTEMPTS)
        item.attempts = {**(item.attempts or {}), slot: dict(attempt)}
    return item


# -------------------------------------------------------------------------- the drawn table


def drawn() -> Iterator[tuple[str, str | None, str]]:
    """Yield row, given status and entry of the table in the module's docstring."""
    lines = iter((execution_states.__doc__ or "").splitlines())
    next(line for line in lines if line.strip().startswith("---------"))
    for line in lines:
        if not line.strip():
            return
        row, *entries = (word for word in line.strip().split("  ") if word)
        for given_status, entry in zip(COLUMNS, entries, strict=True):
            yield row, given_status, entry.strip()


def test_the_table_is_drawn_whole() -> None:
    assert [row for row, given_status, _ in drawn() if given_status is None] == [
        "no status",
        *STORED,
        "any other",
        "older",
    ]


@pytest.mark.parametrize(("row", "given_status", "entry"), [*drawn()])
def test_what_is_drawn_is_what_happens(row: str, given_status: str | None, entry: str) -> None:
    stored: dict[str, tuple[str | None, ...]] = {
        "no status": (None,),
        "any other": ("CANCELLED",),
        "older": (*STORED, "CANCELLED"),
    }
    for status in stored.get(row, (row,)):
        assert step_of(status, given_status, older=row == "older") == Step(entry)


def test_a_new_execution_has_no_older_claim() -> None:
    assert step_of(None, None, older=True) is Step.WAITS


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("stored", "given_status"),
    [
        ("RUNNING", "PENDING"),
        ("COMPLETED", "PENDING"),
        ("COMPLETED", "RUNNING"),
        ("COMPLETED", "FAILED"),
        ("CANCELLED", "RUNNING"),
    ],
)
def test_a_status_that_may_not_follow_is_refused(stored: str, given_status: str) -> None:
    with pytest.raises(
        InvalidTransition, match=f"^execution {NAME} is {stored} and cannot become {given_status}$"
    ):
        change(execution(stored), status=given_status)


@pytest.mark.parametrize("given_status", ["PENDING", "COMPLETED"])
def test_a_retry_that_does_not_begin_with_running_names_the_remedy(given_status: str) -> None:
    with pytest.raises(InvalidTransition, match=r"; a retry begins with RUNNING$"):
        change(execution("FAILED"), status=given_status)


@pytest.mark.parametrize("given_status", COLUMNS)
@pytest.mark.parametrize("stored", STORED)
def test_without_a_claim_nothing_is_written_over_what_a_claim_wrote(
    stored: str, given_status: str | None
) -> None:
    with pytest.raises(LeaseHeld, match="under claim 2 of its session; call inside track_session"):
        change_of(
            execution(stored, fence=2),
            NAME,
            {"status": given_status} if given_status else {},
            None,
            9.0,
            "t",
        )


@pytest.mark.parametrize("fence", [1, 2])
def test_only_a_newer_claim_may_run_a_completed_agent_again(fence: int) -> None:
    with pytest.raises(InvalidTransition):
        change(execution("COMPLETED", fence=2), fence=fence, status="RUNNING")
    assert change(execution("COMPLETED", fence=2), fence=3, status="RUNNING").attempt


# -------------------------------------------------------------------------- what a step changes


def test_a_new_execution_waits_unless_a_status_is_given() -> None:
    made = change(None, project_id="p")
    assert dict(made.sets) == {
        "project_id": "p",
        "status": "PENDING",
        "start_time": 9.0,
        "retry_count": 0,
        "write_token": "t",
    }
    assert (made.attempt, made.removes, made.ends) == (None, frozenset(), False)


def test_a_retry_is_a_new_attempt_that_takes_nothing_over() -> None:
    failed = after(None, change(None, status="FAILED", error_message="e", critical=False))
    made = change(failed, now=12.0, token="u", status="RUNNING")
    assert (made.sets["retry_count"], made.sets["start_time"]) == (1, 12.0)
    assert made.removes == {
        *("end_time", "failed_at", "error_message", "output_data", "output_ref", "critical"),
        *("error_message_encrypted", "output_data_encrypted", "output_ref_encrypted"),
    }
    assert made.retried
    assert made.attempt is not None
    assert (made.attempt["number"], made.attempt["begin_token"], made.attempt["end_token"]) == (
        2,
        "u",
        None,
    )
    assert made.attempt["error_message"] is None


def test_an_attempt_that_never_ended_is_lost_once_another_begins() -> None:
    running = after(None, change(None, fence=1, status="RUNNING"))
    for status in ("RUNNING", "COMPLETED"):
        made = change(running, fence=2, now=12.0, token="u", status=status)
        assert made.lost is not None
        assert (made.lost["number"], made.lost["status"], made.lost.get("end_time")) == (
            1,
            "LOST",
            None,
        )
        assert not made.retried
    assert change(running, fence=1, status="COMPLETED").lost is None
    assert change(running, fence=2, variant="b").lost is None


def test_a_failure_that_the_services_did_not_write_counts_as_an_attempt() -> None:
    assert change(execution("FAILED"), status="RUNNING").sets["retry_count"] == 1


def test_a_repeated_status_changes_neither_times_nor_attempts() -> None:
    for status in STORED:
        before = after(None, change(None, status=status))
        again = change(before, now=99.0, token="u", status=status)
        assert not {"start_time", "end_time", "retry_count"} & again.sets.keys()
        assert again.attempt == (before.attempts or {}).get("1")
        assert not again.ends


def test_an_end_knows_the_write_that_began_its_attempt_and_the_one_that_ended_it() -> None:
    running = after(None, change(None, token="begin", status="RUNNING"))
    ended = after(running, change(running, token="end", status="COMPLETED"))
    touched = after(ended, change(ended, token="touch", variant="b"))
    assert began_or_ended_with(touched, "begin")
    assert began_or_ended_with(touched, "end")
    assert not began_or_ended_with(touched, "touch")


def test_a_final_status_that_the_services_did_not_write_gets_its_end() -> None:
    made = change(execution("FAILED"), variant="b")
    assert (made.sets["end_time"], made.ends) == (9.0, True)


def test_an_end_is_that_of_the_attempt_even_if_the_item_kept_an_older_one() -> None:
    made = change(execution("RUNNING", end_time=2.0), status="COMPLETED")
    assert (made.sets["end_time"], made.ends) == (9.0, True)


def test_a_payload_stands_in_one_form_only() -> None:
    assert "input_ref" in change(execution("PENDING"), input_data="[]").removes
    assert "output_data" in change(execution("RUNNING"), output_ref="envelope").removes


def test_a_long_error_is_shortened_in_the_attempts_alone() -> None:
    made = change(None, status="FAILED", error_message="e" * 600)
    assert made.attempt is not None
    assert (len(made.attempt["error_message"]), len(made.sets["error_message"])) == (500, 600)


def test_a_write_without_status_leaves_an_execution_to_its_claim() -> None:
    assert "fence" not in change(execution("RUNNING", fence=1), fence=2, variant="b").sets
    assert change(execution("RUNNING", fence=1), fence=2, status="RUNNING").sets["fence"] == 2
    assert change(None, fence=2, variant="b").sets["fence"] == 2


@pytest.mark.parametrize(
    ("status", "critical", "counts"),
    [
        ("COMPLETED", None, True),
        ("FAILED", False, True),
        ("FAILED", True, False),
        ("FAILED", None, False),
        ("RUNNING", False, False),
        ("PENDING", None, False),
        (None, None, False),
    ],
)
def test_the_pipeline_goes_on_past_what_completed_or_need_not_succeed(
    status: str | None, critical: bool | None, counts: bool
) -> None:
    assert counts_as_ended(status, critical) is counts
    stored = execution(status, critical=critical, fence=1, end_time=1.0)
    assert change(stored, fence=1).counts_as_ended is counts
    if status is not None:
        assert change(stored, fence=2).counts_as_ended is None  # outdated, perhaps


# -------------------------------------------------------------------------- any sequence of writes


@dataclass
class History:
    """What became of an execution; `begun` and `ended` count its attempts."""

    item: AgentExecution | None = None
    claim: int = 1
    begun: int = 0
    ended: int = 0

    def write(self, values: dict[str, Any], fence: int | None, now: float) -> None:
        before, token = self.item, f"t{now}"
        if not self.may_follow(values.get("status"), fence):
            with pytest.raises((LeaseHeld, InvalidTransition)):
                change_of(before, NAME, values, fence, now, token)
            return
        made = change_of(before, NAME, values, fence, now, token)
        self.item = after(before, made)
        begins = made.attempt is not None and made.attempt["begin_token"] == token
        self.begun, self.ended = self.begun + begins, self.ended + made.ends
        assert values.items() <= self.item.attribute_values.items()
        assert (self.item.fence or 0) >= (before.fence or 0 if before else 0)
        assert made.counts_as_ended in (None, counts_as_ended(self.item.status, self.item.critical))
        if begins:
            assert self.item.output_data == values.get("output_data")
            assert self.item.error_message == values.get("error_message")

    def may_follow(self, status: str | None, fence: int | None) -> bool:
        """Return what the rules say in words: final is final, but for retries and newer claims."""
        if self.item is None:
            return True
        if (fence or 0) != (self.item.fence or 0):
            return fence is not None
        allowed = {
            "RUNNING": ["RUNNING", "COMPLETED", "FAILED"],
            "COMPLETED": ["COMPLETED"],
            "FAILED": ["FAILED", "RUNNING"],
        }
        if self.item.status == "RUNNING" and status == "PENDING":
            return fence is not None  # handed back
        return status in (None, *allowed.get(self.item.status or "", COLUMNS))

    def check(self) -> None:
        """Check what must hold after every write."""
        item = self.item
        if item is None:
            return
        final = item.status in ("COMPLETED", "FAILED")
        assert item.retry_count == max(0, self.begun - 1)
        assert self.ended <= self.begun
        assert (item.end_time is not None) == final
        assert (item.start_time or 0) <= (item.end_time or 1e9)

        attempts = sorted((item.attempts or {}).values(), key=lambda attempt: attempt["number"])
        first_kept = max(1, self.begun - KEPT_ATTEMPTS + 1)
        assert [attempt["number"] for attempt in attempts] == [*range(first_kept, self.begun + 1)]
        starts = [attempt["start_time"] for attempt in attempts]
        assert starts == sorted(set(starts))
        for attempt in attempts:
            ended = attempt["status"] in ("COMPLETED", "FAILED", "CANCELLED")
            assert (attempt["end_time"] is not None) == (attempt["end_token"] is not None) == ended
            assert attempt["start_time"] <= (attempt["end_time"] or 1e9)
        if item.status != "PENDING":
            last, before = attempts[-1], attempts[:-1]
            assert {one["status"] for one in before} <= {"COMPLETED", "FAILED", "LOST", "CANCELLED"}
            assert last["status"] == item.status
            assert (last["start_time"], last["end_time"]) == (item.start_time, item.end_time)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(STORED),
        "error_message": st.sampled_from("ab"),
        "output_data": st.sampled_from("12"),
        "critical": st.just(False),
    },
)
CLAIMS = st.sampled_from(["none", "same", "same", "same", "newer"])


@given(st.lists(st.tuples(FIELDS, CLAIMS), max_size=80))
def test_any_sequence_of_writes_keeps_the_invariants(
    writes: list[tuple[dict[str, Any], str]],
) -> None:
    history = History()
    for number, (values, claim) in enumerate(writes):
        history.claim += claim == "newer"
        history.write(values, None if claim == "none" else history.claim, float(number))
        history.check()


def test_more_attempts_than_are_kept_leave_the_latest() -> None:
    history = History()
    for number in range(50):
        history.write({"status": ("RUNNING", "FAILED")[number % 2]}, None, float(number))
        history.check()
    assert (history.begun, history.ended) == (25, 25)
