"""What must hold after each accepted write, whatever happens around it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tests.simulation.engine import Change, Engine
from tests.simulation.network import Sent
from tests.simulation.processes import EPOCH
from tests.simulation.records import Record, Samples, Violation, number, text
from tests.simulation.values import Item
from tests.simulation.workers import Workers

FINAL = ("COMPLETED", "ABANDONED")
METRIC = "samples"


class Invariants:
    """Looks at each change with the request that made it.

    Attributes:
        running: the sessions that have not ended for good.
    """

    def __init__(
        self,
        engine: Engine,
        records: Mapping[str, Record],
        samples: Samples,
        workers: Workers,
        *,
        max_attempts: int,
        longest_wait: float,
    ) -> None:
        self._workers = workers
        self._engine, self._records, self._samples = engine, records, samples
        self._max_attempts, self._longest_wait = max_attempts, longest_wait
        self.running: set[str] = set()
        self._sessions = engine.items("pipeline-sessions")
        self._executions = engine.items("agent-executions")

    def check(self, changes: Sequence[Change], sent: Sent, now: float) -> None:
        """Raise Violation where the changes of one request break a rule."""
        for change in changes:
            if change.table == "pipeline-sessions":
                self._check_session(change, sent, now)
            elif change.table == "agent-executions":
                self._check_execution(change, sent)
            elif change.table == "metrics" and change.key[1].startswith(METRIC):
                self._check_samples(change)
        if len(changes) > 1:
            self._check_sums(changes)

    # ------------------------------------------------------------------ sessions

    def _check_session(self, change: Change, sent: Sent, now: float) -> None:
        old, new = change.old, change.new
        if change.key[0].startswith("#"):
            self._workers.check(change, sent, now)
            return
        self._workers.session_changes(old, now)
        record = self._records[change.key[0]]
        status, before = text(new, "status"), text(old, "status")
        if number(new, "fence") != number(old, "fence"):
            self._check_claim(record, old, new, sent, now)
        elif status == "ABANDONED":
            self._check_abandoned(record, old, new)
            if "lease_token" in old and sent.lease_of(record.session_id) is None:
                self._workers.is_taken_away(record, int(number(old, "fence")), sent.process)
        else:
            self._check_owner(record, old, sent)
        (self.running.discard if self.is_over(new) else self.running.add)(record.session_id)
        if before in FINAL and status != before and before != "ABANDONED":
            raise Violation(f"{record.session_id}: {before} became {status}")
        if status == "COMPLETED" != before and "lease_token" in old:
            self._check_completed(record)
        if status == "FAILED" != before:
            record.failures += 1
        if status in ("ACTIVE", "FAILED"):
            self._check_found(record, new, now)
        if status == "ACTIVE" and "lease_token" in old and "lease_token" not in new:
            self._workers.is_handed_back(record)

    def is_over(self, session: Item) -> bool:
        """Return whether nothing more becomes of a session by itself: it may wait for money."""
        waits = _is_spent(session) and text(session, "status") == "FAILED"
        in_vain = number(session, "resumes_without_progress")
        return text(session, "status") in FINAL or (waits and in_vain >= self._max_attempts)

    def _check_claim(self, record: Record, old: Item, new: Item, sent: Sent, now: float) -> None:
        fence, token = int(number(new, "fence")), text(new, "lease_token")
        if fence != number(old, "fence") + 1 or fence in record.owners or token is None:
            raise Violation(f"{record.session_id}: claim {fence} was made out of turn")
        record.owners[fence] = (token, sent.process)
        was_owned = text(old, "status") == "ACTIVE" and "lease_token" in old
        if was_owned:
            record.failures += 1
            if record.redone_from is None:  # nobody forces it
                self._workers.check_owner_is_gone(record, old, now)
            self._workers.is_taken_away(record, fence - 1, sent.process)
        was_handed_back = text(old, "status") == "ACTIVE" and "lease_owner" not in old and fence > 1
        more = number(new, "resume_count") > number(old, "resume_count")
        if was_handed_back and more and record.redone_from is None:
            raise Violation(f"{record.session_id}: it was handed back, and that counts as a resume")
        in_vain = number(new, "resumes_without_progress")
        if in_vain > record.failures + 1:
            raise Violation(
                f"{record.session_id}: resumed in vain {in_vain:g} times, after only "
                f"{record.failures} failures"
            )

    def _check_owner(self, record: Record, old: Item, sent: Sent) -> None:
        """Check that who wrote an item of the session owns it, if anybody does."""
        token, lease = text(old, "lease_token"), sent.lease_of(record.session_id)
        if lease is not None:
            if lease.token != token:
                raise Violation(
                    f"{record.session_id}: a write of claim {lease.fence} was accepted under claim "
                    f"{int(number(old, 'fence'))} ({text(old, 'status')})"
                )
        elif token is not None:
            _, process = record.owners[int(number(old, "fence"))]
            if process is not sent.process:
                raise Violation(f"{record.session_id}: written by another process than its owner")

    def _check_abandoned(self, record: Record, old: Item, new: Item) -> None:
        reason = text(new, "error_message") or ""
        if text(old, "status") == "COMPLETED":
            raise Violation(f"{record.session_id}: COMPLETED became ABANDONED")
        if reason in record.reasons:
            return
        if not reason.startswith("gave up after"):
            raise Violation(f"{record.session_id}: abandoned for no reason: {reason!r}")
        if _is_spent(old):
            raise Violation(f"{record.session_id}: given up though it waits for money")
        if record.failures < self._max_attempts:
            raise Violation(
                f"{record.session_id}: given up after {record.failures} failures, not "
                f"{self._max_attempts}"
            )

    def _check_completed(self, record: Record) -> None:
        """Check that the owner of a session ends it with all of its agents' work."""
        fence = 0.0
        for place, agent in enumerate(record.agents):
            execution = self._executions.get((f"{record.session_id}-{agent}", agent), {})
            if text(execution, "status") != "COMPLETED":
                raise Violation(f"{record.session_id}: COMPLETED, and {agent} is not")
            if "fence" not in execution:
                raise Violation(
                    f"{record.session_id}: COMPLETED with {agent}, which no claim knows"
                )
            if number(execution, "fence") < fence:
                raise Violation(f"{record.session_id}: {agent} is older than what it was made of")
            fence = max(number(execution, "fence"), record.begun_again.get(place, 0))
            if number(execution, "fence") < fence:
                raise Violation(f"{record.session_id}: {agent} is older than what began again")

    def _check_found(self, record: Record, new: Item, now: float) -> None:
        wait = number(new, "due_at") - (EPOCH + now)
        if "due_at" not in new or wait > self._longest_wait:
            raise Violation(f"{record.session_id}: recovery will not find it ({wait:.0f} s)")

    # ------------------------------------------------------------------ executions

    def _check_execution(self, change: Change, sent: Sent) -> None:
        execution_id, agent = change.key
        if "#" in agent:
            self._check_effect(change, sent)
            return
        session_id = execution_id.removesuffix(f"-{agent}")
        record, session = self._records[session_id], self._sessions.get((session_id,), {})
        if "fence" in change.new and number(change.new, "fence"):
            self._check_owner(record, session, sent)
            if number(change.new, "fence") > number(session, "fence"):
                raise Violation(f"{execution_id}: written under a claim that never was")
        begins = text(change.new, "status") == "RUNNING" != text(change.old, "status")
        if begins and _is_spent(session):
            raise Violation(f"{execution_id}: begun though the session's budget is spent")
        ended = text(change.new, "status") == "COMPLETED"
        # A bare call's end that comes late counts as no progress of the session.
        if ended and text(change.old, "status") != "COMPLETED" and number(change.new, "fence"):
            record.failures = 0
        output = record.finished.get(agent)
        if output is None or record.may_be_redone(agent):
            return
        if not ended or text(change.new, "output_data") != output:
            raise Violation(f"{execution_id}: its finished output was lost")

    def _check_effect(self, change: Change, sent: Sent) -> None:
        if "end_time" in change.old and change.old != change.new:
            raise Violation(f"{change.key}: the result of an effect was changed")

    def _check_sums(self, changes: Sequence[Change]) -> None:
        """Check that a session has cost what its executions have."""
        for change in changes:
            if change.table != "pipeline-sessions":
                continue
            (session_id,) = change.key
            spent = sum(
                number(self._executions.get((f"{session_id}-{agent}", agent), {}), "cost_usd")
                for agent in self._records[session_id].agents
            )
            if spent > self._records[session_id].used:
                raise Violation(f"{session_id}: what a try has cost counts twice")
            if spent != number(change.new, "cost_usd"):
                raise Violation(f"{session_id}: its executions have cost {spent:g} USD")

    # ------------------------------------------------------------------ metrics

    def _check_samples(self, change: Change) -> None:
        stored, name = self._samples.stored, change.key[1]
        stored[name] = int(number(change.new, "value"))
        stored[f"count {name}"] = int(number(change.new, "count"))
        self.check_samples()

    def check_samples(self) -> None:
        """Check that each awaited sample is in once, and that none is twice."""
        stored = self._samples.stored
        total = sum(value for name, value in stored.items() if not name.startswith("count"))
        count = sum(value for name, value in stored.items() if name.startswith("count"))
        if count != total.bit_count() or total >= 1 << self._samples.begun:
            raise Violation(f"metrics: a sample counts twice: {total:b} of {count} samples")
        if lost := self._samples.awaited & ~total:
            raise Violation(f"metrics: awaited samples are lost: {lost:b}")


def _is_spent(session: Item) -> bool:
    budget = session.get("budget_usd")
    return budget is not None and number(session, "cost_usd") >= float(budget["N"])


def output_text(output: object) -> str:
    """Return an output as it is stored."""
    return json.dumps(output, separators=(",", ":"), sort_keys=False)
