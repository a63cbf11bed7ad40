"""What goes wrong around a worker's presence, and holds no session for ever for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import pytest

from tdev_models import (
    Settings,
    get_agent_execution,
    get_failed_sessions,
    get_pipeline_session,
    list_workers,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tdev_models.dynamodb.async_client import AsyncClient
from tdev_models.errors import StoreError, Throttled, Unavailable
from tdev_models.retry import wait_until
from tdev_models.settings import Transport
from tdev_models.workers.presence import Presence
from tests import raw
from tests.dying import kill_worker, worker_of
from tests.engine.pipelines import fail, finish
from tests.engine.test_presence import begin, elsewhere
from tests.faults import Fault, Outage, injected


class Refusing:
    """A store that refuses some of the writes of sessions, and takes all of workers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.refused = error, 0

    def wrap(self, send: Transport) -> Transport:
        async def refusing(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            is_session = operation == "UpdateItem" and "#worker:" not in str(request["Key"])
            if self.error is not None and is_session:
                self.refused += 1
                raise self.error
            return await send(operation, request)

        return refusing


def handed_back(store: Settings, session_id: str) -> bool:
    session = raw.item(store, "pipeline-sessions", session_id)
    return session is not None and "lease_token" not in session


async def test_what_could_not_be_handed_back_is_once_the_store_is_there(
    strict_store: Settings,
) -> None:
    outage = Outage(3)

    async def run() -> None:
        async with track_session("s"):
            outage.begin()
            await asyncio.sleep(30)

    with settings.use(elsewhere(strict_store, transport=outage.wrap)):
        task = asyncio.create_task(run())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not handed_back(strict_store, "s")
        assert await wait_until(lambda: handed_back(strict_store, "s"), asyncio.sleep, 0.05, 8)
    assert (await recover_sessions(finish)).completed == ["s"]


async def test_an_end_that_could_not_be_stored_leaves_the_session_to_others(
    strict_store: Settings,
) -> None:
    refusing = Refusing()
    own = elsewhere(strict_store, transport=refusing.wrap, owner_retry_seconds=0)
    with settings.use(own):
        with pytest.raises(Throttled):
            async with track_session("s"):
                refusing.error = Throttled("injected")
        refusing.error = None
        assert await wait_until(lambda: handed_back(strict_store, "s"), asyncio.sleep, 0.05, 8)


async def test_a_resume_that_cannot_mark_its_beginning_hands_the_session_back(
    strict_store: Settings,
) -> None:
    await fail("s")
    broken = Fault("broken", operation="TransactWriteItems")
    with settings.use(elsewhere(strict_store)):
        with injected(broken), pytest.raises(StoreError):
            await resume_pipeline("s", finish, "parser")
        assert handed_back(strict_store, "s")


async def drain_in(work: Coroutine[Any, Any, None]) -> None:
    """Do work in which this process begins to drain, which cancels it."""
    try:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work)
    finally:
        Presence.draining = False


async def test_what_drains_in_a_group_of_tasks_is_not_completed(strict_store: Settings) -> None:
    ended: list[str] = []

    async def run() -> None:
        async with track_session("s") as session, asyncio.TaskGroup() as group:

            async def agent(name: str, after: float) -> None:
                await asyncio.sleep(after)
                async with session.agent(name) as run:
                    Presence.draining = True
                    await asyncio.sleep(0.3)
                    run.output = 1
                    ended.append(name)

            group.create_task(agent("parser", 0))
            group.create_task(agent("search", 0.2))
        pytest.fail("the task goes on")

    await drain_in(run())
    assert ended == ["parser"]
    assert (await get_pipeline_session("s")).status == "ACTIVE"
    assert (await recover_sessions(finish)).completed == ["s"]


@pytest.mark.parametrize("group", ["TaskGroup", "gather"])
async def test_an_agent_whose_inner_ones_drain_is_not_completed(
    strict_store: Settings, group: str
) -> None:
    async def run() -> None:
        async with track_session("s") as session, session.agent("parser") as run:
            Presence.draining = True
            if group == "gather":
                await asyncio.gather(session.run("part", dict))
            else:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(session.run("part", dict))
            run.output = "without its part"

    await drain_in(run())
    assert (await get_pipeline_session("s")).status == "ACTIVE"
    execution = await get_agent_execution("s-parser")
    assert (execution.status, execution.output_data) == ("PENDING", None)
    assert [attempt.status for attempt in execution.attempts] == ["CANCELLED"]


