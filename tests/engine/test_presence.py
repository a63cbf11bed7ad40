"""A worker's presence: one heartbeat, who is declared dead, and what becomes of its sessions."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from contextvars import Context
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    LeaseHeld,
    LeaseLost,
    Settings,
    abandon_session,
    aws,
    get_failed_sessions,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tdev_models.errors import Unavailable
from tdev_models.retry import wait_until
from tdev_models.workers import presence
from tests import raw
from tests.dying import kill_worker, worker_of
from tests.engine.pipelines import clock, finish
from tests.faults import Fault, Outage, injected

SHORT: dict[str, Any] = {"lease_seconds": 0.6, "stalled_after_seconds": 60}


def elsewhere(store: Settings, **more: Any) -> Settings:
    """Return settings whose worker is another one."""
    return replace(store, **{"json_default": lambda value: NotImplemented, **SHORT, **more})


async def begin(session_id: str = "s") -> Any:
    """Own a session as another task would."""

    async def enter() -> Any:
        return await track_session(session_id).__aenter__()

    return await asyncio.create_task(enter())


async def dead_worker(store: Settings) -> str:
    """Let a worker that owns a session die, and its lease run out; return its key."""
    with settings.use(elsewhere(store)):
        await begin()
        worker_id = worker_of(store, "s")
        kill_worker()
    await asyncio.sleep(0.7)
    return worker_id


async def test_one_worker_runs_all_sessions_of_a_process(store: Settings) -> None:
    before = {*threading.enumerate()}
    async with AsyncExitStack() as sessions:
        for number in range(30):
            await sessions.enter_async_context(track_session(f"s{number}"))

        def block() -> None:
            with sync.track_session("blocking"):
                assert worker_of(store, "blocking") == worker_of(store, "s0")

        await asyncio.to_thread(block)
        assert len({worker_of(store, f"s{number}") for number in range(30)}) == 1
        more = {*threading.enumerate()} - before
        assert len([one for one in more if one.name == "tdev-worker"]) == 1
        assert len(more) < 40


async def test_what_a_dead_worker_ran_is_found_once_its_lease_has_ended(store: Settings) -> None:
    dead = elsewhere(store)
    with settings.use(dead):
        for number in range(3):
            await begin(f"s{number}")
        async with track_session("done"):
            pass
        kill_worker()
    assert not (await recover_sessions(finish)).completed
    assert not await get_failed_sessions()
    await asyncio.sleep(0.7)
    assert {one.session_id for one in await get_failed_sessions()} == {"s0", "s1", "s2"}
    assert not await get_failed_sessions(include_stalled=False)
    assert sorted((await recover_sessions(finish)).completed) == ["s0", "s1", "s2"]
    assert not await get_failed_sessions()


async def test_pages_of_a_dead_workers_sessions_are_whole(store: Settings) -> None:
    with settings.use(elsewhere(store)):
        for number in range(5):
            await begin(f"a{number}")
        kill_worker()
        await begin("b")
        kill_worker()
    await save_pipeline_session(session_id="failed", status="FAILED")
    await asyncio.sleep(0.7)
    found: list[str] = []
    cursor = None
    while True:
        page = await get_failed_sessions(limit=2, cursor=cursor)
        found += [one.session_id for one in page]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == ["a0", "a1", "a2", "a3", "a4", "b", "failed"]


async def test_a_claim_of_a_live_workers_session_is_refused(store: Settings) -> None:
    with settings.use(elsewhere(store, lease_seconds=30)):
        await begin()
    with pytest.raises(LeaseHeld, match=r"owned by .* \(claim 1\); it can be taken over once"):
        await track_session("s").__aenter__()


async def test_a_heartbeat_between_the_look_and_the_declaration_saves_the_worker(
    store: Settings,
) -> None:
    with settings.use(elsewhere(store)):
        await begin()
        worker_id = worker_of(store, "s")
        kill_worker()
    await asyncio.sleep(0.7)

    def beats() -> None:
        later = {"N": str(time.time() + 30)}
        raw.put_attribute(store, "pipeline-sessions", worker_id, due_at=later)

    with injected(Fault("before", operation="UpdateItem", between=beats, of_workers=True)):
        assert not await resume_pipeline("s")
    worker = raw.item(store, "pipeline-sessions", worker_id)
    assert worker is not None
    assert "died_at" not in worker


async def test_a_worker_that_was_declared_dead_keeps_what_nobody_took(store: Settings) -> None:
    with settings.use(elsewhere(store, lease_seconds=6)):
        taken, kept = await begin("taken"), await begin("kept")
        before = worker_of(store, "kept")
        raw.put_attribute(store, "pipeline-sessions", before, died_at={"N": "1"})
        with settings.use(store):
            assert await resume_pipeline("taken")

        def is_back() -> bool:
            return worker_of(store, "kept") != before and taken.owned.lost is not None

        assert await wait_until(is_back, asyncio.sleep, 0.05, 10)
        with settings.use(store):
            assert not await resume_pipeline("kept")
        assert (await get_pipeline_session("kept")).fence == 1
        async with kept.agent("parser") as run:
            run.output = 1
        with pytest.raises(LeaseLost):
            await taken.agent("parser").__aenter__()


async def test_the_waking_worker_and_the_claim_of_its_session_do_not_both_win(
    store: Settings,
) -> None:
    with settings.use(elsewhere(store)):
        await begin()
        worker_id = worker_of(store, "s")
        kill_worker()
    await asyncio.sleep(0.7)

    def comes_back() -> None:
        raw.put_attribute(store, "pipeline-sessions", "s", worker_id={"S": "#worker:new"})

    with injected(Fault("before", operation="UpdateItem", between=comes_back)):
        resume = await resume_pipeline("s")
    assert not resume
    assert worker_of(store, "s") != worker_id


async def test_a_claim_that_nobody_enters_runs_out_though_its_worker_lives(
    store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with settings.use(elsewhere(store)):
        resume = await resume_pipeline("s")
        assert resume
        assert not (await recover_sessions(finish)).completed
        await asyncio.sleep(0.7)
        assert [one.session_id for one in await get_failed_sessions()] == ["s"]
        assert (await recover_sessions(finish)).completed == ["s"]
        with pytest.raises(LeaseLost):
            await resume.__aenter__()


async def test_a_call_is_told_whether_a_claim_that_nobody_entered_has_run_out(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    resume = await resume_pipeline("s")
    for seconds, when in ((0, r"in \d+ s, unless it is entered"), (61, "now: nobody entered it")):
        with settings.use(strict_store, clock=clock(seconds)):
            with pytest.raises(LeaseHeld, match=f"it can be taken over {when};"):
                await save_pipeline_session(session_id="s", project_name="p")
    await resume.release()


async def test_an_entered_claim_lasts_as_long_as_its_worker(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with settings.use(elsewhere(store)):
        async with await resume_pipeline("s"):
            assert (await get_pipeline_session("s")).lease_expires is None
            await asyncio.sleep(0.8)
            assert not await resume_pipeline("s")
            assert not await get_failed_sessions()


async def test_a_claim_of_which_nobody_knows_the_outcome_is_handed_back(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with settings.use(elsewhere(store)):
        with (
            injected(Fault("unanswered", operation="UpdateItem")),
            pytest.raises(Unavailable),
        ):
            await track_session("s").__aenter__()
        assert (await get_pipeline_session("s")).status == "ACTIVE"

        def is_back() -> bool:
            session = raw.item(store, "pipeline-sessions", "s")
            return session is not None and "lease_token" not in session

        assert await wait_until(is_back, asyncio.sleep, 0.05, 10)
    assert (await recover_sessions(finish)).completed == ["s"]
    assert (await get_pipeline_session("s")).resumes_without_progress is None


async def abandon_again() -> None:
    with injected(Fault("unanswered", operation="UpdateItem")), pytest.raises(Unavailable):
        await abandon_session("s", "on call")
    await abandon_session("s", "on call")


async def force_unanswered() -> None:
    with injected(Fault("unanswered", operation="UpdateItem")), pytest.raises(Unavailable):
        await resume_pipeline("s", force=True)


@pytest.mark.parametrize(
    "by_others",
    [
        lambda: abandon_session("s", "on call"),
        abandon_again,
        lambda: resume_pipeline("s", force=True),
        force_unanswered,
    ],
    ids=["abandoned", "abandoned again", "forced", "forced unanswered"],
)
async def test_a_running_agent_is_cancelled_by_the_next_heartbeat(
    store: Settings, by_others: Callable[[], Coroutine[Any, Any, object]]
) -> None:
    with settings.use(elsewhere(store, lease_seconds=3)):
        begun = time.monotonic()
        with pytest.raises(LeaseLost, match="claim 1"):
            async with track_session("s") as session, session.agent("parser"):
                await asyncio.create_task(by_others(), context=Context())
                await asyncio.sleep(30)
    assert time.monotonic() - begun < 10


async def test_what_is_revoked_late_spares_a_later_claim(store: Settings) -> None:
    with settings.use(elsewhere(store)):
        await begin()
        worker_id = worker_of(store, "s")
        await abandon_session("s", "enough")
        later = await resume_pipeline("s", force=True)
        async with later:
            raw.put_attribute(
                store, "pipeline-sessions", worker_id, revoked={"SS": ["1 s", "1 other"]}
            )
            await asyncio.sleep(0.5)
            assert later.owned.lost is None
            worker = raw.item(store, "pipeline-sessions", worker_id)
            assert worker is not None
            assert "revoked" not in worker


async def test_a_revocation_makes_no_worker_of_one_that_is_gone(store: Settings) -> None:
    worker_id = await dead_worker(store)
    key = {"session_id": {"S": worker_id}}
    table = store.table_name("pipeline-sessions")
    aws.call(store, "DeleteItem", {"TableName": table, "Key": key})  # as TTL does
    async with track_session("s"):
        assert raw.item(store, "pipeline-sessions", worker_id) is None


@pytest.mark.calm
async def test_a_new_process_declares_nobody_dead_in_its_first_lease(store: Settings) -> None:
    with settings.use(elsewhere(store)):
        await begin()
        kill_worker()
    await asyncio.sleep(0.7)
    begun = time.monotonic()
    with settings.use(elsewhere(store, lease_seconds=1.5)):
        assert (await recover_sessions(finish)).completed == ["s"]  # waits, since it looks once
    assert 1.4 < time.monotonic() - begun < 10
    with settings.use(elsewhere(store)):
        await begin("t")
        kill_worker()
    await asyncio.sleep(0.7)
    with settings.use(elsewhere(store)):
        assert await resume_pipeline("t")  # who asks for one session gets it at once


async def test_who_was_declared_dead_meanwhile_keeps_that_moment(strict_store: Settings) -> None:
    worker_id = await dead_worker(strict_store)

    def meanwhile() -> None:
        raw.put_attribute(strict_store, "pipeline-sessions", worker_id, died_at={"N": "5"})

    fault = Fault("before", operation="UpdateItem", of_workers=True, between=meanwhile)
    with settings.use(elsewhere(strict_store)), injected(fault):
        assert await resume_pipeline("s")
    worker = raw.item(strict_store, "pipeline-sessions", worker_id)
    assert worker is not None
    assert worker["died_at"] == {"N": "5"}


@pytest.mark.calm
async def test_who_could_not_declare_for_an_outage_asks_again_whether_it_may(
    strict_store: Settings,
) -> None:
    worker_id = await dead_worker(strict_store)
    outage = Outage(3.0)

    def to_declare(send: settings.Transport) -> settings.Transport:
        away = outage.wrap(send)

        async def sent(operation: str, request: Any, /) -> dict[str, Any]:
            names = str(request.get("ExpressionAttributeNames"))
            declares = "died_at" in names and "draining" not in names  # which heartbeats say
            if declares and not outage.begun:
                outage.begin()
            return await away(operation, request)

        return sent

    with settings.use(elsewhere(strict_store, lease_seconds=1.2, transport=to_declare)):
        await begin("own")  # its heartbeats miss the store, too
        assert "owns it" in ((await resume_pipeline("s")).reason or "")
    assert outage.begun
    assert "died_at" not in (raw.item(strict_store, "pipeline-sessions", worker_id) or {})


@pytest.mark.calm
@pytest.mark.parametrize(("retry_seconds", "left_seconds"), [(0, 1.5), (20, 1.5), (20, 0.3)])
async def test_who_begins_in_an_outage_declares_nobody_dead_after_it(
    strict_store: Settings, retry_seconds: float, left_seconds: float
) -> None:
    """Whose lease seems over could not renew it."""
    worker_id = await dead_worker(strict_store)
    outage = Outage(left_seconds)
    outage.begin()
    begins = {"lease_seconds": 1.2, "transport": outage.wrap, "retry_seconds": retry_seconds}
    with settings.use(elsewhere(strict_store, **begins)):
        if not retry_seconds:
            with pytest.raises(Unavailable):
                await begin("own")
            await asyncio.sleep(left_seconds)
        await begin("own")
        assert "owns it" in ((await resume_pipeline("s")).reason or "")
        assert "died_at" not in (raw.item(strict_store, "pipeline-sessions", worker_id) or {})
        await asyncio.sleep(1.5)
        assert await resume_pipeline("s")


@pytest.mark.calm
async def test_a_short_silence_hides_no_long_one_before_it(strict_store: Settings) -> None:
    worker_id = await dead_worker(strict_store)
    outage = Outage(1.5)
    outage.begin()
    with settings.use(elsewhere(strict_store, lease_seconds=1.2, transport=outage.wrap)):
        await begin("own")
        outage.seconds = 0.1
        outage.begin()
        assert "owns it" in ((await resume_pipeline("s")).reason or "")
    assert "died_at" not in (raw.item(strict_store, "pipeline-sessions", worker_id) or {})


@pytest.mark.calm
async def test_after_an_outage_of_the_store_nobody_is_dead(strict_store: Settings) -> None:
    outage = Outage(3.0)
    both = [elsewhere(strict_store, lease_seconds=0.9, transport=outage.wrap) for _ in range(2)]
    sessions = []
    for number, one in enumerate(both):
        with settings.use(one):
            sessions.append(await begin(f"s{number}"))
    stop = asyncio.Event()

    async def watch(chosen: Settings) -> Any:
        with settings.use(chosen):
            return await recover_sessions(finish, poll_seconds=0.1, stop=stop)

    watching = [asyncio.create_task(watch(one)) for one in both]
    await asyncio.sleep(1)
    outage.begin()
    await asyncio.sleep(5)
    stop.set()
    for one in await asyncio.gather(*watching):
        assert (one.completed, one.failed, one.lost) == ([], [], [])
    for session in sessions:
        assert session.owned.lost is None
        assert (await get_pipeline_session(session.session_id)).fence == 1


async def out_of_touch(store: Settings, *, cancels: bool) -> None:
    outage = Outage(1.5)
    with settings.use(elsewhere(store, transport=outage.wrap, cancel_when_out_of_touch=cancels)):
        async with track_session("s") as session, session.agent("parser") as run:
            outage.begin()
            await asyncio.sleep(2)
            run.output = 1


async def test_out_of_touch_a_worker_goes_on(strict_store: Settings) -> None:
    await out_of_touch(strict_store, cancels=False)
    assert (await get_pipeline_session("s")).status == "COMPLETED"


async def test_out_of_touch_a_worker_stops_where_it_is_told_to(strict_store: Settings) -> None:
    with pytest.raises(LeaseLost, match="could not renew its lease"):
        await out_of_touch(strict_store, cancels=True)
    assert (await get_pipeline_session("s")).status == "ACTIVE"


async def test_a_worker_that_has_nothing_to_run_says_that_it_has_ended(store: Settings) -> None:
    with settings.use(elsewhere(store, lease_seconds=0.3)):
        async with track_session("s"):
            worker_id = worker_of(store, "s")

        def has_ended() -> bool:
            worker = raw.item(store, "pipeline-sessions", worker_id)
            return worker is not None and worker["status"] == {"S": "STOPPED"}

        assert await wait_until(has_ended, asyncio.sleep, 0.05, 10)
        async with track_session("t"):
            assert worker_of(store, "t") != worker_id


async def test_workers_of_settings_that_are_gone_are_forgotten(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_MOST_KEPT", 5)
    made = presence.Presence._all

    async def tracked(session_id: str) -> None:
        short = elsewhere(strict_store, lease_seconds=0.3)
        with settings.use(short, on_request=lambda event: None):
            async with track_session(session_id):
                pass

    async with track_session("kept"):
        for number in range(8):
            await tracked(f"s-{number}")

        def only_one_beats() -> bool:
            return sum(one._beats for one in made.values()) == 1

        assert await wait_until(only_one_beats, asyncio.sleep, 0.05, 10)
        await tracked("last")
        assert len(made) == 2
        assert [lease.session_id for lease in presence.Presence.all_held()] == ["kept"]


_ENDS_AFTER_IT_WAS_DECLARED_DEAD = """
import sys
from tdev_models import configure, settings, sync
from tests import raw
from tests.dying import worker_of

