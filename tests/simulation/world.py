"""One history: some workers and sessions, what befalls them, and what must come of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tdev_models.settings import Settings
from tests.simulation import clients
from tests.simulation.engine import Change, Engine
from tests.simulation.invariants import Invariants
from tests.simulation.lines import line
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Network, Weather
from tests.simulation.processes import Process
from tests.simulation.programs import Programs
from tests.simulation.records import Record, Rules, Samples, Violation
from tests.simulation.workers import Workers

AGENTS = ("parser", "generation", "assembly")
LEASE_SECONDS = 24.0
STALLED_AFTER_SECONDS = 48.0
POLL_SECONDS = 12.0
LONGEST_SKEW_SECONDS = 10.0
FAULTS_SECONDS = 60.0
FAULTS_BEGIN_SECONDS = 30.0  # later ones would find little that still runs
LIMIT_SECONDS = 900.0
MAX_ATTEMPTS = 3
# What shares what it may: settings are checked when they are made, which takes long.
_SHARED = {
    agents: Settings(
        environment="sim",
        region="us-east-1",
        agents=AGENTS[:agents],
        lease_seconds=LEASE_SECONDS,
        stalled_after_seconds=STALLED_AFTER_SECONDS,
        retry_seconds=8.0,
        automatic_metrics=False,
    )
    for agents in (2, 3)
}


class History:
    """One history, from one seed.

    Attributes:
        engine: the store.
        lines: what happened, where it is kept.
    """

    def __init__(self, seed: int, *, keep: bool = False) -> None:
        dice = self._dice = random.Random(seed)
        self.seed, self.lines = seed, list[str]()
        self._keep = keep
        self._loop = VirtualLoop()  # type: ignore[abstract]
        clients.begin(self._loop, random.Random(dice.getrandbits(64)))
        self._settings = _SHARED[dice.randint(2, 3)]
        self._samples, self._rules = Samples(), Rules()
        self._records: dict[str, Record] = {}
        self._calm = dice.random() < 0.1  # nothing happens
        # Processes end, and people meddle, but what goes on is in time.
        self._quiet = self._calm or dice.random() < 0.3
        self._skewed = not self._quiet and dice.random() < 0.3
        self.engine = Engine(self._settings, lambda: self._loop.now)
        self._sessions = self.engine.items("pipeline-sessions")
        self._network = Network(
            self._loop,
            dice,
            self.engine,
            self._weather(),
            self._crash,
            self._log if keep else None,
        )
        self._workers: list[Process] = []
        self._worker_rules = Workers(
            self._loop,
            self._records,
            self._sessions,
            self._workers,
            calm=self._calm,
            quiet=self._quiet,
            clocks_may_differ_by=2 * LONGEST_SKEW_SECONDS if self._skewed else 0.0,
            lease_seconds=LEASE_SECONDS,
            poll_seconds=POLL_SECONDS,
        )
        self._invariants = Invariants(
            self.engine,
            self._records,
            self._samples,
            self._worker_rules,
            max_attempts=MAX_ATTEMPTS,
            longest_wait=STALLED_AFTER_SECONDS + 2 * LONGEST_SKEW_SECONDS,
        )
        self.engine.watch = self._watch
        self._breaks = dice.choice((0.0, 0.05, 0.3))
        self._lives, self._ended = 0, False
        self._last = 0.0  # when the last of what is planned begins
        self._programs: dict[Process, Programs] = {}

    @property
    def requests(self) -> int:
        """How many requests the store has carried out."""
        return self.engine.requests

    def _weather(self) -> Weather:
        dice = self._dice
        if self._quiet:
            return Weather(0.0, 0.0, (), (), 0.0)

        def windows(chance: float, longest: float) -> tuple[tuple[float, float], ...]:
            if dice.random() > chance:
                return ()
            begin = dice.uniform(0.0, FAULTS_BEGIN_SECONDS)
            return ((begin, begin + dice.uniform(1.0, longest)),)

        return Weather(
            dice.choice((0.01, 0.05, 0.15)),
            FAULTS_SECONDS,
            windows(0.3, 40.0),
            windows(0.2, 20.0),
            dice.choice((0.0, 1.0, 5.0)),
        )

    # ------------------------------------------------------------------ what happens

    def run(self) -> None:
        """Let it happen.

        Raises:
            Violation: a rule was broken.
        """
        dice, loop = self._dice, self._loop
        for _ in range(dice.choice((2, 2, 2, 3))):
            self._new_worker()
        for number in range(dice.choice((1, 1, 2, 3))):
            self._new_session(f"s{number}")
        if dice.random() < 0.5:
            self._plan(20.0, self._measure)
        if not self._calm:
            self._plan_faults()
        loop.call_at(FAULTS_SECONDS, self._begin_missing)
        try:
            loop.run(self._is_over, LIMIT_SECONDS)
            if loop.failure is not None:
                raise loop.failure
            if self._rules.broken is not None:
                raise Violation(self._rules.broken)
            if not self._is_over():
                raise Violation(f"not over after {loop.now:.0f} s: {self._unended()}")
            self._end()
            if loop.failure is not None:
                raise loop.failure  # by a late copy of a request
            self._invariants.check_samples()
        finally:
            self._end()

    def _new_worker(self) -> None:
        if self._ended:
            return
        self._lives += 1
        skew = 0.0
        if self._skewed:
            skew = self._dice.uniform(-LONGEST_SKEW_SECONDS, LONGEST_SKEW_SECONDS)
        process = Process(self._loop, f"w{self._lives}", skew)
        settings = process.settings(self._settings, self._network.transport(process))
        self._programs[process] = programs = Programs(
            process,
            clients.join(process, settings),
            self._dice,
            self._records,
            self._samples,
            breaks=self._breaks,
            max_attempts=MAX_ATTEMPTS,
            poll_seconds=POLL_SECONDS,
            workers=self._worker_rules,
        )
        self._workers.append(process)
        process.spawn(programs.recover())

    def _new_session(self, session_id: str) -> None:
        dice, agents = self._dice, self._settings.agents
        record = self._records[session_id] = Record(
            session_id,
            agents,
            self._rules,
            bare=dice.random() < 0.2,
            poisoned=dice.choice(agents) if dice.random() < 0.1 else None,
            effect=dice.choice((None, *agents)),
            budget_usd=dice.randint(1, 3) if dice.random() < 0.2 else None,
        )
        self._invariants.running.add(session_id)
        self._plan(15.0, self._start, record)

    def _plan(self, longest: float, function: Callable[..., None], *arguments: Any) -> None:
        when = self._dice.uniform(0.0, longest)
        self._last = max(self._last, when)
        self._loop.call_at(when, function, *arguments)

    def _start(self, record: Record) -> None:
        if self._ended:
            return
        process = self._dice.choice(self._workers)
        programs = self._programs[process]
        if record.bare:
            process.spawn(programs.bare(record, lambda: "fence" in self._stored(record)))
        else:
            process.spawn(programs.start(record, lambda: bool(self._stored(record))))

    def _stored(self, record: Record) -> Any:
        return self._sessions.get((record.session_id,), {})

    def _begin_missing(self) -> None:
        """Begin again what nobody has stored: who was to begin it has crashed."""
        for record in self._records.values():
            if not self._stored(record):
                self._start(record)
        if not self._ended:
            self._loop.call_later(FAULTS_SECONDS, self._begin_missing)

    def _measure(self) -> None:
        process = self._dice.choice(self._workers)
        process.spawn(self._programs[process].measure(self._dice.randint(2, 16)))

    def _plan_faults(self) -> None:
        dice = self._dice
        stormy = not self._quiet
        for fault, most in (
            (self._freeze, 2 * stormy),
            (self._deploy, 2),
            (self._cut_off, 1 * stormy),
            (self._jump, 1 * self._skewed),
            (self._crash_one, 1 + stormy),
        ):
            for _ in range(dice.randint(0, most)):
                self._loop.call_at(dice.uniform(0.0, FAULTS_BEGIN_SECONDS), fault)
        for _ in range(dice.choice((0, 0, 1, 2) if stormy else (0, 1, 2, 3))):
            self._plan(FAULTS_BEGIN_SECONDS, self._operate)

    def _victim(self) -> Process:
        """Return a process, for the most part one that runs a session."""
        busy = [one for one in self._workers if self._worker_rules.owned_by(one)]
        return self._dice.choice(busy if busy and self._dice.random() < 0.8 else self._workers)

    def _freeze(self) -> None:
        process = self._victim()
        seconds = self._dice.uniform(1.0, 60.0)
        process.freeze(seconds)
        self._log(process, f"frozen for {seconds:.0f} s")

    def _cut_off(self) -> None:
        process = self._victim()
        process.cut_off_until = self._loop.now + self._dice.uniform(1.0, 60.0)
        self._log(process, f"cut off until {process.cut_off_until:.0f}")

    def _jump(self) -> None:
        process = self._victim()
        process.skew = self._dice.uniform(-LONGEST_SKEW_SECONDS, LONGEST_SKEW_SECONDS)
        self._log(process, f"clock set to {process.skew:+.1f} s")

    def _crash_one(self) -> None:
        self._crash(self._victim())

    def _crash(self, process: Process) -> None:
        if process.dead or self._ended:
            return
        self._log(process, "ends")
        process.die()
        self._workers.remove(process)
        self._worker_rules.ends(process)
        del self._programs[process]
        if self._workers:
            self._loop.call_later(self._dice.uniform(0.5, 20.0), self._new_worker)
        else:
            self._new_worker()

    def _deploy(self) -> None:
        process, dice = self._victim(), self._dice
        process.stop.set()
        if dice.random() < 0.5:
            self._log(process, "is to stop")
            grace = dice.uniform(0.0, 5.0)
            self._loop.call_later(grace, process.interrupt)
            self._loop.call_later(grace + 5.0, self._crash, process)
        elif process.draining_since is None:
            self._log(process, "drains")
            process.draining_since = self._loop.now
            grace = dice.choice((2.0, 10.0, 25.0))
            drained = process.spawn(clients.drain(process, grace))
            drained.add_done_callback(lambda task: self._crash(process))
            self._loop.call_later(dice.uniform(1.5, 4.0), self._operate_in, process)

    def _operate(self) -> None:
        self._operate_in(self._dice.choice(self._workers))

    def _operate_in(self, process: Process) -> None:
        if not process.dead:
            record = self._dice.choice(list(self._records.values()))
            process.spawn(self._programs[process].operate(record))

    # ------------------------------------------------------------------ what must come of it

    def _watch(self, changes: Sequence[Change]) -> None:
        sent = self._network.arriving
        assert sent is not None
        self._invariants.check(changes, sent, self._loop.now)

    def _unended(self) -> list[str]:
        return [
            record.session_id
            for record in self._records.values()
            if not self._invariants.is_over(self._stored(record))
        ]

    def _is_over(self) -> bool:
        if self._rules.broken is not None:
            return True
        return self._loop.now >= self._last and not self._invariants.running

    def _end(self) -> None:
        """End all processes: what they ran unwinds, and what is still on its way arrives."""
        failure, self._ended = self._loop.failure, True
        for process in self._workers:
            process.die()
        self._loop.failure = None
        self._loop.run(lambda: False, self._loop.now + LIMIT_SECONDS)
        self._loop.failure = failure or self._loop.failure

    def _log(self, process: Process, *what: Any) -> None:
        if self._keep:
            self.lines.append(line(self._loop.now, process.name, *what))
