"""Executions: times, retries and attempts follow from the status."""

from __future__ import annotations

import asyncio
import contextvars
import json

import pytest

from tdev_models import (
    AgentExecution,
    ExecutionStatus,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    NotFound,
    Settings,
    get_agent_execution,
    get_agent_executions,
    get_pipeline_session,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.faults import Fault, injected

ALLOWED = {
    ("PENDING", "RUNNING"),
    ("PENDING", "COMPLETED"),
    ("PENDING", "FAILED"),
    ("RUNNING", "COMPLETED"),
    ("RUNNING", "FAILED"),
    ("FAILED", "RUNNING"),
}


@pytest.mark.parametrize("before", ExecutionStatus)
@pytest.mark.parametrize("after", ExecutionStatus)
async def test_status_changes_only_along_the_machine(
    store: Settings, before: str, after: str
) -> None:
    await update_agent_execution(execution_id="p-parser", status=before)
    if before == after or (before, after) in ALLOWED:
        changed = await update_agent_execution(execution_id="p-parser", status=after)
        assert changed.status == after
    else:
        with pytest.raises(InvalidTransition, match=f"is {before} and cannot become {after}"):
            await update_agent_execution(execution_id="p-parser", status=after)
        assert (await get_agent_execution("p-parser")).status == before


async def test_each_retry_is_an_attempt_and_a_repeated_status_is_none(store: Settings) -> None:
    for status, error in (
        ("RUNNING", None),
        ("RUNNING", None),
        ("FAILED", "first"),
        ("FAILED", None),
        ("RUNNING", None),
        ("FAILED", "second"),
        ("RUNNING", None),
        ("COMPLETED", None),
    ):
        await update_agent_execution(
            execution_id="p-search", status=status, error_message=error, input_data={"q": 1}
        )
    execution = await get_agent_execution("p-search")
    assert (execution.retry_count, execution.error_message) == (2, None)
    assert execution.input_data == {"q": 1}
    assert [(one.number, one.status, one.error_message) for one in execution.attempts] == [
        (1, "FAILED", "first"),
        (2, "FAILED", "second"),
        (3, "COMPLETED", None),
    ]
    for earlier, later in zip(execution.attempts, execution.attempts[1:], strict=False):
        assert earlier.start_time <= earlier.end_time <= later.start_time  # type: ignore[operator]
    assert execution.start_time == execution.attempts[-1].start_time
    assert execution.end_time == execution.attempts[-1].end_time


async def test_the_last_twenty_attempts_are_kept(store: Settings) -> None:
    for number in range(1, 24):
        await update_agent_execution(execution_id="p-search", status="RUNNING")
        await update_agent_execution(
            execution_id="p-search", status="FAILED", error_message=f"error {number}"
        )
    execution = await get_agent_execution("p-search")
    assert execution.retry_count == 22
    assert [one.number for one in execution.attempts] == list(range(4, 24))
    assert execution.attempts[-1].error_message == "error 23"


async def test_the_project_may_hold_dashes_and_the_agent_may_be_named(store: Settings) -> None:
    await update_agent_execution(execution_id="prod_1723_88-x-generation", status="COMPLETED")
    await update_agent_execution(
        execution_id="prod_1723_88-x-my-own-agent", agent_name="my-own-agent", status="RUNNING"
    )
    await update_agent_execution(
        execution_id="run-17", agent_name="parser", project_id="prod_1723_88-x"
    )
    found = await get_agent_executions("prod_1723_88-x")
    assert [(one.execution_id, one.agent_name) for one in found] == [
        ("prod_1723_88-x-generation", "generation"),
        ("prod_1723_88-x-my-own-agent", "my-own-agent"),
        ("run-17", "parser"),
    ]
    assert (await get_agent_execution("run-17", "parser")).status == "PENDING"


@pytest.mark.parametrize("execution_id", ["p-unknown", "generation_1", "p-generation-", "p"])
async def test_an_id_without_a_known_agent_gets_a_clear_error(execution_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^agent_name: .* ends in no known agent") as caught:
        await update_agent_execution(execution_id=execution_id, status="COMPLETED")
    assert caught.value.field == "agent_name"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_name", "a#b"),
        ("agent_name", ""),
        ("status", "ACTIVE"),
        ("output_data", "plain text"),
        ("output_data", {"x": object()}),
        ("output_data", f'"{"x" * 34_000_000}"'),
        ("retry_count", 3),
        ("start_time", 1),
        ("error_message", "x" * 5000),
        ("nonsense", 1),
    ],
)
async def test_bad_input_names_the_field_before_any_request(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}(\.x)?: ") as caught:
        await update_agent_execution({"execution_id": "p-parser", field: value})
    assert caught.value.field == field


async def test_two_large_payloads_fit_and_come_back_equal(strict_store: Settings) -> None:
    large = {"text": "é" * 80_000}
    await update_agent_execution(
        execution_id="p-parser",
        status="COMPLETED",
        input_data=large,
        output_data=json.dumps(large, ensure_ascii=False),
    )
    execution = await get_agent_execution("p-parser")
    assert execution.input_data == execution.output_data == large


async def test_lists_show_no_payloads_and_page(store: Settings) -> None:
    for agent in ("parser", "search", "assembly"):
        await update_agent_execution(
            execution_id=f"p-{agent}", status="FAILED", error_message=agent, output_data={"x": 1}
        )
    first = await get_agent_executions("p", limit=2)
    rest = await get_agent_executions("p", limit=2, cursor=first.cursor)
    assert [one.agent_name for one in [*first, *rest]] == ["parser", "search", "assembly"]
    assert rest.cursor is None
    assert {one.output_data for one in [*first, *rest]} == {None}


