"""A long bad day: real workers killed and frozen, the engine killed and started again on its file.

`python -m tests.chaos.soak [SECONDS]` (600) ends with a check of the whole history, prints its
figures, and exits with 1 if anything was lost, done twice under one claim, or left behind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tdev_models import (
    AGENTS,
    InvalidTransition,
    Resume,
    TdevError,
    configure,
    sync,
)
from tdev_models.cli.engine import Engine
from tdev_models.migrations.apply import apply_all

WORKERS = 4
OPEN_SESSIONS = 12
KILL_SECONDS, FREEZE_SECONDS, ENGINE_SECONDS = 2.2, 8.0, 45.0
LEASE_SECONDS = 1.5
QUIET_SECONDS = 90.0
SHORT = {
    "TDEV_ENV": "soak",
    "TDEV_LEASE_SECONDS": str(LEASE_SECONDS),
    "TDEV_STALLED_AFTER_SECONDS": "3",
}


def output_of(session_id: str, agent: str, fence: int) -> dict[str, object]:
    """Return what an agent makes: it says under which claim, and some are large."""
    text = f"{session_id} {agent} " * (2000 if agent == "generation" else 3)
    return {"agent": agent, "fence": fence, "text": text}


def worker(journal: str) -> None:
    """Recover whatever there is, and write each piece of work down."""
    lines = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def runner(session: Resume) -> None:
        fence = session.owned.fence
        for agent in AGENTS:
            with session.agent(agent, {"for": agent}) as run:
                if not run.done:
                    line = json.dumps([session.session_id, agent, fence])
                    os.write(lines, f"{line}\n".encode())
                    time.sleep(random.uniform(0.0, 0.08))
                    if random.random() < 0.01:
                        raise RuntimeError("an agent broke")
                    run.output = output_of(session.session_id, agent, fence)

    while True:
        try:
            sync.recover_sessions(runner, max_attempts=60, backoff_seconds=0.2, poll_seconds=0.2)
        except TdevError as error:
            print(f"worker {os.getpid()}: {error}", file=sys.stderr)
            time.sleep(0.2)


class Soak:
    """The day: an engine on a file, its workers, and what is done to them."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self.directory, self.journal = directory, directory / "journal"
        self.data = directory / "soak.db"
        self.end = time.monotonic() + seconds
        self.done: Counter[str] = Counter()
        self.ids: list[str] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.frozen: list[tuple[float, subprocess.Popen[bytes]]] = []

    def run(self) -> list[str]:
        engine = Engine.start(self.data)
        port = int(engine.endpoint.rpartition(":")[2])
        os.environ.update(SHORT, **engine.environ)
        apply_all(configure())
        due = {
            "kill": KILL_SECONDS,
            "freeze": FREEZE_SECONDS,
            "engine": ENGINE_SECONDS,
            "feed": 0.5,
        }
        next_time = {what: time.monotonic() + period for what, period in due.items()}
        try:
            while time.monotonic() < self.end:
                self._keep_workers()
                for what, period in due.items():
                    if time.monotonic() < next_time[what]:
                        continue
                    next_time[what] = time.monotonic() + period * random.uniform(0.7, 1.3)
                    if what == "engine":
                        os.kill(engine.pid, signal.SIGKILL)
                        engine.__exit__(None, None, None)
                        time.sleep(random.uniform(0.0, 2.0))
                        engine = Engine.start(self.data, port)
                        self.done["engine kills"] += 1
                    else:
                        getattr(self, f"_{what}")()
                time.sleep(0.05)
            self._let_finish()
            return self._wrongs()
        finally:
            for one in self.workers:
                one.kill()
                one.wait()
            engine.__exit__(None, None, None)

    def _keep_workers(self) -> None:
        for ended in [one for one in self.workers if one.poll() is not None]:
            self.workers.remove(ended)
        while len(self.workers) < WORKERS:
            command = [sys.executable, "-m", "tests.chaos.soak", "worker", str(self.journal)]
            with (self.directory / "stderr").open("ab") as log:
                self.workers.append(subprocess.Popen(command, stderr=log))
        for until, one in list(self.frozen):
            if time.monotonic() >= until:
                self.frozen.remove((until, one))
                if one.poll() is None:
                    one.send_signal(signal.SIGCONT)

    def _kill(self) -> None:
        victim = random.choice(self.workers)
        victim.kill()
        victim.wait()
        self.done["worker kills"] += 1

    def _freeze(self) -> None:
        victim = random.choice(self.workers)
        victim.send_signal(signal.SIGSTOP)
        self.frozen.append((time.monotonic() + random.uniform(2, 4) * LEASE_SECONDS, victim))
        self.done["freezes"] += 1

    def _feed(self) -> None:
        """Keep a dozen sessions open; a reply may be lost with the engine."""
        try:
            waiting = len(sync.get_failed_sessions())
            for _ in range(max(0, OPEN_SESSIONS - waiting)):
                self.ids.append(f"s{len(self.ids)}")
                sync.save_pipeline_session(session_id=self.ids[-1], status="FAILED")
        except TdevError:
            self.done["calls without an answer"] += 1

    def _let_finish(self) -> None:
        for _, one in self.frozen:
            one.send_signal(signal.SIGCONT)
        self.frozen.clear()
        deadline = time.monotonic() + QUIET_SECONDS
        for session_id in self.ids:  # an unanswered save may not have arrived
            try:
                sync.save_pipeline_session(session_id=session_id, project_name="checked")
            except (InvalidTransition, TdevError):
                continue
        while time.monotonic() < deadline:
            self._keep_workers()
            states = Counter(sync.get_pipeline_session(one).status for one in self.ids)
            if not states["ACTIVE"] + states["FAILED"]:
                return
            time.sleep(0.5)

    def _wrongs(self) -> list[str]:
        wrong: list[str] = []
        work = Counter(tuple(json.loads(line)) for line in self.journal.read_text().splitlines())
        wrong += [f"done twice under one claim: {key}" for key, times in work.items() if times > 1]
        for session_id in self.ids:
            session = sync.get_pipeline_session(session_id)
            self.done[f"sessions {session.status}"] += 1
            self.done["takeovers"] += session.resume_count or 0
            if session.status == "ABANDONED" and session.error_message:
                continue
            if session.status != "COMPLETED":
                wrong.append(f"{session_id} was left {session.status}")
                continue
            if session.progress != len(AGENTS):
                wrong.append(f"{session_id} counts {session.progress}")
            last = 0
            for agent in AGENTS:
                execution = sync.get_agent_execution(f"{session_id}-{agent}")
                fence = int(execution.fence or 0)
                if execution.output_data != output_of(session_id, agent, fence):
                    wrong.append(f"{session_id} {agent}: not the output of claim {fence}")
                if (session_id, agent, fence) not in work:
                    wrong.append(f"{session_id} {agent}: nobody did it under claim {fence}")
                if fence < last:
                    wrong.append(f"{session_id} {agent}: claim {fence} after {last}")
                last = fence
                self.done["attempts"] += len(execution.attempts)
        return wrong


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory(prefix="tdev-soak-") as name:
        soak = Soak(Path(name), seconds)
        wrong = soak.run()
    for what, count in sorted(soak.done.items()):
        print(f"{what:>24} {count}")
    print("\n".join(wrong) or "nothing lost, nothing doubled, nothing left behind")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))
