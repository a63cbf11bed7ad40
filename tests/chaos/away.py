"""A store that is away for minutes, and a worker that is frozen for one.

`python -m tests.chaos.away outage [SECONDS]` (600): 4 workers run 25 sessions each; the engine is
killed and, so many seconds later, started again on its file. No session may be taken over, no
agent run twice, and all have COMPLETED.
`python -m tests.chaos.away freeze [SECONDS]` (60): a worker with 20 sessions is stopped, and
another takes 10 of them. Awake again, it stops those before they write anything and ends the
others.

The settings are the defaults. The exit status is 1 where something was wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tdev_models import (
    AGENTS,
    LeaseLost,
    Resume,
    configure,
    recover_sessions,
    resume_pipeline,
    sync,
    track_session,
)
from tdev_models.cli.engine import Engine
from tdev_models.migrations.apply import apply_all

WORKERS, SESSIONS_EACH, FROZEN_SESSIONS, TAKEN = 4, 25, 20, 10


def note(journal: Path, *what: object) -> None:
    """Write a line down, whole, whoever else writes."""
    with journal.open("ab", buffering=0) as lines:
        lines.write(f"{json.dumps(what)}\n".encode())


def noted(journal: Path) -> Counter[tuple[object, ...]]:
    """Return how often each line was written."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return Counter(tuple(json.loads(line)) for line in lines)


async def run(journal: Path, session_id: str, agent_seconds: float) -> None:
    """Run a session; the journal says what was done, and whether its lease was lost."""
    try:
        async with track_session(session_id) as session:
            for agent in AGENTS:
                async with session.agent(agent) as work:
                    note(journal, session_id, agent)
                    await asyncio.sleep(agent_seconds)
                    work.output = agent
    except LeaseLost:
        note(journal, session_id, "lost")


async def worker(journal: Path, first: int, count: int, agent_seconds: float) -> None:
    """Run so many sessions side by side; also recover what others leave."""
    async with asyncio.TaskGroup() as group:
        for number in range(first, first + count):
            group.create_task(run(journal, f"s{number}", agent_seconds))


def started(journal: Path, first: int, count: int, agent_seconds: float) -> subprocess.Popen[bytes]:
    """Start a worker, and wait until all its sessions have begun."""
    arguments = [str(journal), str(first), str(count), str(agent_seconds)]
    process = subprocess.Popen([sys.executable, "-m", "tests.chaos.away", "worker", *arguments])
    begun = {(f"s{number}", AGENTS[0]) for number in range(first, first + count)}
    while not begun <= noted(journal).keys():
        if process.poll() is not None:
            raise SystemExit(f"a worker has ended with {process.returncode}")
        time.sleep(0.05)
    return process


def wrongs(journal: Path, count: int, claims: int = 1) -> list[str]:
    """Return what is wrong with so many sessions, each claimed so often."""
    wrong = [f"{line} {times} times" for line, times in noted(journal).items() if times > 1]
    for number in range(count):
        session = sync.get_pipeline_session(f"s{number}")
        state = session.status, session.progress, session.fence
        if state != ("COMPLETED", len(AGENTS), claims):
            wrong.append(f"s{number}: {state}, not COMPLETED under claim {claims}")
    return wrong


def outage(directory: Path, seconds: float) -> list[str]:
    """Let the store be away while sessions run."""
    journal, data = directory / "journal", directory / "away.db"
    engine = Engine.start(data)
    port = int(engine.endpoint.rpartition(":")[2])
    os.environ.update(TDEV_ENV="away", **engine.environ)
    apply_all(configure())
    count = WORKERS * SESSIONS_EACH
    # Another worker looks for sessions of dead ones all the time.
    looking = subprocess.Popen([sys.executable, "-m", "tests.chaos.away", "recover", str(journal)])
    # Several agents end while the store is away.
    starts = range(0, count, SESSIONS_EACH)
    workers = [started(journal, first, SESSIONS_EACH, max(1.0, seconds / 6)) for first in starts]
    try:
        os.kill(engine.pid, signal.SIGKILL)
        engine.__exit__(None, None, None)
        time.sleep(seconds)
        engine = Engine.start(data, port)
        codes = [process.wait(seconds * 3 + 120) for process in workers]
        print(f"{count} sessions of {WORKERS} workers, the store away for {seconds:g} s")
        ended = [f"a worker has ended with {code}" for code in codes if code]
        return [*ended, *wrongs(journal, count)]
    finally:
        for process in (*workers, looking):
            process.kill()
            process.wait()
        engine.__exit__(None, None, None)


def freeze(directory: Path, seconds: float) -> list[str]:
    """Stop a worker, take half of its sessions, and let it go on."""
    journal = directory / "journal"
    with Engine.start() as engine:
        os.environ.update(TDEV_ENV="away", **engine.environ)
        apply_all(configure())
        frozen = started(journal, 0, FROZEN_SESSIONS, 2.0)
        try:
            frozen.send_signal(signal.SIGSTOP)
            taken = asyncio.run(taken_after(seconds))
            before = noted(journal)
            frozen.send_signal(signal.SIGCONT)
            frozen.wait(120)
        finally:
            frozen.kill()
            frozen.wait()
        print(f"{FROZEN_SESSIONS} sessions of a worker frozen for {seconds:g} s, {TAKEN} taken")
        after = noted(journal)
        begun = {line for line in after.keys() - before.keys() if line[0] in taken}
        wrong = [f"taken, and begun again: {line}" for line in begun if line[1] != "lost"]
        kept = {f"s{number}" for number in range(FROZEN_SESSIONS)} - taken
        untold = [name for name in taken if (name, "lost") not in after]
        wrong += [f"{name} was taken, and nobody told" for name in untold]
        for name, fence in [*((name, 1) for name in kept), *((name, 2) for name in taken)]:
            session = sync.get_pipeline_session(name)
            if (session.status, session.fence) != ("COMPLETED", fence):
                wrong.append(f"{name} is {session.status} under claim {session.fence}, not {fence}")
        return wrong


async def taken_after(seconds: float) -> set[str]:
    """Take some of the frozen worker's sessions once it counts as dead, and end them."""
    taken = set[str]()
    begun = time.monotonic()

    while time.monotonic() < begun + seconds or len(taken) < TAKEN:
        for number in range(FROZEN_SESSIONS):
            wanted = len(taken) < TAKEN and f"s{number}" not in taken
            if wanted and (resume := await resume_pipeline(f"s{number}")):
                async with resume:
                    taken.add(resume.session_id)
        await asyncio.sleep(1.0)
        if time.monotonic() > begun + seconds + 120:
            raise SystemExit(f"only {len(taken)} were taken")
    return taken


async def recover(journal: Path) -> None:
    """Take whatever is said to be without an owner."""

    async def runner(resume: Resume) -> None:
        note(journal, resume.session_id, "taken over")
        async with resume:
            pass

    await recover_sessions(runner, poll_seconds=5)


def main(scenario: str, seconds: float) -> int:
    """Play a scenario, and print what was wrong."""
    with tempfile.TemporaryDirectory(prefix="tdev-away-") as name:
        wrong = {"outage": outage, "freeze": freeze}[scenario](Path(name), seconds)
    print("\n".join(wrong) or "nothing lost, nothing done twice")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        configure()
        path, first, count, agent_seconds = sys.argv[2:]
        asyncio.run(worker(Path(path), int(first), int(count), float(agent_seconds)))
    elif sys.argv[1] == "recover":
        configure()
        asyncio.run(recover(Path(sys.argv[2])))
    else:
        default = {"outage": 600.0, "freeze": 60.0}[sys.argv[1]]
        sys.exit(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else default))
