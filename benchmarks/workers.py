"""What a thousand sessions of one process cost, and how soon a dead worker's sessions run again.

`python -m benchmarks.workers held [SESSIONS SECONDS]`: started together in one event loop, then in
threads, and held: heartbeats, threads, the longest stop of the loop, memory.
`python -m benchmarks.workers killed [ROUNDS SESSIONS]`: a worker is killed (SIGKILL) among its
sessions, another one recovers, with the defaults: seconds until all run again and have COMPLETED.
`python -m benchmarks.workers staggered [ROUNDS SESSIONS]`: runs of nine agents that begin one after
the other in one event loop of a fresh process: the longest turn of the loop, first use included:
a name to look up, TLS, credentials that a program hands out.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.tables import fresh_tables
from benchmarks.tls import certificate, relayed
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

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
CREDENTIALS = """echo '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "s"}'"""


def resident_kilobytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


class Stops:
    """Watches how long the loop stands still, with and without Python's garbage collections."""

    def __init__(self) -> None:
        self.longest = self.without_collections = self._collected = self._begun = 0.0

    def _collection(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic()
        if phase == "start":
            self._begun = now
        else:
            self._collected += now - self._begun

    async def watch(self) -> None:
        gc.callbacks.append(self._collection)
        try:
            while True:
                last, collected = time.monotonic(), self._collected
                await asyncio.sleep(0.005)
                stop = time.monotonic() - last - 0.005
                self.longest = max(self.longest, stop)
                own = stop - (self._collected - collected)
                self.without_collections = max(self.without_collections, own)
        finally:
            gc.callbacks.remove(self._collection)

    def taken(self) -> str:
        """Return the longest stops since the last call, in ms."""
        told = f"{self.longest * 1000:.0f} ({self.without_collections * 1000:.0f})"
        self.longest = self.without_collections = 0.0
        return told


def report(
    how: str, sessions: int, seconds: float, stop: str, events: int, kilobytes: float
) -> None:
    print(
        f"{how:>12} {sessions:>9,} {events / seconds * 5:>17.1f} {threading.active_count():>8} "
        f"{stop:>12} {kilobytes / sessions:>15.1f}",
        flush=True,
    )


async def in_a_loop(count: int, seconds: float, events: list[RequestEvent]) -> None:
    before, begun, stops = resident_kilobytes(), time.monotonic(), Stops()
    inside, leave, entered = asyncio.Event(), asyncio.Event(), 0

    async def hold(number: int) -> None:
        nonlocal entered
        async with track_session(f"loop{number}"):
            entered += 1
            if entered == count:
                inside.set()
            await leave.wait()

    watching = asyncio.create_task(stops.watch())
    await asyncio.sleep(0)
    async with asyncio.TaskGroup() as sessions:
        for number in range(count):
            sessions.create_task(hold(number))
        await inside.wait()
        print(f"{count:,} entered after {time.monotonic() - begun:.1f} s, stops {stops.taken()} ms")
        events.clear()
        await asyncio.sleep(seconds)
        grown = resident_kilobytes() - before
        report("event loop", count, seconds, stops.taken(), len(events), grown)
        begun = time.monotonic()
        leave.set()
    print(f"{count:,} left after {time.monotonic() - begun:.1f} s, stops {stops.taken()} ms")
    watching.cancel()


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
        grown = resident_kilobytes() - before
        report("threads", count, seconds, "", len(events), grown)
        leave.set()
        for one in work:
            one.result()


def held(count: int = 1000, seconds: float = 300) -> None:
    print("sessions of one process, started together and held; stops of the loop in ms, the")
    print("longest one, and without garbage collections of Python's")
    print(
        f"{'how':>12} {'sessions':>9} {'requests in 5 s':>17} {'threads':>8} "
        f"{'longest stop':>12} {'KB a session':>15}"
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


async def longest_turn(count: int, over_seconds: float = 2.0) -> tuple[float, float]:
    """Return the longest turn of the loop in ms: of its thread's processor time, and by the clock.

    Other processes may stop this one, which the clock alone sees.
    """
    longest = 0.0, 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            used, now = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0)
            turn = time.thread_time() - used, time.perf_counter() - now
            longest = max(longest[0], turn[0]), max(longest[1], turn[1])

    async def run(number: int) -> None:
        await asyncio.sleep(over_seconds * number / count)
        async with track_session(f"{os.getpid()}-{number}", user_id="u") as session:
            for agent in settings.current().agents:
                async with session.agent(agent, input_data={"request": "a todo app"}) as work:
                    work.output = {"files": ["x" * 300]}

    gc.disable()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(run(number) for number in range(count)))
    watching.cancel()
    return longest[0] * 1000, longest[1] * 1000


def fresh(count: int) -> None:
    print(*asyncio.run(longest_turn(count)))


def staggered(number: int = 5, count: int = 256) -> None:
    found = []
    with fresh_tables(), TemporaryDirectory() as name:
        folder = Path(name)
        signer, *own = certificate(folder)
        (folder / "config").write_text(f"[default]\ncredential_process = {CREDENTIALS}\n")
        with relayed(str(settings.current().endpoint), *own) as endpoint:
            process = {
                **{one: value for one, value in os.environ.items() if one not in KEYS},
                "AWS_ENDPOINT_URL_DYNAMODB": endpoint,
                "AWS_CONFIG_FILE": str(folder / "config"),
                "AWS_CA_BUNDLE": signer,
            }
            for _ in range(number):
                command = [sys.executable, "-m", "benchmarks.workers", "fresh", str(count)]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=process
                )
                found.append([float(figure) for figure in done.stdout.split()])
    used, passed = zip(*found, strict=True)
    print(
        f"{count} runs begun within 2 s, {number} fresh processes; the longest turn of the loop, ms"
    )
    print(f"{'':>20} {'median':>8} {'longest':>8}")
    print(f"{'its processor time':>20} {statistics.median(used):>8.1f} {max(used):>8.1f}")
    print(f"{'by the clock':>20} {statistics.median(passed):>8.1f} {max(passed):>8.1f}")


COMMANDS: dict[str, Callable[..., None]] = {
    "held": held,
    "killed": killed,
    "staggered": staggered,
    "fresh": fresh,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*map(int, sys.argv[2:]))
