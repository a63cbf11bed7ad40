"""What must hold of workers: who is declared dead and why, and how soon others take over."""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation.engine import Change
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Sent
from tests.simulation.processes import EPOCH, Process
from tests.simulation.records import Record, Violation, number, text
from tests.simulation.tables import Key
from tests.simulation.values import Item

BEAT_SECONDS = 4.4  # a sixth of a lease, and jitter
_SLACK_SECONDS = 2.0  # some requests, one after the other
_LOOK_SECONDS = 5.0  # how often an idle slot looks whether it is time for a poll


class Workers:
    """Looks at what befalls workers and those who own a session.

    Attributes:
        alive: the processes that have not ended.
        calm: nothing happens but what sessions do.
        quiet: processes end, and people meddle, but what goes on is in time.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        records: Mapping[str, Record],
        sessions: Mapping[Key, Item],
        alive: list[Process],
        *,
        calm: bool,
        quiet: bool,
        clocks_may_differ_by: float,
        lease_seconds: float,
        poll_seconds: float,
    ) -> None:
        self._loop, self._records, self._sessions = loop, records, sessions
        self.alive = alive
        self.calm, self.quiet, self._skew = calm, quiet, clocks_may_differ_by
        self._lease, self._poll = lease_seconds, poll_seconds
        self._processes: dict[str, Process] = {}
        self._ran_alone_at = -1e9

    def session_changes(self, old: Item, now: float) -> None:
        """Note that a worker has run a session alone until now."""
        if _runs_alone(old):
            self._ran_alone_at = now

    def check(self, change: Change, sent: Sent, now: float) -> None:
        """Check that a worker is declared dead for a reason, and renewed by itself until then."""
        (worker_id,), old, new = change.key, change.old, change.new
        if not old:
            self._processes[worker_id] = sent.process
        renewed = number(new, "due_at") != number(old, "due_at")
        if "died_at" in old and renewed:
            raise Violation(f"{worker_id}: renewed after it was declared dead")
        if renewed and sent.process is not self._processes[worker_id]:
            raise Violation(f"{worker_id}: renewed by another process, {sent.process.name}")
        if number(new, "due_at") < number(old, "due_at") and text(new, "status") == "WORKER":
            raise Violation(f"{worker_id}: its lease was shortened")
        if "died_at" in new and "died_at" not in old:
            self._check_death(worker_id, old, now)

    def _check_death(self, worker_id: str, old: Item, now: float) -> None:
        if self.calm:
            raise Violation(f"{worker_id}: declared dead in a calm history")
        left = number(old, "due_at") - (EPOCH + now)
        if self._skew:
            return
        if left > 0:
            raise Violation(f"{worker_id}: declared dead {left:.1f} s too early")
        process = self._processes[worker_id]
        troubled = max(process.frozen_until, process.cut_off_until)
        if not process.dead and troubled + EPOCH < number(old, "due_at") - self._lease:
            raise Violation(f"{worker_id}: declared dead, and the store was away")

    def check_owner_is_gone(self, record: Record, old: Item, now: float) -> None:
        """Check that a session, which nobody forces, is taken over from who does not run it."""
        if self.calm:
            raise Violation(f"{record.session_id}: taken over in a calm history")
        if "deadline" in old and number(old, "deadline") < EPOCH + now + self._skew:
            return  # an agent hangs, on a worker that lives
        left = number(old, "lease_expires") - (EPOCH + now)
        worker = self._sessions.get((text(old, "worker_id"),))
        if worker is None:
            raise Violation(f"{record.session_id}: claimed by a worker that was never stored")
        if "lease_expires" in old:
            if not self._skew and left > 0:
                raise Violation(f"{record.session_id}: taken over {left:.1f} s too early")
        elif text(worker, "status") == "WORKER" and "died_at" not in worker:
            raise Violation(f"{record.session_id}: its worker was not declared dead")

    def owned_by(self, process: Process) -> list[Record]:
        """Return the sessions that a process owns."""
        found = []
        for record in self._records.values():
            stored = self._sessions.get((record.session_id,), {})
            owner = record.owners.get(int(number(stored, "fence")))
            if "lease_token" in stored and owner is not None and owner[1] is process:
                found.append(record)
        return found

    # ------------------------------------------------------------------ in time, where all is quiet

    def ends(self, process: Process) -> None:
        """Expect that others run what a process ran that has ended."""
        for record in self.owned_by(process):
            self._is_to_run_again(record, self._lease, "its worker died")

    def is_handed_back(self, record: Record) -> None:
        """Expect that others run a session that was handed back."""
        self._is_to_run_again(record, 0.0, "it was handed back")

    def is_hung(self, record: Record, timeout_seconds: float) -> None:
        """Expect that others run a session of which an agent hangs from now on."""
        self._is_to_run_again(record, timeout_seconds + self._lease, "its agent hangs")

    def _is_to_run_again(self, record: Record, after: float, why: str) -> None:
        if not self.quiet:
            return
        fence = number(self._sessions[(record.session_id,)], "fence")
        most = after + self._poll + _LOOK_SECONDS + _SLACK_SECONDS

        def check() -> None:
            stored = self._sessions[(record.session_id,)]
            done = number(stored, "fence") != fence or text(stored, "status") != "ACTIVE"
            # One that may kill its worker runs as soon as nothing else does, whenever that may be.
            suspect = number(stored, "worker_deaths") > 0
            if done or suspect or (why == "its agent hangs" and not record.hangs):
                return
            begun = self._loop.now - most
            if any(_runs_alone(item) for item in self._sessions.values()):
                self._ran_alone_at = self._loop.now
            waits = self._ran_alone_at > begun
            if not waits and any(one.born <= begun and not one.stop.is_set() for one in self.alive):
                raise Violation(
                    f"{record.session_id}: {why}, and {most:.0f} s later nobody runs it"
                )
            self._loop.call_later(_LOOK_SECONDS, check)

        self._loop.call_later(most, check)

    def is_taken_away(self, record: Record, fence: int, by: Process) -> None:
        """Expect that the agent of a session's former owner is cancelled."""
        if not self.quiet:
            return
        _, process = record.owners[fence]

        def check() -> None:
            told = not (by.dead or by.stop.is_set())
            if told and (process, fence) in record.at_work:
                raise Violation(
                    f"{record.session_id}: the agent of claim {fence} still runs "
                    f"{most:.1f} s after the session was taken away"
                )

        most = BEAT_SECONDS + _SLACK_SECONDS
        self._loop.call_later(most, check)


def _runs_alone(session: Item) -> bool:
    return text(session, "status") == "ACTIVE" and number(session, "worker_deaths") >= 2