async def test_a_bare_write_on_a_leased_execution_is_refused(store: Settings) -> None:
    async with track_session("p") as session, session.agent("parser") as run:
        run.output = 1
    before = raw.item(store, "agent-executions", "p-parser", "parser")
    with pytest.raises(LeaseHeld, match="claim 1"):
        await update_agent_execution(execution_id="p-parser", error_message="late")
    assert raw.item(store, "agent-executions", "p-parser", "parser") == before


async def test_a_bare_execution_never_touches_the_session(store: Settings) -> None:
    await save_pipeline_session(session_id="p", progress=2)
    before = await get_pipeline_session("p")
    await update_agent_execution(execution_id="p-parser", status="COMPLETED")
    assert await get_pipeline_session("p") == before


async def test_a_missing_execution_is_not_found(store: Settings) -> None:
    with pytest.raises(NotFound, match="p-parser"):
        await get_agent_execution("p-parser")


@pytest.mark.parametrize("operation", ["TransactGetItems", "UpdateItem"])
async def test_a_new_attempt_resent_after_a_lost_reply_counts_once(
    store: Settings, operation: str
) -> None:
    await update_agent_execution(execution_id="p-parser", status="FAILED")
    with injected(Fault("resent", operation=operation)):
        again = await update_agent_execution(execution_id="p-parser", status="RUNNING")
    assert (again.retry_count, len(again.attempts)) == (1, 2)


@pytest.mark.parametrize(
    ("before", "mine", "others"),
    [("FAILED", "RUNNING", "FAILED"), ("RUNNING", "FAILED", "RUNNING")],
)
async def test_a_write_resent_after_somebody_elses_changes_nothing(
    store: Settings, before: str, mine: str, others: str
) -> None:
    await update_agent_execution(execution_id="p-parser", status=before)

    async def other_worker() -> None:
        with settings.use(store):
            await update_agent_execution(execution_id="p-parser", status=others)

    operation = "TransactWriteItems" if mine == "FAILED" else "UpdateItem"
    with injected(Fault("resent", operation=operation, between=other_worker)):
        await update_agent_execution(execution_id="p-parser", status=mine)
    execution = await get_agent_execution("p-parser")
    assert (execution.status, execution.retry_count) == (others, 1)
    assert [one.number for one in execution.attempts] == [1, 2]


async def test_a_write_in_between_is_looked_at_again(store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="RUNNING")

    async def other_worker() -> None:
        with settings.use(store):
            await update_agent_execution(execution_id="p-parser", status="COMPLETED")

    with (
        injected(Fault("before", operation="TransactWriteItems", between=other_worker)),
        pytest.raises(InvalidTransition, match="is COMPLETED and cannot become FAILED"),
    ):
        await update_agent_execution(execution_id="p-parser", status="FAILED")
    assert (await get_agent_execution("p-parser")).status == "COMPLETED"


async def test_a_whole_attempt_in_between_is_looked_at_again(store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="FAILED")

    async def other_worker() -> None:
        with settings.use(store):
            for status in ("RUNNING", "FAILED"):
                await update_agent_execution(execution_id="p-parser", status=status)

    with injected(Fault("before", operation="UpdateItem", between=other_worker)):
        again = await update_agent_execution(execution_id="p-parser", status="RUNNING")
    assert [(one.number, one.status) for one in again.attempts] == [
        (1, "FAILED"),
        (2, "FAILED"),
        (3, "RUNNING"),
    ]


async def test_a_bare_write_in_between_a_leased_one_is_looked_at_again(store: Settings) -> None:
    async def other_worker() -> None:
        # A context of its own carries no lease, nor the fault. As of this session it is refused.
        await asyncio.create_task(
            update_agent_execution(execution_id="p-parser", project_id="q", status="COMPLETED"),
            context=contextvars.Context(),
        )

    with injected(Fault("before", operation="TransactWriteItems", between=other_worker)):
        async with track_session("p") as session, session.agent("parser") as run:
            run.output = 1
    attempts = (await get_agent_execution("p-parser")).attempts
    assert [(one.number, one.status) for one in attempts] == [(1, "COMPLETED"), (2, "COMPLETED")]


async def test_a_creation_in_between_is_looked_at_again(store: Settings) -> None:
    async def other_worker() -> None:
        with settings.use(store):
            await update_agent_execution(execution_id="p-parser", status="FAILED")

    with injected(Fault("before", operation="UpdateItem", between=other_worker)):
        again = await update_agent_execution(execution_id="p-parser", status="RUNNING")
    assert (again.retry_count, len(again.attempts)) == (1, 2)


async def test_an_orm_write_in_between_is_looked_at_again(store: Settings) -> None:
    await update_agent_execution(execution_id="p-parser", status="FAILED")

    def other_worker() -> None:
        execution = AgentExecution.get("p-parser", "parser", consistent_read=True)
        execution.status = "COMPLETED"
        execution.save()

    with (
        injected(Fault("before", operation="UpdateItem", between=other_worker)),
        pytest.raises(InvalidTransition),
    ):
        await update_agent_execution(execution_id="p-parser", status="RUNNING")
    assert (await get_agent_execution("p-parser")).status == "COMPLETED"


async def test_a_given_project_is_kept_by_later_calls_without_one(store: Settings) -> None:
    run = {"execution_id": "run7-generation"}
    await update_agent_execution(run, project_id="proj-1", status="RUNNING")
    await update_agent_execution(run, status="COMPLETED")
    (one,) = await get_agent_executions("proj-1")
    assert (one.execution_id, one.status) == ("run7-generation", "COMPLETED")


@pytest.mark.parametrize("text", ['{"score": nan}', "[1", "[" * 100_000, '"a', "[] []", ""])
async def test_json_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^output_data: "):
        await update_agent_execution(execution_id="s-parser", output_data=text)
