"""A recovering worker: its slots, what it takes, and what does not end it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from tdev_models import (
    ConfigurationError,
    InvalidRequest,
    Resume,
    Session,
    Settings,
    StoreError,
    get_pipeline_session,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
)
from tdev_models.settings import Transport
from tests import raw
from tests.dying import kill_worker
from tests.engine.pipelines import finish
from tests.engine.test_presence import elsewhere


async def failed(*names: str) -> None:
    for name in names:
        await save_pipeline_session(session_id=name, status="FAILED")


async def test_a_slow_session_blocks_only_its_slot(strict_store: Settings) -> None:
    """Not even the next polls of the others: what fails later is done before it ends."""
    await failed("slow", *(f"s{number}" for number in range(30)))
    stop, later_done, others_done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def runner(session: Resume) -> None:
        if session.session_id == "slow":
            await asyncio.wait_for(later_done.wait(), 30)
            stop.set()
        elif session.session_id == "later":
            later_done.set()
        done.append(session.session_id)
        if len(done) == 30:
            others_done.set()

    async def fail_later() -> None:
        await others_done.wait()
        await failed("later")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail_later())
        worker = group.create_task(
            recover_sessions(runner, concurrency=2, poll_seconds=0.1, stop=stop)
        )
    assert len(worker.result().completed) == 32
    assert done[-1] == "slow"


async def test_workers_that_race_seldom_meet(strict_store: Settings) -> None:
    names = [f"s{number:02}" for number in range(40)]
    await failed(*names)
    refused = 0

    def counting(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal refused
            try:
                return await send(operation, request)
            except Exception as error:
                refused += type(error).__name__ == "ConditionFailed"
                raise

        return sent

    async def runner(session: Resume) -> None:
        await asyncio.sleep(0.05)

    with settings.use(strict_store, transport=counting):
        results = await asyncio.gather(*(recover_sessions(runner) for _ in range(4)))
    assert sorted(name for one in results for name in one.completed) == names
    assert refused < 20


async def test_what_it_does_not_accept_is_left_to_others(strict_store: Settings) -> None:
    for name, kind in (("a", "SIMPLE"), ("b", "PRODUCTION")):
        await save_pipeline_session(
            session_id=name, status="FAILED", pipeline_type=kind, metadata={"k": name}
        )
    asked: list[Session] = []

    def accepts(session: Session) -> bool:
        asked.append(session)
        return session.pipeline_type == "SIMPLE"

    before = raw.item(strict_store, "pipeline-sessions", "b")
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(1.0, stop.set)
    done = await recover_sessions(finish, accepts=accepts, poll_seconds=0.1, stop=stop)
    assert (done.completed, done.lost) == (["a"], [])
    assert raw.item(strict_store, "pipeline-sessions", "b") == before
    # Once each, however often it looks.
    assert sorted(session.metadata["k"] for session in asked) == ["a", "b"]


async def test_what_it_did_not_accept_is_asked_for_anew_once_another_worker_had_it(
    strict_store: Settings,
) -> None:
    """And died of it: found by its worker, it does not show that it was written."""
    asked, stop, known = asyncio.Event(), asyncio.Event(), {"first"}

    def accepts(session: Session) -> bool:
        asked.set()
        return session.metadata["kind"] in known

    await save_pipeline_session(session_id="s", status="FAILED", metadata={"kind": "second"})
    recovering = asyncio.create_task(
        recover_sessions(finish, accepts=accepts, poll_seconds=0.1, stop=stop)
    )
    try:
        await asked.wait()
        known.add("second")
        with settings.use(elsewhere(strict_store)):
            dead = await resume_pipeline("s")
            await asyncio.create_task(dead.__aenter__())
            kill_worker()
        for _ in range(150):
            if (await get_pipeline_session("s")).status == "COMPLETED":
                break
            await asyncio.sleep(0.1)
    finally:
        stop.set()
        done = await recovering
    assert done.completed == ["s"]


class Custom(BaseException):
    pass


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), ValueError("x")])
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_what_a_runner_raises_ends_its_session_alone(
    strict_store: Settings, error: BaseException, concurrency: int
) -> None:
    await failed("a", "b", "c")

    async def runner(session: Resume) -> None:
        if session.session_id == "b":
            raise error

    done = await recover_sessions(runner, concurrency=concurrency)
    assert (done.failed, sorted(done.completed)) == (["b"], ["a", "c"])
    text = (await get_pipeline_session("b")).error_message or ""
    assert type(error).__name__ in text


@pytest.mark.parametrize("concurrency", [1, 3])
def test_sys_exit_in_a_blocking_runner_ends_its_session_alone(
    strict_store: Settings, concurrency: int
) -> None:
    for name in "abc":
        sync.save_pipeline_session(session_id=name, status="FAILED")

    def runner(session: Resume) -> None:
        if session.session_id == "b":
            raise SystemExit

    done = sync.recover_sessions(runner, concurrency=concurrency)
    assert (done.failed, sorted(done.completed)) == (["b"], ["a", "c"])


@pytest.mark.parametrize(
    "error", [ConfigurationError("ExpiredTokenException"), StoreError("New", 400, "unknown")]
)
async def test_sessions_that_cannot_be_found_for_a_while_end_no_worker(
    strict_store: Settings, error: Exception
) -> None:
    stop, refused, queries = asyncio.Event(), asyncio.Event(), 0

    def failing(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            nonlocal queries
            queries += operation == "Query"
            if operation == "Query" and 3 <= queries <= 6:
                refused.set()
                raise error
            return await send(operation, request)

        return sent

    async def runner(session: Resume) -> None:
        stop.set()

    with settings.use(strict_store, transport=failing):
        worker = asyncio.create_task(recover_sessions(runner, poll_seconds=0.05, stop=stop))
        await refused.wait()
        await failed("s")
        assert (await asyncio.wait_for(worker, 20)).completed == ["s"]


async def test_a_worker_that_was_never_allowed_to_look_says_so(strict_store: Settings) -> None:
    elsewhere = settings.use(strict_store, environment="nowhere")
    with elsewhere, pytest.raises(ConfigurationError, match="create the tables"):
        await recover_sessions(finish, poll_seconds=0.05)


async def test_what_a_runner_leaves_in_its_context_is_not_there_for_the_next(
    strict_store: Settings,
) -> None:
    await failed("a", "b", "c")
    seen: list[str | None] = []
    user: contextvars.ContextVar[str | None] = contextvars.ContextVar("user", default=None)

    async def runner(session: Resume) -> None:
        seen.append(user.get())
        user.set(session.session_id)

    await recover_sessions(runner)
    assert seen == [None] * 3


def generator(session: Resume) -> Iterator[int]:
    yield 1


async def async_generator(session: Resume) -> AsyncIterator[int]:
    yield 1


class Callable_:
    async def __call__(self, session: Resume) -> None: ...


@pytest.mark.parametrize("runner", [generator, async_generator])
async def test_a_generator_is_no_runner(strict_store: Settings, runner: Any) -> None:
    await failed("s")
    before = raw.item(strict_store, "pipeline-sessions", "s")
    for call in (lambda: recover_sessions(runner), lambda: resume_pipeline("s", runner)):
        with pytest.raises(InvalidRequest, match="runner: is a generator"):
            await call()
    assert raw.item(strict_store, "pipeline-sessions", "s") == before


def test_an_object_that_is_async_when_called_is_refused_where_nobody_awaits(
    strict_store: Settings,
) -> None:
    with pytest.raises(InvalidRequest, match="runner: is async"):
        sync.recover_sessions(Callable_())


def test_slots_of_a_blocking_worker_go_on_while_one_is_slow(strict_store: Settings) -> None:
    for name in ("slow", *(f"s{number}" for number in range(8))):
        sync.save_pipeline_session(session_id=name, status="FAILED")
    done: list[str] = []

    def runner(session: Resume) -> None:
        deadline = time.monotonic() + 20
        while session.session_id == "slow" and len(done) < 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        done.append(session.session_id)

    assert len(sync.recover_sessions(runner, concurrency=2).completed) == 9
    assert done[-1] == "slow"


def test_what_ends_one_slot_of_a_blocking_worker_ends_them_all(strict_store: Settings) -> None:
    class Aborted(BaseException):
        pass

    for name in "ab":
        sync.save_pipeline_session(session_id=name, status="FAILED")
    stop, both = threading.Event(), threading.Barrier(2)
    too_late = threading.Timer(20, stop.set)
    too_late.start()

    def runner(session: Resume) -> None:
        both.wait(10)
        if threading.current_thread().name == "tdev-job_1":
            raise Aborted

    with pytest.raises(Aborted):
        sync.recover_sessions(runner, concurrency=2, stop=stop, poll_seconds=0.1)
    too_late.cancel()
    assert not stop.is_set()


def end(how: str, number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # is no longer registered when it exits
    sys.exit(f"{how} by signal {number}")


class End:
    def __call__(self, number: int, frame: Any) -> None:
        end("ended", number, frame)


@pytest.fixture(params=[partial(end, "ended"), End(), lambda *signal: end("ended", *signal)])
def terminated(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGTERM raises SystemExit, as many programs let it."""
    before = signal.signal(signal.SIGTERM, request.param)
    yield
    signal.signal(signal.SIGTERM, before)


