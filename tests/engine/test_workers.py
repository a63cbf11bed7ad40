"""Who works, of which release; and how a worker ends."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tdev_models import (
    ConfigurationError,
    InvalidRequest,
    LeaseHeld,
    LeaseLost,
    Settings,
    abandon_session,
    get_agent_execution,
    get_failed_sessions,
    get_pipeline_session,
    handle_sigterm,
    list_workers,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tdev_models.workers.presence import Presence, stop_idle
from tests import raw
from tests.dying import kill_worker
from tests.engine.pipelines import fail, finish
from tests.faults import Fault, injected


async def test_a_worker_is_listed_from_its_first_session_until_it_ends(store: Settings) -> None:
    assert await list_workers() == []
    begun = time.time()
    with settings.use(store, lease_seconds=0.6, release="2.7.1"):
        async with track_session("s"), track_session("t"):
            await asyncio.sleep(0.3)  # a beat says how many there are
            (alive,) = await list_workers()
            assert (alive.state, alive.sessions, alive.release) == ("ALIVE", 2, "2.7.1")
            assert alive.name == (await get_pipeline_session("s")).lease_owner
            assert alive.name.startswith(f"{alive.host}:{os.getpid()}:")
            assert begun - 1 < (alive.started_at or 0) < begun + 5
            assert (alive.lease_expires or 0) > time.time()
            kill_worker()
        await asyncio.sleep(0.7)
        (silent,) = await list_workers()
        assert (silent.state, silent.died_at) == ("SILENT", None)
        raw.put_attribute(
            store, "pipeline-sessions", f"#worker:{alive.name}", died_at={"N": "1.9e9"}
        )
        (dead,) = await list_workers()
        assert (dead.state, dead.died_at) == ("DEAD", 1.9e9)
        raw.put_attribute(
            store, "pipeline-sessions", f"#worker:{alive.name}", status={"S": "STOPPED"}
        )
        assert await list_workers() == []


@pytest.mark.parametrize("where", ["agent", "task group", "failing agent", "end"])
async def test_who_lost_a_session_and_ends_before_the_next_beat_is_no_worker_any_more(
    store: Settings, where: str
) -> None:
    async def abandon() -> None:
        outside = contextvars.Context()
        await asyncio.create_task(abandon_session("s", "why"), context=outside)

    async def agent(session: Any) -> None:
        async with session.agent("parser"):
            await abandon()
            if where == "failing agent":
                raise KeyError

    with pytest.raises((LeaseLost, ExceptionGroup, KeyError)):
        async with track_session("s") as session:
            if where == "task group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(agent(session))
            elif where == "end":
                await abandon()
            else:
                await agent(session)
    stop_idle()
    assert await list_workers() == []


async def test_workers_come_in_pages_and_no_session_is_among_them(store: Settings) -> None:
    for number in range(5):
        with settings.use(store, release=f"{number}"):
            async with track_session(f"s{number}"):
                pass
    first = await list_workers(limit=3)
    rest = await list_workers(limit=3, cursor=first.cursor)
    assert [one.release for one in (*first, *rest)] == ["4", "3", "2", "1", "0"]
    with pytest.raises(InvalidRequest):
        await list_workers(limit=101)


@pytest.mark.parametrize(
    ("began", "own", "takes"),
    [
        ("2.10", "2.9", False),
        ("v2.10", "2.10.0", True),
        ("2.10", "2.10.1", True),
        ("3", "abc", True),
        ("abc", "3", True),
        (None, "1", True),
        ("3", None, True),
    ],
)
async def test_an_older_release_leaves_what_a_newer_one_began(
    strict_store: Settings, began: str | None, own: str | None, takes: bool
) -> None:
    with settings.use(strict_store, release=began):
        await fail("s")
        assert (await get_pipeline_session("s")).release == began
    with settings.use(strict_store, release=own):
        recovered = (await recover_sessions(finish)).completed == ["s"]
        assert recovered is takes
        if not takes:
            with pytest.raises(LeaseHeld, match=r"release 2\.10 began it, and this .* 2\.9"):
                await track_session("s").__aenter__()
            assert "release 2.10 began it" in ((await resume_pipeline("s")).reason or "")
            assert await resume_pipeline("s", finish, force=True)
            assert (await get_pipeline_session("s")).release == own


@pytest.mark.parametrize("release", ["", "x" * 201, 7])
def test_a_release_is_a_short_text(release: Any) -> None:
    with pytest.raises(InvalidRequest, match="release"):
        Settings(release=release)


async def test_a_released_session_is_taken_by_the_next_look(store: Settings) -> None:
    async with track_session("s") as session:
        async with session.agent("parser") as run:
            run.output = 1
        await session.release()
        assert (await recover_sessions(finish)).completed == ["s"]
        with pytest.raises(LeaseLost):
            await session.agent("search").__aenter__()
    done = await get_pipeline_session("s")
    assert (done.status, done.resume_count, done.worker_deaths) == ("COMPLETED", None, None)
    with sync.track_session("t") as blocking:
        blocking.release()
    assert [one.session_id for one in await get_failed_sessions()] == ["t"]


@pytest.fixture
def draining() -> Iterator[None]:
    """Let this process drain, in one test."""
    Presence.draining = True
    yield
    Presence.draining = False


@pytest.mark.usefixtures("draining")
async def test_who_drains_begins_nothing_and_hands_back(store: Settings) -> None:
    await save_pipeline_session(session_id="waits", status="FAILED")
    assert (await recover_sessions(finish)).completed == []

    async def track() -> None:
        async with track_session("new"):
            pytest.fail("no session begins")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(track())
    with pytest.raises(SystemExit):
        sync.track_session("new").__enter__()


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("how", ["event loop", "blocking"])
async def test_a_recovering_worker_that_drains_ends_and_fails_nothing(
    strict_store: Settings, how: str, concurrency: int
) -> None:
    for number in range(4):
        await save_pipeline_session(session_id=f"s{number}", status="FAILED")

    async def runner(resume: Any) -> None:
        async with resume.agent("parser") as run:
            Presence.draining = True
            run.output = 1
        async with resume.agent("search"):
            pytest.fail("no agent begins")

    def blocking(resume: Any) -> None:
        with resume.agent("parser") as run:
            Presence.draining = True
            run.output = 1
        with resume.agent("search"):
            pytest.fail("no agent begins")

    try:
        if how == "blocking":
            done = await asyncio.to_thread(
                sync.recover_sessions, blocking, concurrency=concurrency, poll_seconds=0.1
            )
        else:
            done = await recover_sessions(runner, concurrency=concurrency, poll_seconds=0.1)
    finally:
        Presence.draining = False
    assert (done.completed, done.failed, done.abandoned) == ([], [], [])
    assert 1 <= len(done.lost) <= concurrency
    recovered = await recover_sessions(finish)
    assert sorted(recovered.completed) == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize("how", ["event loop", "blocking"])
async def test_an_agent_ends_and_no_other_begins(store: Settings, how: str) -> None:
    async def run() -> None:
        async with track_session("s") as session:
            async with session.agent("parser") as run:
                Presence.draining = True
                run.output = 1
            async with session.agent("search"):
                pytest.fail("no agent begins")

    def block() -> None:
        with sync.track_session("s") as session:
            with session.agent("parser") as run:
                Presence.draining = True
                run.output = 1
            with session.agent("search"):
                pytest.fail("no agent begins")

    try:
        if how == "blocking":
            with pytest.raises(SystemExit):
                block()
        else:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(run())
    finally:
        Presence.draining = False
    back = await get_pipeline_session("s")
    assert (back.status, back.lease_owner, back.error_message) == ("ACTIVE", None, None)
    assert (await get_agent_execution("s-parser")).output_data == 1
    assert (await recover_sessions(finish)).completed == ["s"]
    assert (await get_pipeline_session("s")).resumes_without_progress is None


WORKER = """
import asyncio, os, sys, threading, time
from contextlib import suppress
from tdev_models import configure, handle_sigterm, sync, track_session
configure(endpoint=sys.argv[1], environment=sys.argv[2], region="us-east-1")

