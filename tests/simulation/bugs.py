"""Bugs that are put in on purpose, in copies of the project: the simulation must find each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from typing import NamedTuple

from tests.mutation import PACKAGE, Mutant, copied


class Bug(NamedTuple):
    """A text that stands once in a file of the package, and what is put in its place.

    Attributes:
        rule: a part of what the rule says that is there for it; empty where any may find it.
    """

    name: str
    file: str
    old: str
    new: str
    rule: str = ""

    def mutant(self) -> Mutant:
        """Return the changed file.

        Raises:
            ValueError: the text is not there once.
        """
        source = ast.unparse(ast.parse((PACKAGE / self.file).read_text()))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} no longer has once: {self.old}")
        return Mutant(self.name, self.file, source.replace(self.old, self.new))


BUGS = (
    # Conditions that are missing.
    Bug(
        "a claim asks nothing",
        "workers/claims.py",
        "self._condition = unchanged(seen)",
        "self._condition = seen.is_as_read(PipelineSession.user_id)",
    ),
    Bug(
        "a claim does not see what the owner wrote",
        "workers/claims.py",
        "(PipelineSession.lease_write, PipelineSession.worker_id)",
        "(PipelineSession.worker_id,)",
    ),
    Bug(
        "an agent's end asks for no lease",
        "workers/leased_writes.py",
        "condition=lease.condition)",
        "condition=None)",
    ),
    Bug(
        "a session's end asks for no lease",
        "workers/leased_writes.py",
        "condition = lease.condition_as_written",
        "condition = PipelineSession.session_id.exists()",
    ),
    Bug(
        "an execution is written as it is now",
        "services/execution_writes.py",
        "condition = seen_condition(seen)",
        "condition = None",
    ),
    Bug(
        "an effect is reserved twice",
        "services/effects.py",
        "actions=actions, condition=condition)",
        "actions=actions)",
    ),
    Bug(
        "a metric goes backward",
        "metrics/recorder.py",
        "Metric.seq < item.seq",
        "Metric.seq.exists()",
    ),
    # Tokens that are lost.
    Bug(
        "a metric's cell is used after an error",
        "metrics/recorder.py",
        "error, written = (raised, _WriterCell(cell.key))",
        "error, written = (raised, cell)",
    ),
    Bug(
        "an own execution is not known again",
        "services/execution_writes.py",
        "if not _is_written_with(stored, token):",
        "if True:",
    ),
    # Reads before the fence, and other ways to lose or to forget.
    Bug(
        "work is read from an index that lags",
        "services/progress.py",
        "for execution in await client.executions.get_many(keys)",
        "for execution in (await client.executions.page(session_id, "
        "index=AgentExecution.project_index))[0]",
    ),
    Bug(
        "an end is never due",
        "workers/leased_writes.py",
        "changes.append(set_to(PipelineSession.due_at, now + pause))",
        "changes.append(PipelineSession.due_at.remove())",
    ),
    Bug(
        "a claim is never due",
        "workers/claims.py",
        "set_to(PipelineSession.due_at, self._due_at)",
        "PipelineSession.due_at.remove()",
    ),
    Bug(
        "deploys count as failures",
        "services/resume.py",
        "resumed = force or not was_handed_back(seen)",
        "resumed = True",
    ),
    Bug(
        "progress is forgotten",
        "workers/leased_writes.py",
        "*(progress_made() if ended else ())",
        "*()",
    ),
    Bug(
        "what had no lease is not adopted",
        "services/owned_session.py",
        "if lease.adopts:",
        "if False:",
    ),
    Bug(
        "stale work counts",
        "services/progress.py",
        "is_outdated = (execution.fence or 0) < latest_fence",
        "is_outdated = False",
    ),
    Bug(
        "who resumes next does not begin where it began again",
        "services/restarts.py",
        "Restart(claim, fence, start_time, again[0])",
        "Restart(claim, fence, start_time)",
    ),
    # Who is declared dead, and who learns of it.
    Bug(
        "a lease looks over before it is",
        "workers/liveness.py",
        "now <= (moment or 0) <= now + longest",
        "now <= (moment or 0) - 12 <= now + longest",
    ),
    Bug(
        "a late heartbeat shortens the lease",
        "workers/presence.py",
        "condition=_beats_still() & later",
        "condition=_beats_still()",
    ),
    Bug(
        "who was declared dead renews its lease",
        "workers/presence.py",
        "condition=_beats_still() & later",
        "condition=later",
    ),
    Bug(
        "a session is taken from a worker that was not declared dead",
        "workers/claims.py",
        "return await declare_dead(client, seen.worker_id, calm_seconds)",
        "return not calm_seconds()",
    ),
    Bug(
        "nobody waits after an outage of the store",
        "workers/liveness.py",
        "if calm_seconds():",
        "if False:",
    ),
    Bug(
        "a claim of unknown outcome is forgotten",
        "workers/claims.py",
        "presence.settle(claim.settle)",
        "pass",
    ),
    Bug(
        "a lease ends before the next heartbeat",
        "workers/presence.py",
        "round(now + self._settings.lease_seconds, 6)",
        "round(now + self._settings.lease_seconds / 8, 6)",
        "declared dead in a calm history",
    ),
    Bug(
        "an agent counts as hung from its begin",
        "services/agent_runs.py",
        "= self._started + most",
        "= self._started",
        "taken over in a calm history",
    ),
    Bug(
        "an agent counts as hung before its deadline",
        "workers/lease.py",
        "return deadline is not None and deadline < now",
        "return deadline is not None",
        "its worker was not declared dead",
    ),
    Bug(
        "workers share an id",
        "workers/presence.py",
        "f'{WORKER_IDS}{worker_name()}:{uuid.uuid4().hex[:8]}'",
        "f'{WORKER_IDS}one'",
        "renewed by another process",
    ),
    # Who is to end, and what is to happen in time.
    Bug(
        "a worker that drains claims sessions",
        "workers/claims.py",
        "if presence.draining:",
        "if False:",
        "begun by a worker that drains",
    ),
    Bug(
        "a worker that drains begins agents",
        "services/agent_runs.py",
        "if Presence.draining:",
        "if False:",
        "begun by a worker that drains",
    ),
    Bug(
        "nobody looks for the sessions of the dead",
        "services/due_queue.py",
        "return {WORKER: None, FAILED: None, ACTIVE: None}",
        "return {FAILED: None, ACTIVE: None}",
        "its worker died, and",
    ),
    Bug(
        "what is handed back is due later",
        "workers/leased_writes.py",
        "changes.append(set_to(PipelineSession.due_at, now + pause))",
        "changes.append(set_to(PipelineSession.due_at, now + pause + "
        "client.settings.stalled_after_seconds))",
        "it was handed back, and",
    ),
    Bug(
        "nobody looks for agents that hang",
        "workers/liveness.py",
        "if is_hung(session.deadline, now):",
        "if False:",
        "its agent hangs, and",
    ),
    Bug(
        "who abandons a session does not tell its worker",
        "services/sessions.py",
        "await revoke(client, worker_id, session_id, session.fence or 0)",
        "pass",
        "still runs",
    ),
    Bug(
        "a worker does not hear that it has lost a session",
        "workers/presence.py",
        "if held == session_id and number <= fence",
        "if held == session_id and number < fence",
        "still runs",
    ),
)


def found_with(mutant: Mutant, histories: int, rule: str = "") -> str | None:
    """Return how the simulation finds a bug, by a rule or by any, or None where it does not."""
    command = [sys.executable, "-m", "tests.simulation", "--histories", str(histories)]
    with copied(mutant) as copy:
        done = subprocess.run(
            [*command, "--rule", rule],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return None
    found = next((line for line in done.stdout.splitlines() if line.startswith("seed")), None)
    if found is None:
        sys.exit(f"{mutant.name}: no rule was broken, the simulation failed\n{done.stderr}")
    return found


def main(words: list[str], histories: int) -> int:
    """Put in each bug whose name has all words."""
    chosen = [bug for bug in BUGS if all(word in bug.name for word in words)]
    missed = 0
    for bug in chosen:
        begun = time.monotonic()
        how = found_with(bug.mutant(), histories)
        missed += how is None
        print(f"{bug.name}: {how or 'NOT FOUND'} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} bugs found")
    return 1 if missed else 0
