"""What a thousand sessions of one process cost, and how soon a dead worker's sessions run again.

`python -m benchmarks.workers held [SESSIONS SECONDS]`: started together in one event loop, then in
threads, and held: heartbeats, threads, the longest stop of the loop, memory.
`python -m benchmarks.workers killed [ROUNDS SESSIONS]`: a worker is killed (SIGKILL) among its
sessions, another one recovers, with the defaults: seconds until all run again and have COMPLETED.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.tables import fresh_tables
from tdev_models import Resume, recover_sessions, settings, sync, track_session
from tdev_models.results import RequestEvent

VICTIM = """
import asyncio, sys
from tdev_models import configure, track_session
configure(endpoint=sys.argv[1], environment=sys.argv[2], region="us-east-1")

async def work(name):
    async with track_session(name) as session:
        async with session.agent("parser") as run:
            run.output = 1
        async with session.agent("search"):
            print(name, flush=True)
            await asyncio.sleep(600)

async def main():
    async with asyncio.TaskGroup() as group:
        for number in range(int(sys.argv[4])):
            group.create_task(work(f"{sys.argv[3]}-{number}"))

asyncio.run(main())
"""


def resident_kilobytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def report(how: str, sessions: int, seconds: float, held: tuple[float, int, float]) -> None:
    stop, beats, kilobytes = held
    print(
        f"{how:>12} {sessions:>9,} {beats / seconds * 5:>17.1f} {threading.active_count():>8} "
        f"{stop * 1000:>12.0f} {kilobytes / sessions:>15.1f}",
        flush=True,
    )


async def in_a_loop(
    count: int, seconds: float, events: list[RequestEvent]
) -> tuple[float, int, float]:
    longest, before, begun = 0.0, resident_kilobytes(), time.monotonic()
    inside, leave, entered = asyncio.Event(), asyncio.Event(), 0

    async def hold(number: int) -> None:
        nonlocal entered
        async with track_session(f"loop{number}"):
            entered += 1
            if entered == count:
                inside.set()
            await leave.wait()

    async def watch() -> None:
        nonlocal longest
        while True:
            last = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - last - 0.005)

    watching = asyncio.create_task(watch())
    tasks = [asyncio.create_task(hold(number)) for number in range(count)]
    await inside.wait()
    print(
        f"{count:,} sessions entered after {time.monotonic() - begun:.1f} s, "
        f"the loop stopped for {longest * 1000:.0f} ms at most; then:"
    )
    events.clear()
    longest = 0.0
    await asyncio.sleep(seconds)
    held = longest, len(events), resident_kilobytes() - before
    report("event loop", count, seconds, held)
    watching.cancel()
    leave.set()
    await asyncio.gather(*tasks)
    return held


def in_threads(count: int, seconds: float, events: list[RequestEvent]) -> None:
    before, leave, inside = resident_kilobytes(), threading.Event(), threading.Barrier(count + 1)

    def hold(number: int) -> None:
        with sync.track_session(f"thread{number}"):
            inside.wait()
            leave.wait()

    with ThreadPoolExecutor(count) as threads:
        work = [threads.submit(hold, number) for number in range(count)]
        inside.wait()
        events.clear()
        time.sleep(seconds)
        report("threads", count, seconds, (0.0, len(events), resident_kilobytes() - before))
        leave.set()
        for one in work:
            one.result()


def held(count: int = 1000, seconds: float = 300) -> None:
    print("sessions of one process, started together and held")
    print(
        f"{'how':>12} {'sessions':>9} {'requests in 5 s':>17} {'threads':>8} "
        f"{'longest ms':>12} {'KB a session':>15}"
    )
    with fresh_tables() as events:
        asyncio.run(in_a_loop(count, seconds, events))
        in_threads(count, seconds, events)


def kill_a_worker(name: str, count: int) -> None:
    """Let a worker run sessions, and kill it."""
    current = settings.current()
    command = [sys.executable, "-c", VICTIM, str(current.endpoint), current.environment]
    with subprocess.Popen([*command, name, str(count)], stdout=subprocess.PIPE) as victim:
        assert victim.stdout
        for _ in range(count):
            assert victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)


async def recovered(name: str, count: int) -> tuple[float, float, int]:
    """Kill a worker and recover; return when all ran again, had ended, and what ran twice."""
    await asyncio.to_thread(kill_a_worker, name, count)
    killed, ran, claims = time.monotonic(), dict[str, float](), list[tuple[str, int]]()
    stop = asyncio.Event()

    async def finish(resume: Resume) -> None:
        async with resume.agent("parser") as run:
            assert run.done
        ran[resume.session_id] = time.monotonic() - killed
        claims.append((resume.session_id, resume.owned.fence))
        async with resume.agent("search") as run:
            run.output = 2
        if len(ran) == count:
            stop.set()

    done = await recover_sessions(finish, concurrency=10, poll_seconds=10, stop=stop)
    assert len(done.completed) == count, done
    return max(ran.values()), time.monotonic() - killed, len(claims) - len({*claims})


async def rounds(number: int, count: int) -> None:
    async with track_session("survivor"):  # a worker that has been there for a while
        await asyncio.sleep(31)
        found = [await recovered(f"r{one}", count) for one in range(number)]
    again, ended, twice = zip(*found, strict=True)
    print(f"{number} workers killed with {count} sessions each; seconds after the kill")
    print(f"{'':>12} {'median':>8} {'longest':>8}")
    print(f"{'run again':>12} {statistics.median(again):>8.1f} {max(again):>8.1f}")
    print(f"{'completed':>12} {statistics.median(ended):>8.1f} {max(ended):>8.1f}")
    print(f"run twice under one claim: {sum(twice)}")


def killed(number: int = 20, count: int = 50) -> None:
    with fresh_tables():
        asyncio.run(rounds(number, count))


if __name__ == "__main__":
    {"held": held, "killed": killed}[sys.argv[1]](*map(int, sys.argv[2:]))