@pytest.mark.parametrize("begun", [False, True])
async def test_what_drains_inside_an_agent_or_a_session_completes_neither(
    strict_store: Settings, begun: bool
) -> None:
    async def inner() -> None:
        Presence.draining = not begun
        async with track_session("inner") as session:
            Presence.draining = True
            await session.run("search", dict)

    async def run() -> None:
        async with track_session("s") as session, session.agent("parser"):
            async with asyncio.TaskGroup() as group:
                group.create_task(inner())

    await drain_in(run())
    assert (await get_pipeline_session("s")).status == "ACTIVE"
    assert (await get_agent_execution("s-parser")).status == "PENDING"


async def test_what_drains_before_an_inner_session_is_not_completed(
    strict_store: Settings,
) -> None:
    async def inner() -> None:
        await track_session("inner").__aenter__()

    async def run() -> None:
        async with track_session("s"):
            Presence.draining = True
            async with asyncio.TaskGroup() as group:
                group.create_task(inner())

    await drain_in(run())
    assert (await get_pipeline_session("s")).status == "ACTIVE"
    assert handed_back(strict_store, "s")


async def test_a_claim_that_is_entered_after_its_worker_has_ended_is_kept_alive(
    strict_store: Settings,
) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    with settings.use(elsewhere(strict_store, lease_seconds=0.3)):
        resume = await resume_pipeline("s")
        await asyncio.sleep(1.2)  # the claim has run out, and its worker has ended
        async with resume:
            assert not await resume_pipeline("s")
            await asyncio.sleep(0.6)
            assert not await get_failed_sessions()
            assert not await resume_pipeline("s")


