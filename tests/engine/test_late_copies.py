"""A copy of a request that arrives late changes nothing that was acknowledged since."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    RequestEvent,
    Settings,
    abandon_session,
    aws,
    get_agent_executions,
    get_failed_executions,
    get_pipeline_session,
    record_download,
    save_pipeline_session,
    save_user_project,
    settings,
    track_session,
    update_agent_execution,
)
from tdev_models.errors import ConditionFailed
from tdev_models.retry import wait_until
from tdev_models.settings import Transport
from tests import raw
from tests.dying import worker_of
from tests.engine.pipelines import clock
from tests.faults import Fault, injected

TABLES = ("pipeline-sessions", "agent-executions", "user-projects")


class Copies:
    """Keeps a copy of each write, to let it arrive again: of workers' items, or of all others."""

    def __init__(self, *, of_workers: bool = False) -> None:
        self.of_workers = of_workers
        self.kept: list[tuple[str, Mapping[str, Any]]] = []

    def wrap(self, send: Transport) -> Transport:
        async def kept(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            wanted = self.of_workers == ("#worker:" in str(request.get("Key")))
            if wanted and operation in ("UpdateItem", "TransactWriteItems"):
                # After ten minutes DynamoDB has forgotten the token of a transaction.
                copy = {name: one for name, one in request.items() if name != "ClientRequestToken"}
                self.kept.append((operation, copy))
            return await send(operation, request)

        return kept

    def arrive(self, store: Settings, worker_id: str = "nobody") -> None:
        """Let all of them arrive again, and check that none changes anything, or the worker."""

        def everything() -> list[Any]:
            worker = raw.item(store, "pipeline-sessions", worker_id)
            return [worker, *(raw.everything(store, table) for table in TABLES)]

        before = everything()
        for operation, request in self.kept:
            with suppress(ConditionFailed):
                aws.call(store, operation, request)
            assert everything() == before, request


def kept_by(copies: Copies, store: Settings, **more: Any) -> Any:
    return settings.use(replace(store, transport=copies.wrap, **more))


async def test_bare_saves_of_a_session(store: Settings) -> None:
    copies = Copies()
    with kept_by(copies, store):
        for fields in (
            {"project_name": "first"},
            {"project_name": "second", "user_id": "u"},
            {"status": "FAILED"},
            {"status": "ACTIVE", "progress": 3},
            {"status": "FAILED", "error_message": "why"},
            {"status": "ACTIVE"},
        ):
            await save_pipeline_session({"session_id": "s", **fields})
            copies.arrive(store)
        await abandon_session("s", "enough")
        copies.arrive(store)
    assert len(copies.kept) == 7


async def test_bare_saves_after_a_claim_that_has_ended(store: Settings) -> None:
    copies = Copies()
    with kept_by(copies, store):
        await save_pipeline_session(session_id="s", project_name="first", status="FAILED")
    async with track_session("s", project_name="second"):
        copies.arrive(store)
    copies.arrive(store)


async def test_saves_and_executions_of_a_claim(store: Settings) -> None:
    copies = Copies()
    with kept_by(copies, store):
        async with track_session("s") as session:
            for number, name in enumerate(AGENTS[:2]):
                await save_pipeline_session(session_id="s", project_name=f"name {number}")
                copies.arrive(store)
                async with session.agent(name) as run:
                    run.output = number
                copies.arrive(store)
    copies.arrive(store)
    assert len(copies.kept) == 8


async def test_heartbeats(store: Settings) -> None:
    copies = Copies(of_workers=True)
    with kept_by(copies, store, lease_seconds=0.3):
        async with track_session("s"):
            worker_id = worker_of(store, "s")
            await asyncio.sleep(0.4)
        await wait_until(lambda: status_of(store, worker_id) == "STOPPED", asyncio.sleep, 0.05, 10)
    assert len(copies.kept) > 4  # registered, beaten, stopped
    copies.arrive(store, worker_id)


def status_of(store: Settings, worker_id: str) -> str:
    worker = raw.item(store, "pipeline-sessions", worker_id)
    assert worker is not None
    status: str = worker["status"]["S"]
    return status


async def test_bare_executions(store: Settings) -> None:
    copies = Copies()
    with kept_by(copies, store):
        for status in ("RUNNING", "FAILED", "RUNNING", "COMPLETED"):
            await update_agent_execution(execution_id="s-parser", status=status)
            copies.arrive(store)
        for output in (1, 2):
            await update_agent_execution(execution_id="s-parser", output_data=[output])
            copies.arrive(store)


@pytest.mark.parametrize("kind", ["none", "resent", "unanswered"])
async def test_failures_of_a_claim_after_their_repair(store: Settings, kind: str) -> None:
    copies, fault = Copies(), Fault(kind, operation="TransactWriteItems", nth=2)
    fault.hit = kind == "none"
    with kept_by(copies, store), injected(fault):
        async with track_session("s") as session:
            for output in (None, None, 1):
                with suppress(KeyError):
                    async with session.agent("parser") as run:
                        if output is None:
                            raise KeyError("no answer")
                        run.output = output
                copies.arrive(store)
    copies.arrive(store)
    found = await get_failed_executions(include_recovered=True)
    assert [(one.number, one.recovered) for one in found] == [(2, True), (1, True)]


async def test_saves_of_a_project(store: Settings) -> None:
    copies = Copies()
    with kept_by(copies, store):
        for name in ("first", "second", "third"):
            await save_user_project(user_id="u", project_id="p", project_name=name)
            copies.arrive(store)
        await record_download("u", "p", "d1")
        copies.arrive(store)
    assert len(copies.kept) == 4


async def test_a_save_whose_reply_was_lost_does_not_undo_what_was_saved_since(
    store: Settings,
) -> None:
    await save_pipeline_session(session_id="s")

    async def other() -> None:
        with settings.use(store):
            await save_pipeline_session(session_id="s", project_name="later")

    with injected(Fault("resent", operation="UpdateItem", between=other)):
        await save_pipeline_session(session_id="s", project_name="earlier", current_agent="parser")
    session = await get_pipeline_session("s")
    assert (session.project_name, session.current_agent) == ("later", "parser")


async def test_a_leased_save_whose_reply_was_lost_is_recognised(store: Settings) -> None:
    events: list[RequestEvent] = []
    with settings.use(on_request=events.append):
        async with track_session("s"):
            with injected(Fault("resent", operation="UpdateItem")):
                saved = await save_pipeline_session(session_id="s", project_name="mine")
    assert saved.project_name == "mine"
    assert len(events) == 6  # look, register, claim, two times the save, end


@pytest.mark.parametrize("skew", [-90.0, -86_400.0])
async def test_a_clock_that_is_behind_costs_one_more_request_and_loses_nothing(
    store: Settings, skew: float
) -> None:
    await save_pipeline_session(session_id="s", project_name="first")
    events: list[RequestEvent] = []
    with settings.use(clock=clock(skew), on_request=events.append):
        behind = await save_pipeline_session(session_id="s", project_name="second")
    assert (behind.project_name, len(events)) == ("second", 2)
    assert (behind.last_updated or 0) < time.time() + skew + 10
    await save_pipeline_session(session_id="s", project_name="third", status="FAILED")
    session = await get_pipeline_session("s")
    assert (session.project_name, session.status) == ("third", "FAILED")


async def test_saves_at_once_are_all_made(strict_store: Settings) -> None:
    names = ("user_id", "project_name", "current_agent", "failed_agent")
    await asyncio.gather(
        *(save_pipeline_session({"session_id": "s", name: name}) for name in names)
    )
    session = await get_pipeline_session("s")
    assert [session[name] for name in names] == [*names]


async def test_many_writers_of_one_item_at_once_each_have_their_turn(
    strict_store: Settings,
) -> None:
    def run(number: int) -> Awaitable[object]:
        values = {"status": "RUNNING", "variant": f"v{number}"}
        return update_agent_execution(values, execution_id="s-parser", project_id="s")

    await asyncio.gather(
        *(run(number) for number in range(30)),
        *(save_pipeline_session({"progress": 1}, session_id="s") for _ in range(200)),
    )
    (execution,) = await get_agent_executions("s")
    assert (execution.status, (execution.variant or "")[0]) == ("RUNNING", "v")


async def test_a_leased_save_goes_past_what_the_claim_wrote_elsewhere(store: Settings) -> None:
    async with track_session("s"):
        # A forked child, say, or a heartbeat whose reply was lost.
        raw.put_attribute(
            store, "pipeline-sessions", "s", lease_expires={"N": str(time.time() + 70)}
        )
        await save_pipeline_session(session_id="s", project_name="mine")
    session = await get_pipeline_session("s")
    assert (session.project_name, session.status) == ("mine", "COMPLETED")
