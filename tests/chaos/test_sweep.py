"""Each public call with each fault at each of its requests, and with the process dead there.

Whatever happens, calling again, or letting a worker recover, leads to the state of a run without a
fault: nothing lost, nothing doubled.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    Conflict,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    Resume,
    Settings,
    Throttled,
    Unavailable,
    abandon_session,
    get_pipeline_session,
    record_download,
    record_metric,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    settings,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.conftest import make_tables
from tests.faults import Died, Fault, injected

RETRIED = (Unavailable, Throttled, Conflict, LeaseHeld, LeaseLost)
KINDS = ("lost", "unanswered", "resent", "throttled", "conflict", "delayed", "short", "stale")
DEATHS = ("dies", "dies-after")
LARGE = {"text": "".join(str(number * 7919 % 1000003) for number in range(40_000))}
# What differs from run to run: times, tokens, and how often a session had to be claimed.
VOLATILE = {
    *("created_at", "last_updated", "start_time", "end_time", "last_accessed", "lease_expires"),
    *("lease_token", "write_token", "begin_token", "end_token", "fence", "resume_count", "worker"),
    *("next_retry_at", "lease_owner", "previous_status"),
}


@dataclass
class World:
    """Fresh tables, a clock of their own, and what agents did there."""

    store: Settings
    skipped: float = 0.0
    ran: list[str] = field(default_factory=list)

    @contextmanager
    def inside(self) -> Iterator[None]:
        with settings.use(self.store, clock=lambda: time.time() + self.skipped):
            yield

    async def finish(self, session: Any) -> None:
        for name in AGENTS[:2]:
            async with session.agent(name, {"for": name}) as run:
                if not run.done:
                    self.ran.append(name)
                    run.output = {"by": name}

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


async def resume(world: World, from_agent: str | None = None) -> None:
    claimed = await resume_pipeline("s", from_agent=from_agent)
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


async def failed(world: World) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", user_id="u")


async def failed_later(world: World) -> None:
    with pytest.raises(KeyError):
        async with track_session("s", user_id="u") as session:
            await world.finish(session)
            raise KeyError
    world.ran.clear()


async def retried(world: World) -> None:
    await update_agent_execution(execution_id="s-parser", status="FAILED", error_message="first")


async def project(world: World) -> None:
    await save_user_project(user_id="u", project_id="p")


async def nothing(world: World) -> None:
    return


Step = Callable[[World], Awaitable[Any]]
CALLS: dict[str, tuple[Step, Step]] = {
    "save a new session": (
        nothing,
        lambda w: save_pipeline_session(session_id="s", user_id="u", metadata={"a": 1}),
    ),
    "end a session": (failed, lambda w: save_pipeline_session(session_id="s", status="ABANDONED")),
    "abandon": (failed, lambda w: abandon_session("s", "enough")),
    "new execution": (
        nothing,
        lambda w: update_agent_execution(
            execution_id="s-parser", status="COMPLETED", output_data=LARGE
        ),
    ),
    "new attempt": (
        retried,
        lambda w: update_agent_execution(execution_id="s-parser", status="RUNNING"),
    ),
    "save a project": (
        nothing,
        lambda w: save_user_project(user_id="u", project_id="p", size_mb=1),
    ),
    "download": (project, lambda w: record_download("u", "p", "d1")),
    "metric": (nothing, lambda w: record_metric(metric_name="m", value=2, timestamp=1.8e9)),
    "track": (nothing, track),
    "resume": (failed, resume),
    "resume from an agent": (failed_later, lambda w: resume(w, "ui_selection")),
    "recover": (failed, worker),
}
# A second call of these is a second sample where the first has no answer: the docstring says so.
COUNTED_TWICE = {("metric", "unanswered")}


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
                    else:
                        await again(world, call)
            if not fault.hit:
                break
            assert world.state() == expected, (kind, nth)
            if (name, kind) in COUNTED_TWICE:
                break


@pytest.mark.parametrize("name", CALLS)
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
                finished = [
                    item["agent_name"]["S"]
                    for item in raw.everything(world.store, "agent-executions")
                    if item.get("status") == {"S": "COMPLETED"}
                ]
                done_before = len(world.ran)
                world.skipped += 4000
                if name == "metric":
                    break  # a second sample
                await again(world, call)
            assert world.state() == expected, (kind, nth)
            if name in ("track", "resume", "recover"):
                # What had ended was not done again.
                assert not set(world.ran[done_before:]) & set(finished), (kind, nth)
                assert set(world.ran) == set(all_agents)


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
                await late.agent("parser").__aenter__()
        async with owners[-1]:
            await world.finish(owners[-1])