async def pipeline(number):
    async with track_session(f"s{number}") as session:
        for agent in ("parser", "search", "download"):
            async with session.agent(agent) as run:
                os.write(1, b"runs\\n")
                await asyncio.sleep(float(sys.argv[4]) + number / 5)
                run.output = agent

async def main(threads=0):
    runs = [asyncio.to_thread(block, number) for number in range(threads)]
    runs += [pipeline(number) for number in range(threads, 5)]
    await asyncio.gather(*runs, return_exceptions=True)
    await asyncio.sleep(60)

def around():
    with suppress(asyncio.CancelledError):
        with sync.track_session("s0") as session, session.agent("parser"):
            os.write(1, b"runs\\n")
            asyncio.run(pipeline(1))

def block(number=0):
    with sync.track_session(f"s{number}") as session:
        for agent in ("parser", "search", "download"):
            with session.agent(agent) as run:
                os.write(1, b"runs\\n")
                time.sleep(float(sys.argv[4]))
                run.output = agent

handle_sigterm(float(sys.argv[5]))
if sys.argv[3] == "blocking":
    block()
elif sys.argv[3] == "threads":
    threads = [threading.Thread(target=block, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
elif sys.argv[3] == "loop in a block":
    around()
else:
    asyncio.run(main(2 if sys.argv[3] == "loop with threads" else 0))
"""


@pytest.mark.parametrize(
    ("how", "agent_seconds", "grace_seconds", "ended"),
    [
        ("loop", 1.5, 20, True),  # agents end within the grace
        ("loop", 60, 0.5, False),
        ("blocking", 1.5, 20, True),
        ("blocking", 60, 0.5, False),
        ("threads", 1.5, 20, True),
        ("loop with threads", 1.5, 20, True),  # what those raise does not stop it
        ("loop in a block", 60, 0.5, False),
    ],
)
def test_sigterm_hands_all_sessions_back(
    strict_store: Settings, how: str, agent_seconds: float, grace_seconds: float, ended: bool
) -> None:
    command = [sys.executable, "-c", WORKER, str(strict_store.endpoint), strict_store.environment]
    command += [how, str(agent_seconds), str(grace_seconds)]
    sessions = {"blocking": 1, "threads": 2, "loop in a block": 2}.get(how, 5)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        try:
            assert process.stdout
            for _ in range(sessions):
                assert process.stdout.readline() == "runs\n"
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            _, errors = process.communicate(timeout=30)
            code = process.returncode
        finally:
            process.kill()
    assert errors == ""
    assert time.monotonic() - begun < 15
    assert code in (0, 143)
    for number in range(sessions):
        session = sync.get_pipeline_session(f"s{number}")
        assert (session.status, session.lease_owner) == ("ACTIVE", None)
        execution = sync.get_agent_execution(f"s{number}-parser")
        assert execution.status == ("COMPLETED" if ended else "PENDING")
    done = sync.recover_sessions(lambda resume: None)
    assert len(done.completed) == sessions
    assert all(one.resume_count is None for one in sync.list_pipeline_sessions(status="COMPLETED"))
    assert {one.name.split(":")[1] for one in sync.list_workers()} <= {str(os.getpid())}


@pytest.mark.parametrize("seconds", [-1, "5", None])
def test_a_grace_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(InvalidRequest, match="grace_seconds"):
        handle_sigterm(seconds)


def test_the_handler_that_was_set_before_is_called_once_all_is_handed_back(
    strict_store: Settings,
) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        handle_sigterm(5)
        with sync.track_session("s"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            assert called == []
        deadline = time.monotonic() + 10
        while not called and time.monotonic() < deadline:
            time.sleep(0.05)
        assert called == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        Presence.draining = False


SERVER = """
import asyncio, os, signal, sys
from tdev_models import configure, handle_sigterm, recover_sessions
configure(endpoint=sys.argv[1], environment=sys.argv[2], region="us-east-1")
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
handle_sigterm(5)
asyncio.run(recover_sessions(print, poll_seconds=30))
"""


def test_a_worker_has_ended_though_the_handler_before_runs_no_exit_functions(
    strict_store: Settings,
) -> None:
    """As uvicorn's, which lets its process die of the signal."""
    command = [sys.executable, "-c", SERVER, str(strict_store.endpoint), strict_store.environment]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 20
            while not sync.list_workers() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert [one.name.split(":")[1] for one in sync.list_workers()] == [str(process.pid)]
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert sync.list_workers() == []


def test_the_end_of_a_process_waits_until_its_worker_is_stored_as_ended(
    strict_store: Settings,
) -> None:
    """Where a drain has nothing left, and stores that, while the main thread ends."""
    sends = threading.Event()

    def slow(send: settings.Transport) -> settings.Transport:
        async def sent(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            if threading.current_thread() is drains:
                sends.set()
                time.sleep(0.3)  # noqa: ASYNC251
            return await send(operation, request)

        return sent

    drains = threading.Thread(target=stop_idle)
    with settings.use(strict_store, transport=slow), sync.track_session("s"):
        pass
    drains.start()
    assert sends.wait(5)
    stop_idle()  # at exit
    assert sync.list_workers() == []
    drains.join()


async def test_a_heartbeat_under_way_makes_no_worker_of_one_that_has_ended(
    strict_store: Settings,
) -> None:
    # Registered, claimed, ended; then the heartbeat.
    beat = Fault("before", operation="UpdateItem", of_workers=True, nth=4, between=stop_idle)
    with settings.use(strict_store, lease_seconds=6), injected(beat):
        async with track_session("s"):
            pass
        assert not beat.hit
        await asyncio.sleep(1.6)  # a beat comes each second
    assert await list_workers() == []


async def test_a_loop_that_handles_sigterm_itself_is_told(strict_store: Settings) -> None:
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, lambda: None)
    try:
        with pytest.raises(ConfigurationError, match="remove_signal_handler"):
            handle_sigterm()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)