def handed_back(name: str) -> bool:
    session = sync.get_pipeline_session(name)
    return (session.status, session.lease_owner, session.error_message) == ("ACTIVE", None, None)


@pytest.mark.usefixtures("terminated")
def test_a_signal_handler_that_exits_ends_a_blocking_worker_and_hands_back(
    strict_store: Settings,
) -> None:
    for name in "ab":
        sync.save_pipeline_session(session_id=name, status="FAILED")
    ran: list[str] = []

    def runner(session: Resume) -> None:
        ran.append(session.session_id)
        with session.agent("nl_input"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(SystemExit, match="ended by signal 15"):
        sync.recover_sessions(runner)
    (name,) = ran
    assert handed_back(name)
    assert sync.get_agent_execution(f"{name}-nl_input").status == "PENDING"
    assert len(sync.get_failed_sessions()) == 2


@pytest.mark.usefixtures("terminated")
@pytest.mark.parametrize("busy", [True, False])
def test_a_signal_handler_that_exits_ends_an_event_loop_and_hands_back(
    strict_store: Settings, busy: bool
) -> None:
    for name in "abc":
        sync.save_pipeline_session(session_id=name, status="FAILED")
    ran: list[str] = []

    async def runner(session: Resume) -> None:
        ran.append(session.session_id)
        if len(ran) == 2 and not busy:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        elif len(ran) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # noqa: ASYNC251 (the signal reaches the main thread here)
        await asyncio.sleep(10)

    with pytest.raises(SystemExit, match="ended by signal 15"):
        asyncio.run(recover_sessions(runner, concurrency=2))
    assert len(ran) == 2
    assert all(handed_back(name) for name in ran)
