"""Each public call with each fault at each of its requests, and with the process dead there.

Whatever happens, calling again, or letting a worker recover, leads to the state of a run without a
fault: nothing lost, nothing doubled. What a call reads is what a run without a fault reads, and
from a lagging index less, never anything else.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    Conflict,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    Page,
    Resume,
    Settings,
    Throttled,
    Unavailable,
    UsageReport,
    abandon_session,
    agent_performance,
    compare_variants,
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    get_failed_sessions,
    get_pipeline_session,
    get_user_project,
    list_pipeline_sessions,
    list_user_projects,
    list_workers,
    query_metrics,
    record_download,
    record_metric,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    settings,
    track_session,
    update_agent_execution,
    usage_report,
)
from tests import raw
from tests.conftest import SWEPT, make_tables
from tests.faults import RETRIED_KINDS, Died, Fault, injected

RETRIED = (Unavailable, Throttled, Conflict, LeaseHeld, LeaseLost)
KINDS = ("lost", "unanswered", "throttled", *RETRIED_KINDS, "delayed", "short", "stale")
DEATHS = ("dies", "dies-after")
LARGE = {"text": "".join(str(number * 7919 % 1000003) for number in range(40_000))}
USED = {"input_tokens": 3, "cost_usd": 0.5, "model": "m"}
# What differs from run to run: times, tokens, and how often a session had to be claimed.
VOLATILE = {
    *("created_at", "last_updated", "start_time", "end_time", "last_accessed", "lease_expires"),
    *("lease_token", "write_token", "begin_token", "end_token", "fence", "resume_count", "worker"),
    *("due_at", "lease_owner", "previous_status", "resumes_without_progress", "worker_deaths"),
    *("former_token", "saved_at", "restarts", "failed_at", "traceback", "worker_id", "lease_write"),
}


@dataclass
class World:
    """Fresh tables, a clock of their own, and what agents did there."""

    store: Settings
    skipped: float = 0.0
    ran: list[str] = field(default_factory=list)
    agents: tuple[str, ...] = AGENTS[:2]
    outputs: str = "first"

    @contextmanager
    def inside(self) -> Iterator[None]:
        with settings.use(self.store, clock=lambda: time.time() + self.skipped):
            yield

    async def finish(self, session: Any) -> None:
        for name in self.agents:
            async with session.agent(name, {"for": name}) as run:
                if not run.done:
                    self.ran.append(name)
                    run.output = {"by": name, "which": self.outputs}

    async def finish_by_calls(self, session: Any) -> None:
        """Run agents as calls, under keys, with usage, a timeout and a side effect."""

        async def evaluate(number: int) -> dict[str, Any]:
            self.ran.append(f"evaluator@{number}")
            return {"round": number}

        await session.run("evaluator", evaluate, 1, key=1, usage=lambda _: USED)
        async with session.agent("parser", timeout=600) as run:
            if not run.done:
                self.ran.append("parser")
                run.output = await run.once("checkpoint", lambda: [1], in_doubt="run")
                run.usage(**USED)

    def state(self) -> dict[str, list[Any]]:
        """Everything that is stored, without what differs from run to run.

        A chunk may be there under several fences; metrics of a tracker may miss a dead one's.
        """
        stored = {table: raw.everything(self.store, table) for table in raw.KEYS}
        if self.ran:
            del stored["metrics"]
        steady = {table: [_steady(item) for item in items] for table, items in stored.items()}
        chunks = {repr(item): item for item in steady["agent-executions"] if "chunk" in item}
        others = [item for item in steady["agent-executions"] if "chunk" not in item]
        steady["agent-executions"] = [*others, *chunks.values()]
        return {table: sorted(items, key=repr) for table, items in steady.items()}


def _steady(item: dict[str, Any]) -> dict[str, Any]:
    steady = {name: value for name, value in item.items() if name not in VOLATILE}
    if "chunk" in steady:  # the same text under another fence is another chunk
        agent, what, _, _, digest, number = steady["agent_name"]["S"].split("#")
        steady["agent_name"] = f"{agent}#{what}#{digest}#{number}"
    if "output_ref" in steady:
        steady["output_ref"] = True
    if "metric_name" in steady:
        parts = steady["metric_name"]["S"].split("#")
        steady = {"metric": parts[:2], "count": steady["count"]}
    steady.pop("attempts", None)
    if "fence" in item:  # who dies inside an agent leaves an attempt
        steady.pop("retry_count", None)
    return dict(sorted(steady.items()))


async def track(world: World) -> None:
    # COMPLETED already is what a caller finds who died right after the end.
    with suppress(InvalidTransition):
        async with track_session("s", user_id="u") as session:
            await world.finish(session)


async def track_calls(world: World) -> None:
    with suppress(InvalidTransition):
        async with track_session("s", budget_usd=9) as session:
            await world.finish_by_calls(session)


async def track_failures(world: World) -> None:
    with suppress(InvalidTransition):
        async with track_session("s") as session:
            for _ in range(2):
                with suppress(KeyError):
                    async with session.agent("parser") as run:
                        if "parser" not in world.ran:
                            world.ran.append("parser")
                            raise KeyError
                        run.output = 1


async def track_and_release(world: World) -> None:
    async with track_session("s") as session:
        async with session.agent("parser") as run:
            if not run.done:
                world.ran.append("parser")
                run.output = 1
        await session.release()


async def resume(world: World, from_agent: str | None = None, force: bool = False) -> None:
    claimed = await resume_pipeline("s", from_agent=from_agent, force=force)
    if not claimed:
        if "COMPLETED" in (claimed.reason or ""):
            return
        raise LeaseHeld(claimed.reason)
    async with claimed:
        await world.finish(claimed)


async def worker(world: World) -> None:
    await recover_sessions(world.finish, backoff_seconds=0.001)
    session = await get_pipeline_session("s")
    if session.status != "COMPLETED":  # the worker logs what failed; the next round goes on
        raise LeaseHeld(session.status)


async def given_up(world: World) -> None:
    await recover_sessions(world.finish)
    session = await get_pipeline_session("s")
    if session.status != "ABANDONED":
        raise LeaseHeld(session.status)


async def failed(world: World) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", user_id="u")


async def failed_without_a_lease(world: World) -> None:
    await failed(world)
    run = {"execution_id": "s-nl_input", "input_data": {"for": "nl_input"}}
    await update_agent_execution(run, status="COMPLETED", output_data={"by": "nl_input"})


async def failed_later(world: World) -> None:
    world.agents = (*AGENTS[:2], "review")
    with pytest.raises(KeyError):
        async with track_session("s", user_id="u") as session:
            await world.finish(session)
            raise KeyError
    world.ran.clear()
    world.outputs = "second"


async def failed_often(world: World) -> None:
    await failed(world)
    raw.put_attribute(world.store, "pipeline-sessions", "s", resumes_without_progress={"N": "99"})


async def given_up_on(world: World) -> None:
    await failed(world)
    await abandon_session("s", "enough")


async def retried(world: World) -> None:
    await update_agent_execution(execution_id="s-parser", status="FAILED", error_message="first")


async def project(world: World) -> None:
    await save_user_project(user_id="u", project_id="p")


async def nothing(world: World) -> None:
    return


Step = Callable[[World], Awaitable[Any]]
CALLS: dict[str, tuple[Step, Step]] = {
    "save_pipeline_session, new": (
        nothing,
        lambda w: save_pipeline_session(session_id="s", user_id="u", metadata={"a": 1}),
    ),
    "save_pipeline_session, end": (
        failed,
        lambda w: save_pipeline_session(session_id="s", status="ABANDONED"),
    ),
    "abandon_session": (failed, lambda w: abandon_session("s", "enough")),
    "update_agent_execution, new": (
        nothing,
        lambda w: update_agent_execution(
            execution_id="s-parser", status="COMPLETED", output_data=LARGE
        ),
    ),
    "update_agent_execution, again": (
        retried,
        lambda w: update_agent_execution(execution_id="s-parser", status="RUNNING"),
    ),
    "update_agent_execution, failed": (
        nothing,
        lambda w: update_agent_execution(
            execution_id="s-parser", status="FAILED", error_message="why", input_data=LARGE
        ),
    ),
    "save_user_project": (
        nothing,
        lambda w: save_user_project(user_id="u", project_id="p", size_mb=1),
    ),
    "record_download": (project, lambda w: record_download("u", "p", "d1")),
    "record_metric": (nothing, lambda w: record_metric(metric_name="m", value=2, timestamp=1.8e9)),
    "track_session": (nothing, track),
    "track_session, calls": (nothing, track_calls),
    "track_session, failures": (nothing, track_failures),
    "track_session, handed back": (nothing, track_and_release),
    "resume_pipeline": (failed, resume),
    "resume_pipeline, from": (failed_later, lambda w: resume(w, "ui_selection")),
    "resume_pipeline, what had no lease": (failed_without_a_lease, resume),
    "resume_pipeline, by force": (given_up_on, lambda w: resume(w, force=True)),
    "recover_sessions": (failed, worker),
    "recover_sessions, giving up": (failed_often, given_up),
}
# Who dies before a failure is stored has not failed: no other worker can know.
FORGOTTEN_BY_THE_DEAD = ("track_session, failures",)
DO_NOTHING_TWICE = (
    "track_session",
    "track_session, calls",
    "track_session, handed back",
    "resume_pipeline",
    "resume_pipeline, what had no lease",
    "recover_sessions",
)
# A second call of these is a second sample where the first has no answer: the docstring says so.
COUNTED_TWICE = {("record_metric", "unanswered")}


async def again(world: World, call: Step) -> None:
    """Call until it succeeds, as a caller would who waits out a lease."""
    for _ in range(4):
        try:
            await call(world)
            return
        except RETRIED:
            world.skipped += 4000
    raise AssertionError("four calls were not enough")


async def faultless(dynoxide: str, name: str) -> tuple[dict[str, list[Any]], list[str]]:
    prepare, call = CALLS[name]
    world = World(make_tables(dynoxide))
    with world.inside():
        await prepare(world)
        await call(world)
    return world.state(), world.ran


@pytest.mark.parametrize("name", CALLS)
async def test_a_fault_at_any_request_changes_nothing_in_the_end(dynoxide: str, name: str) -> None:
    prepare, call = CALLS[name]
    expected, _ = await faultless(dynoxide, name)
    for kind in KINDS:
        operation = "Query" if kind in ("short", "stale") else None
        for nth in itertools.count(1):
            world = World(make_tables(dynoxide))
            with world.inside():
                await prepare(world)
                with injected(Fault(kind, nth=nth, operation=operation), needed=False) as fault:
                    if (name, kind) in COUNTED_TWICE:
                        with pytest.raises(Unavailable):
                            await call(world)
                    elif kind in RETRIED_KINDS:
                        await call(world)
                    else:
                        await again(world, call)
            if not fault.hit:
                break
            SWEPT[kind] += 1
            assert world.state() == expected, (kind, nth)
            if (name, kind) in COUNTED_TWICE:
                break


@pytest.mark.parametrize("name", [name for name in CALLS if name not in FORGOTTEN_BY_THE_DEAD])
async def test_a_death_at_any_request_is_recovered_from(dynoxide: str, name: str) -> None:
    prepare, call = CALLS[name]
    expected, all_agents = await faultless(dynoxide, name)
    for kind in DEATHS:
        for nth in itertools.count(1):
            world = World(make_tables(dynoxide))
            with world.inside():
                await prepare(world)
                with injected(Fault(kind, nth=nth), needed=False) as fault:
                    with suppress(Died):
                        await call(world)
                if not fault.hit:
                    break
                SWEPT[kind] += 1
                finished = [
                    item["agent_name"]["S"]
                    for item in raw.everything(world.store, "agent-executions")
                    if item.get("status") == {"S": "COMPLETED"}
                ]
                done_before = len(world.ran)
                world.skipped += 4000
                if name == "record_metric":
                    break  # a second sample
                await again(world, call)
            assert world.state() == expected, (kind, nth)
            if name in DO_NOTHING_TWICE:
                # What had ended was not done again.
                assert not set(world.ran[done_before:]) & set(finished), (kind, nth)
                assert set(world.ran) == set(all_agents)


async def seeded(world: World) -> None:
    """Make something for each reading call to find, twice what a page holds."""
    for number in range(4):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED", user_id="u")
        world.skipped += 1
        await update_agent_execution(
            execution_id=f"p-{AGENTS[number]}", status="FAILED", output_data=LARGE
        )
        if number % 2:
            await update_agent_execution(execution_id=f"p-{AGENTS[number]}", status="RUNNING")
        await save_user_project(user_id="u", project_id=f"p{number}")
        worker = {"status": {"S": "WORKER"}, "due_at": {"N": str(HOUR + number)}}
        raw.put_attribute(world.store, "pipeline-sessions", f"#worker:h:{number}:a", **worker)
        for variant in "ab":
            sample = {"agent_name": "parser", "dimension": variant, "timestamp": HOUR}
            await record_metric(sample, metric_name="agent_execution_time", value=1 + number)
    await record_metric(metric_name="sessions_started", value=1, timestamp=HOUR)


async def pages(call: Callable[..., Awaitable[Page[Any]]], *args: Any, **query: Any) -> list[Any]:
    found: list[Any] = []
    cursor = None
    while True:
        page = await call(*args, limit=2, cursor=cursor, **query)
        found += page
        cursor = page.cursor
        if cursor is None:
            return found


HOUR = 1.8e9
HOURS = (HOUR - 3600, HOUR + 3600)
READS: dict[str, Callable[[], Awaitable[Any]]] = {
    "get_pipeline_session": lambda: get_pipeline_session("s0"),
    "get_pipeline_session, of a user": lambda: get_pipeline_session("s0", user_id="u"),
    "list_pipeline_sessions, of a status": lambda: pages(list_pipeline_sessions, status="FAILED"),
    "list_pipeline_sessions, of a user": lambda: pages(list_pipeline_sessions, user_id="u"),
    "get_agent_execution": lambda: get_agent_execution("p-parser"),
    "list_pipeline_sessions, of an age": lambda: pages(
        list_pipeline_sessions, status="FAILED", created_after=1e9
    ),
    "get_agent_executions": lambda: pages(get_agent_executions, "p"),
    "get_agent_executions, with attempts": lambda: pages(get_agent_executions, "p", attempts=True),
    "get_failed_executions": lambda: pages(get_failed_executions),
    "get_failed_executions, all": lambda: pages(get_failed_executions, include_recovered=True),
    "get_failed_executions, of a session": lambda: pages(get_failed_executions, session_id="p"),
    "get_failed_sessions": lambda: pages(get_failed_sessions),
    "list_workers": lambda: pages(list_workers),
    "get_user_project": lambda: get_user_project("u", "p0"),
    "list_user_projects": lambda: pages(list_user_projects, "u"),
    "query_metrics": lambda: query_metrics("agent_execution_time", *HOURS, percentiles=(50,)),
    "usage_report": lambda: usage_report(*HOURS),
    "agent_performance": lambda: agent_performance(*HOURS),
    "compare_variants": lambda: compare_variants(
        "parser", "a", "b", "agent_execution_time", *HOURS
    ),
}


@pytest.mark.parametrize("name", READS)
async def test_a_fault_at_any_request_of_a_read_changes_no_answer(dynoxide: str, name: str) -> None:
    world, read = World(make_tables(dynoxide)), READS[name]
    with world.inside():
        await seeded(world)
        before, expected = world.state(), await read()
        assert expected
        for kind in (*KINDS, *DEATHS):
            operation = "Query" if kind in ("short", "stale") else None
            for nth in itertools.count(1):
                answer = None
                with injected(Fault(kind, nth=nth, operation=operation), needed=False) as fault:
                    with suppress(Died, *RETRIED):
                        answer = await read()
                if answer is None:
                    assert kind not in RETRIED_KINDS, nth
                    answer = await read()
                if not fault.hit:
                    break
                SWEPT[kind] += 1
                if kind == "stale" and isinstance(expected, list):
                    assert answer == [one for one in expected if one in answer], nth
                elif kind == "stale" and isinstance(expected, UsageReport):
                    assert answer.waiting <= expected.waiting
                    assert replace(answer, waiting=4, due=4) == expected, nth
                else:
                    assert answer == expected, (kind, nth)
        assert world.state() == before


def test_the_state_tells_what_was_lost_or_doubled() -> None:
    one = {"metric_name": {"S": "m##1##x"}, "count": {"N": "1"}}
    two = {"metric_name": {"S": "m##1##x"}, "count": {"N": "2"}}
    assert _steady(one) != _steady(two)
    assert _steady({"status": {"S": "A"}, "fence": {"N": "1"}}) == {"status": {"S": "A"}}


async def test_owners_follow_one_another_and_fences_only_rise(dynoxide: str) -> None:
    world = World(make_tables(dynoxide))
    owners: list[Resume] = []
    with world.inside():
        await failed(world)
        for _ in range(5):
            owner = await resume_pipeline("s")
            assert owner
            assert not await resume_pipeline("s")
            owners.append(owner)
            world.skipped += 61
        assert [owner.owned.fence for owner in owners] == [1, 2, 3, 4, 5]
        for late in owners[:-1]:
            with pytest.raises(LeaseLost):
                async with late.agent("parser"):
                    await asyncio.sleep(30)
        async with owners[-1]:
            await world.finish(owners[-1])
