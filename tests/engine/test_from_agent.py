"""Beginning again at an agent: what ran after it is outdated, whatever its name."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from tdev_models import (
    Resume,
    Settings,
    Tracker,
    Unavailable,
    get_pipeline_session,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tdev_models.results import RequestEvent
from tests import raw
from tests.engine.pipelines import clock
from tests.faults import Died, Fault, injected

# Agents of one's own between the pipeline's: what is outdated by beginning again at the parser.
ORDER = ("prepare", "nl_input", "ui_selection", "review@0", "parser", "review@1", "search", "audit")


async def step(session: Tracker, name: str) -> bool:
    """Run one agent, unless it had ended; return whether it had."""
    agent, _, key = name.partition("@")
    async with session.agent(agent, key=key or None) as run:
        had_ended = run.done
        if not had_ended:
            run.output = f"{name} of claim {session.owned.fence}"
    return had_ended


async def failed_after(names: tuple[str, ...], session_id: str = "s") -> None:
    with pytest.raises(KeyError):
        async with track_session(session_id) as session:
            for name in names:
                await step(session, name)
            raise KeyError


async def run_all(session: Resume, names: tuple[str, ...] = ORDER) -> list[str]:
    """Run what is left; return the agents that had ended."""
    return [name for name in names if await step(session, name)]


async def test_agents_of_ones_own_that_ran_after_it_run_again_and_those_before_do_not(
    store: Settings,
) -> None:
    await failed_after(ORDER)
    async with await resume_pipeline("s", from_agent="parser") as session:
        assert sorted(session.outputs) == sorted(ORDER[:4])
        assert (await get_pipeline_session("s")).progress == 2
        assert await run_all(session) == list(ORDER[:4])
        assert session.outputs["review@1"] == "review@1 of claim 2"
    assert (await get_pipeline_session("s")).status == "COMPLETED"


@pytest.mark.parametrize("done", range(5))
async def test_who_resumes_next_runs_again_what_the_one_before_did_not(
    strict_store: Settings, done: int
) -> None:
    await failed_after(ORDER)
    killed = await resume_pipeline("s", from_agent="parser")
    assert await run_all(killed, ORDER[: 4 + done]) == list(ORDER[:4])
    with settings.use(strict_store, clock=clock(61)):
        async with await resume_pipeline("s") as session:
            assert await run_all(session) == list(ORDER[: 4 + done])


async def test_who_dies_once_it_has_claimed_leaves_nothing_half_outdated(
    strict_store: Settings,
) -> None:
    await failed_after((*ORDER, "component_decision"))
    with injected(Fault("dies-after", operation="UpdateItem")), pytest.raises(Died):
        await resume_pipeline("s", from_agent="parser")
    with settings.use(strict_store, clock=clock(61)):
        session = await resume_pipeline("s")
        assert session.start_agent == "parser"
        assert sorted(session.outputs) == sorted(ORDER[:4])


async def test_who_resumes_next_begins_at_an_agent_that_never_ran_too(
    strict_store: Settings,
) -> None:
    await failed_after(("nl_input", "component_decision"))
    for number in range(1, 3):
        with settings.use(strict_store, clock=clock(61 * number)):
            session = await resume_pipeline("s", from_agent="parser" if number == 1 else None)
            assert (session.start_agent, [*session.outputs]) == ("parser", ["nl_input"])
    with settings.use(strict_store, clock=clock(200)):
        again = await resume_pipeline("s")
        await step(again, "component_decision")  # by a pipeline that leaves the parser out
    with settings.use(strict_store, clock=clock(300)):
        assert (await resume_pipeline("s")).start_agent == "match_rate"


async def test_an_earlier_beginning_that_nobody_ran_stays_after_a_later_one(
    strict_store: Settings,
) -> None:
    await failed_after(("nl_input", "ui_selection", "parser"))
    for number, agent in enumerate(("nl_input", "parser", "ui_selection", "parser"), 1):
        with settings.use(strict_store, clock=clock(61 * number)):
            await resume_pipeline("s", from_agent=agent)
    stored = raw.item(strict_store, "pipeline-sessions", "s")
    assert stored is not None
    assert [one[3] for one in json.loads(stored["restarts"]["S"])] == [
        *("nl_input", "ui_selection", "parser")
    ]
    with settings.use(strict_store, clock=clock(400)):
        assert (await resume_pipeline("s")).start_agent == "nl_input"


async def test_beginnings_of_an_earlier_form_outdate_what_they_did(strict_store: Settings) -> None:
    await failed_after(ORDER)
    audit = raw.item(strict_store, "agent-executions", "s-audit", "audit")
    assert audit is not None
    restarts = json.dumps([[2, 1, float(audit["start_time"]["N"])]])
    raw.put_attribute(strict_store, "pipeline-sessions", "s", restarts={"S": restarts})
    assert sorted((await resume_pipeline("s")).outputs) == sorted(ORDER[:-1])


async def test_a_lost_reply_changes_nothing(strict_store: Settings) -> None:
    await failed_after(ORDER)
    with injected(Fault("resent", operation="UpdateItem")):
        resume = await resume_pipeline("s", from_agent="parser")
    assert await run_all(resume) == list(ORDER[:4])
    with settings.use(strict_store, clock=clock(61)):
        assert await run_all(await resume_pipeline("s")) == list(ORDER)


async def test_a_claim_without_an_answer_begins_again_all_the_same(strict_store: Settings) -> None:
    await failed_after(ORDER)
    with injected(Fault("unanswered", operation="UpdateItem")), pytest.raises(Unavailable):
        await resume_pipeline("s", from_agent="parser")
    with settings.use(strict_store, clock=clock(61)):
        assert not {"review@1", "audit"} & set((await resume_pipeline("s")).outputs)


@pytest.mark.parametrize("worker", ["the same", "the next"])
async def test_what_the_index_had_not_shown_yet_is_outdated_too(
    strict_store: Settings, worker: str
) -> None:
    await failed_after(ORDER)
    with injected(Fault("stale", operation="Query")):
        session = await resume_pipeline("s", from_agent="parser")
    with settings.use(strict_store, clock=clock(61 if worker == "the next" else 0)):
        if worker == "the next":
            session = await resume_pipeline("s")
        assert await run_all(session) == list(ORDER[:4])


async def test_what_was_outdated_by_an_earlier_beginning_stays_so_after_a_later_one(
    strict_store: Settings,
) -> None:
    await failed_after(ORDER)
    first = await resume_pipeline("s", from_agent="nl_input")
    assert await run_all(first, ("prepare", *ORDER[1:3], "parser")) == ["prepare"]
    with settings.use(strict_store, clock=clock(61)):
        second = await resume_pipeline("s", from_agent="parser")  # which ran again after review@0
        assert sorted(second.outputs) == sorted(("prepare", "nl_input", "ui_selection"))
    with settings.use(strict_store, clock=clock(122)):
        async with await resume_pipeline("s") as session:
            assert await run_all(session) == ["prepare", "nl_input", "ui_selection"]


@pytest.mark.parametrize("search", ["search", "search@a"])
async def test_what_ran_before_it_since_an_earlier_beginning_stays(
    strict_store: Settings, search: str
) -> None:
    await failed_after((*ORDER[:6], search, "audit"))
    first = await resume_pipeline("s", from_agent="nl_input")
    await run_all(first, ORDER[:5])  # the search is still that of the first claim
    with settings.use(strict_store, clock=clock(61)):
        second = await resume_pipeline("s", from_agent="parser")
        assert sorted(second.outputs) == sorted(ORDER[:4])


async def test_an_agent_that_ran_with_keys_alone_runs_again_with_each(
    strict_store: Settings,
) -> None:
    await failed_after(("nl_input", "before", "search@a", "search@b", "after", "download"))
    async with await resume_pipeline("s", from_agent="search") as session:
        assert sorted(session.outputs) == ["before", "nl_input"]
        assert await run_all(session, ("nl_input", "before", "search@a")) == ["nl_input", "before"]


async def test_beginning_again_many_times_makes_no_session_larger(strict_store: Settings) -> None:
    await failed_after(ORDER)
    for number in range(1, 8):
        with settings.use(strict_store, clock=clock(61 * number)):
            await run_all(await resume_pipeline("s", from_agent="parser"))
    stored = raw.item(strict_store, "pipeline-sessions", "s")
    assert stored is not None
    assert len(json.loads(stored["restarts"]["S"])) == 1


async def test_an_agent_that_never_ran_is_as_early_as_the_first_after_it(
    strict_store: Settings,
) -> None:
    await failed_after(("prepare", "parser", "review", "search", "audit"))
    async with await resume_pipeline("s", from_agent="ui_selection") as session:
        assert sorted(session.outputs) == ["prepare"]
    await failed_after(("prepare", "nl_input", "review"), "t")
    async with await resume_pipeline("t", from_agent="download") as session:
        assert sorted(session.outputs) == ["nl_input", "prepare", "review"]


async def test_claims_say_what_ran_before_where_clocks_differ(strict_store: Settings) -> None:
    await failed_after(("nl_input", "early"))
    with settings.use(strict_store, clock=clock(-300)), pytest.raises(KeyError):
        async with await resume_pipeline("s") as session:  # on a worker whose clock is behind
            await run_all(session, ("ui_selection", "late"))
            raise KeyError
    with settings.use(strict_store, clock=clock(3600)):  # after whatever pause there is
        assert sorted((await resume_pipeline("s", from_agent="ui_selection")).outputs) == [
            "early",
            "nl_input",
        ]


async def test_what_ran_beside_it_since_before_it_began_stays(strict_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            async with session.agent("watch") as run:
                await step(session, "nl_input")
                run.output = "from before"
            raise KeyError
    async with await resume_pipeline("s", from_agent="nl_input") as session:
        assert session.outputs == {"watch": "from before"}


async def test_what_bare_calls_left_is_adopted_and_outdated_alike(strict_store: Settings) -> None:
    now = [time.time()]
    with settings.use(strict_store, clock=lambda: now[0]):
        await save_pipeline_session(session_id="s", status="FAILED")
        for name in ("early", "nl_input", "late"):
            now[0] += 1
            values = {"execution_id": f"s-{name}", "agent_name": name, "status": "COMPLETED"}
            await update_agent_execution({**values, "output_data": [name]})

        def bare() -> None:
            late = ("agent-executions", "s-late", "late")
            raw.put_attribute(strict_store, *late, write_token={"S": "of a late bare call"})

        # What is written while it is adopted is read again, and as outdated.
        with injected(Fault("before", operation="TransactWriteItems", between=bare)):
            resume = await resume_pipeline("s", from_agent="nl_input")
        assert resume.outputs == {"early": ["early"]}
        assert not await step(resume, "late")
        assert await step(resume, "early")


async def test_what_bare_calls_write_before_the_first_claim_is_outdated_for_the_next_too(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def bare() -> None:
        with settings.use(strict_store):
            for name in ("parser", "late"):
                values = {"execution_id": f"s-{name}", "agent_name": name, "project_id": "s"}
                await update_agent_execution(values, status="COMPLETED", output_data=[name])

    with injected(Fault("before", operation="UpdateItem", between=bare)):
        assert (await resume_pipeline("s", from_agent="parser")).outputs == {}
    with settings.use(strict_store, clock=clock(61)):
        assert (await resume_pipeline("s")).outputs == {}


async def test_hundreds_of_outdated_agents_cost_no_more_than_one(strict_store: Settings) -> None:
    def writes(events: list[RequestEvent]) -> list[str]:
        return [one.operation for one in events if "Get" not in one.operation != "Query"]

    costs: list[list[str]] = []
    for session_id, count in (("few", 1), ("many", 120)):
        with pytest.raises(KeyError):
            async with track_session(session_id) as session:
                await step(session, "parser")
                await asyncio.gather(
                    *(step(session, f"evaluator@{number}") for number in range(count))
                )
                raise KeyError
        events: list[RequestEvent] = []
        with (
            settings.use(strict_store, on_request=events.append),
            injected(Fault("short", operation="Query"), needed=True),
        ):
            async with await resume_pipeline(session_id, from_agent="parser") as resume:
                assert resume.outputs == {}
                assert not await step(resume, "evaluator@0")
        costs.append(writes(events))
    assert costs[0] == costs[1]


async def test_the_pipelines_agents_before_it_stay_in_whichever_order_they_ran(
    strict_store: Settings,
) -> None:
    await failed_after(("parser", "nl_input", "review"))
    assert sorted((await resume_pipeline("s", from_agent="parser")).outputs) == ["nl_input"]