async def test_a_claim_under_way_while_its_worker_is_declared_dead_is_kept(
    strict_store: Settings,
) -> None:
    begun = threading.Event()

    def slow(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            reply = await send(operation, request)
            is_claim = operation == "UpdateItem" and "'late'" in str(request["Key"])
            if is_claim and not begun.is_set():
                begun.set()
                await asyncio.sleep(1.5)
            return reply

        return sent

    with settings.use(elsewhere(strict_store, lease_seconds=3, transport=slow)):
        await begin("first")
        former = worker_of(strict_store, "first")
        late = asyncio.create_task(begin("late"))
        await asyncio.sleep(0.2)
        raw.put_attribute(strict_store, "pipeline-sessions", former, died_at={"N": "1"})
        await late
        assert worker_of(strict_store, "first") != former

        def is_there() -> bool:
            return worker_of(strict_store, "late") == worker_of(strict_store, "first")

        assert await wait_until(is_there, asyncio.sleep, 0.05, 3)


async def test_claims_of_unknown_outcome_delay_no_heartbeat(strict_store: Settings) -> None:
    refusing = Refusing()
    with settings.use(elsewhere(strict_store, transport=refusing.wrap, retry_seconds=0)):
        await begin("held")
        for number in range(3):
            await save_pipeline_session(session_id=f"s{number}", status="FAILED")
        refusing.error = Unavailable("injected")
        for number in range(3):
            with pytest.raises(Unavailable):
                await track_session(f"s{number}").__aenter__()
        presence = Presence.of(settings.current())
        worst = 0.0
        for _ in range(60):
            await asyncio.sleep(0.05)
            worst = max(worst, time.monotonic() - presence._renewed)
        assert worst < 0.5
        refusing.error = None

        def are_settled() -> bool:
            return all(handed_back(strict_store, f"s{number}") for number in range(3))

        assert await wait_until(are_settled, asyncio.sleep, 0.05, 8)


async def test_handing_back_an_unknown_claim_delays_no_heartbeat(strict_store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    claims = 0

    def wrap(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            nonlocal claims
            if operation == "UpdateItem" and request["Key"] == {"session_id": {"S": "s"}}:
                claims += 1
                if claims == 1:
                    await send(operation, request)
                    raise Unavailable("injected: the reply was lost")
                if 2 < claims < 30 and threading.current_thread().name == "tdev-worker":
                    raise Throttled("injected")
            return await send(operation, request)

        return sent

    with settings.use(elsewhere(strict_store, transport=wrap, retry_seconds=0)):
        await begin("held")
        with pytest.raises(Unavailable):
            await track_session("s").__aenter__()
        presence = Presence.of(settings.current())
        worst = 0.0
        for _ in range(60):
            await asyncio.sleep(0.05)
            worst = max(worst, time.monotonic() - presence._renewed)
        assert worst < 0.5


async def test_one_claim_that_cannot_be_settled_keeps_no_other_from_it(
    strict_store: Settings,
) -> None:
    with settings.use(elsewhere(strict_store)):
        await begin("held")
        presence, settled = Presence.of(settings.current()), threading.Event()

        async def never(client: Any) -> None:
            raise StoreError("Injected", 400, "broken")

        async def soon(client: Any) -> None:
            settled.set()

        presence.settle(never)
        presence.settle(soon)
        assert await wait_until(settled.is_set, asyncio.sleep, 0.05, 3)


async def test_a_task_that_is_cancelled_after_its_claim_hands_it_back(
    strict_store: Settings,
) -> None:
    with settings.use(elsewhere(strict_store)):
        await begin("s")
        dead = worker_of(strict_store, "s")
        kill_worker()
    await asyncio.sleep(0.7)
    revoked = asyncio.Event()

    def wrap(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            is_revoked = "revoked" in str(request) and request["Key"]["session_id"] == {"S": dead}
            if is_revoked and not revoked.is_set():
                revoked.set()
                await asyncio.sleep(30)
            return await send(operation, request)

        return sent

    with settings.use(elsewhere(strict_store, transport=wrap)):
        task = asyncio.create_task(track_session("s").__aenter__())
        await revoked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await wait_until(lambda: handed_back(strict_store, "s"), asyncio.sleep, 0.05, 5)


async def recovered_soon(store: Settings, session_id: str, older_than: Any = None) -> bool:
    """Return whether a polling worker completes a session whose worker dies while it looks on."""
    stop = asyncio.Event()
    watch = asyncio.create_task(
        recover_sessions(finish, poll_seconds=0.1, stop=stop, older_than=older_than)
    )
    await asyncio.sleep(0.5)
    for made in [*Presence._all]:
        if made != settings.current():
            kill_worker(made)
    for _ in range(80):
        await asyncio.sleep(0.05)
        if (await get_pipeline_session(session_id)).status == "COMPLETED":
            break
    stop.set()
    return session_id in (await watch).completed


async def test_a_long_quiet_session_is_found_as_soon_as_its_worker_has_died(
    strict_store: Settings,
) -> None:
    with settings.use(elsewhere(strict_store)):
        await begin("s")
        past = {"N": str(time.time() - 10)}
        raw.put_attribute(strict_store, "pipeline-sessions", "s", due_at=past)
    assert await recovered_soon(strict_store, "s")


async def test_a_dead_workers_session_is_taken_once_it_is_old_enough(
    strict_store: Settings,
) -> None:
    with settings.use(elsewhere(strict_store)):
        await begin("s")
        kill_worker()
    await asyncio.sleep(0.7)
    assert await recovered_soon(strict_store, "s", timedelta(seconds=2))


async def test_a_page_begins_after_a_worker_that_has_come_back(strict_store: Settings) -> None:
    other = elsewhere(strict_store)
    with settings.use(other):
        await begin("b")
    with settings.use(elsewhere(strict_store)):
        for number in range(3):
            await begin(f"a{number}")
        first = worker_of(strict_store, "a0")
        kill_worker()
    await asyncio.sleep(0.4)
    kill_worker(other)
    await asyncio.sleep(0.7)
    page = await get_failed_sessions(limit=2)
    assert len(page) == 2
    later = {"N": str(time.time() + 30)}
    raw.put_attribute(strict_store, "pipeline-sessions", first, due_at=later)
    rest = await get_failed_sessions(limit=2, cursor=page.cursor)
    assert [one.session_id for one in rest] == ["b"]


async def test_a_worker_whose_thread_cannot_start_has_not_begun(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "tdev-worker":
            raise RuntimeError("can't start new thread")
        start(thread)

    with settings.use(elsewhere(strict_store)):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refused)
            with pytest.raises(RuntimeError, match="can't start"):
                await begin("s")
        await begin("s")
        await asyncio.sleep(0.8)
        assert not await get_failed_sessions()
        assert not await resume_pipeline("s")


async def test_sessions_that_begin_at_once_do_not_wait_for_a_worker_one_after_the_other(
    strict_store: Settings,
) -> None:
    def throttling(send: Transport) -> Transport:
        async def throttled(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if operation == "UpdateItem" and "#worker:" in str(request["Key"]):
                raise Throttled("injected")
            return await send(operation, request)

        return throttled

    async def refused(number: int) -> None:
        with pytest.raises(Throttled):
            await track_session(f"s{number}").__aenter__()

    begun = time.monotonic()
    with settings.use(strict_store, transport=throttling, retry_seconds=0.5):
        await asyncio.gather(*map(refused, range(20)))
    assert time.monotonic() - begun < 3


async def test_sessions_of_a_former_id_are_not_asked_for_without_a_pause(
    strict_store: Settings,
) -> None:
    refusing = Refusing()
    with settings.use(elsewhere(strict_store, lease_seconds=3, transport=refusing.wrap)):
        await begin("s")
        await begin("t")
        former = worker_of(strict_store, "s")
        refusing.error = Throttled("injected")
        raw.put_attribute(strict_store, "pipeline-sessions", former, died_at={"N": "1"})
        await asyncio.sleep(3)
        assert 0 < refusing.refused <= 12
        refusing.error = None

        def is_back() -> bool:
            return former not in {worker_of(strict_store, one) for one in ("s", "t")}

        assert await wait_until(is_back, asyncio.sleep, 0.05, 5)


async def test_a_worker_outlives_a_clock_that_fails(strict_store: Settings) -> None:
    broken = threading.Event()

    def now() -> float:
        if broken.is_set() and threading.current_thread().name == "tdev-worker":
            raise OSError("injected")
        return time.time()

    with settings.use(elsewhere(strict_store, lease_seconds=1.2, clock=now)):
        await begin("s")
        broken.set()
        await asyncio.sleep(0.6)
        broken.clear()
        await asyncio.sleep(1.5)
        assert not await resume_pipeline("s")


async def test_a_worker_outlives_a_transport_that_suspends_in_its_heartbeats(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    suspends = threading.Event()

    def suspending(send: Transport) -> Transport:
        async def suspended(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if suspends.is_set():
                await asyncio.sleep(0)
            return await send(operation, request)

        return suspended

    with settings.use(elsewhere(strict_store, lease_seconds=3, transport=suspending)):
        await begin("s")
        suspends.set()
        for _ in range(600):  # until two heartbeats have met it
            if caplog.text.count("must not suspend") > 1:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("no heartbeat was sent")
        suspends.clear()
        await asyncio.sleep(3.3)
        assert not await resume_pipeline("s")


async def test_a_task_is_cancelled_though_its_loop_is_closed_at_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    cancellers: list[Any] = []

    async def make() -> None:
        cancellers.append(AsyncClient.for_settings().task_canceller())

    await asyncio.to_thread(loop.run_until_complete, make())
    loop.close()
    monkeypatch.setattr(loop, "is_closed", lambda: False)  # it was open a moment ago
    cancellers[0].cancel()


async def test_a_blocking_claim_does_not_wait_for_a_registration_of_its_own_loop(
    strict_store: Settings,
) -> None:
    registering = asyncio.Event()

    def wrap(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            in_loop = threading.current_thread() is threading.main_thread()
            if operation == "UpdateItem" and in_loop and not registering.is_set():
                registering.set()
                await asyncio.sleep(0.2)
            return await send(operation, request)

        return sent

    with settings.use(elsewhere(strict_store, transport=wrap)):
        first = asyncio.create_task(begin("s"))
        await registering.wait()
        with pytest.raises(RuntimeError, match="a blocking call met an awaitable one"):
            sync.track_session("t").__enter__()
        await first


@pytest.mark.parametrize("blocking", [False, True])
async def test_nobody_waits_for_ever_for_a_registration_in_a_loop_that_was_stopped(
    strict_store: Settings, blocking: bool
) -> None:
    registering, stopped = threading.Event(), asyncio.new_event_loop()
    left: list[asyncio.Task[Any]] = []
    thread, loop = ThreadPoolExecutor(1), asyncio.get_running_loop()
    before = set(threading.enumerate())

    def wrap(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if operation == "UpdateItem" and not registering.is_set():
                registering.set()
                await asyncio.sleep(0.1)
                stopped.stop()
                await asyncio.sleep(0.1)
            return await send(operation, request)

        return sent

    def track() -> None:
        with sync.track_session("t"):
            """Do nothing."""

    def stop_in_the_middle() -> None:
        left.append(stopped.create_task(begin("s")))
        stopped.run_forever()

    short = {"retry_seconds": 0.5, "connect_timeout_seconds": 0.5, "read_timeout_seconds": 1}
    with settings.use(elsewhere(strict_store, transport=wrap, lease_seconds=5, **short)):
        await loop.run_in_executor(thread, copy_context().run, stop_in_the_middle)
        async with asyncio.timeout(15):
            if blocking:
                await asyncio.to_thread(track)
            else:
                async with track_session("t"):
                    """Do nothing."""
        # What goes on later makes no second heartbeat.
        for last in (left[0], stopped.shutdown_asyncgens()):  # the latter closes its connections
            await loop.run_in_executor(thread, stopped.run_until_complete, last)
        begun = [one.name for one in set(threading.enumerate()) - before]
    stopped.close()
    thread.shutdown()
    assert (await get_pipeline_session("t")).status == "COMPLETED"
    assert (await get_pipeline_session("s")).status == "ACTIVE"
    assert begun.count("tdev-worker") == 1


async def test_a_slow_heartbeat_counts_from_when_it_was_sent(strict_store: Settings) -> None:
    slow = threading.Event()

    def wrap(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if slow.is_set() and threading.current_thread().name == "tdev-worker":
                time.sleep(1)  # noqa: ASYNC251
            return await send(operation, request)

        return sent

    with settings.use(elsewhere(strict_store, transport=wrap, cancel_when_out_of_touch=True)):
        session = await begin("s")
        slow.set()
        lost = lambda: session.owned.lost is not None  # noqa: E731
        assert await wait_until(lost, asyncio.sleep, 0.05, 3)


async def test_a_worker_whose_item_has_expired_takes_a_new_id(strict_store: Settings) -> None:
    with settings.use(elsewhere(strict_store, lease_seconds=1.2)):
        await begin("s")
        former = worker_of(strict_store, "s")
        raw.delete(strict_store, "pipeline-sessions", former)

        def has_another() -> bool:
            return worker_of(strict_store, "s") != former

        assert await wait_until(has_another, asyncio.sleep, 0.05, 3)
        assert raw.item(strict_store, "pipeline-sessions", former) is None


async def test_claims_name_no_worker_that_is_not_stored_yet(strict_store: Settings) -> None:
    """Nobody would look for the sessions of one that dies before it is, until they are due."""
    known, tried = "", threading.Event()

    def only_known(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            key = str(request.get("Key"))
            if known and operation == "UpdateItem" and "#worker:" in key and known not in key:
                tried.set()
                raise Unavailable("injected: away")
            return await send(operation, request)

        return sent

    with settings.use(elsewhere(strict_store, transport=only_known, lease_seconds=3)):
        await begin("a")
        known = worker_of(strict_store, "a")
        raw.put_attribute(strict_store, "pipeline-sessions", known, died_at={"N": "1"})
        assert await asyncio.to_thread(tried.wait, 10)  # it is to be registered anew
        await begin("b")
        named = worker_of(strict_store, "b")
    assert raw.item(strict_store, "pipeline-sessions", named) is not None


async def test_a_worker_that_was_declared_dead_before_it_knew_its_id_takes_another(
    strict_store: Settings,
) -> None:
    """Its registration was carried out, all replies were lost, and its lease ended since."""
    lost = Fault("unanswered", operation="UpdateItem", of_workers=True)
    with settings.use(elsewhere(strict_store)), injected(lost):
        with pytest.raises(Unavailable):
            await begin("s")
        (unknown,) = await list_workers()
        worker_id = f"#worker:{unknown.name}"
        raw.put_attribute(strict_store, "pipeline-sessions", worker_id, died_at={"N": "1"})
        await begin("s")
    assert worker_of(strict_store, "s") != worker_id