configure(endpoint=sys.argv[1], environment=sys.argv[2], region="us-east-1")
with sync.track_session("s"):
    worker_id = worker_of(settings.current(), "s")
raw.put_attribute(settings.current(), "pipeline-sessions", worker_id, died_at={"N": "1"})
print(worker_id)
"""


def test_a_worker_that_was_declared_dead_does_not_say_that_it_has_ended(
    strict_store: Settings,
) -> None:
    # What it had claimed, as far as others know, is looked for by its item.
    command = [sys.executable, "-c", _ENDS_AFTER_IT_WAS_DECLARED_DEAD]
    command += [str(strict_store.endpoint), strict_store.environment]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    worker = raw.item(strict_store, "pipeline-sessions", ended.stdout.strip())
    assert worker is not None
    assert worker["status"] == {"S": "WORKER"}
    assert "due_at" in worker


async def test_a_heartbeat_of_a_clock_that_was_set_back_does_not_shorten_the_lease(
    store: Settings,
) -> None:
    with settings.use(elsewhere(store, clock=clock(0))):
        await begin()
        worker_id = worker_of(store, "s")
        ends = str(time.time() + 1.1)  # as a clock a little ahead would have set it
        raw.put_attribute(store, "pipeline-sessions", worker_id, due_at={"N": ends})
        await asyncio.sleep(0.3)
        worker = raw.item(store, "pipeline-sessions", worker_id)
        assert worker is not None
        assert float(worker["due_at"]["N"]) >= float(ends)


@pytest.mark.parametrize("call", [save_pipeline_session, track_session])
async def test_no_session_has_a_workers_id(store: Settings, call: Any) -> None:
    with pytest.raises(InvalidRequest, match="must not begin with '#'"):
        await call(session_id="#worker:a:1:b")
