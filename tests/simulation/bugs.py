"""Bugs that are put in on purpose, in copies of the project: the simulation must find each."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time

from tests.mutation import PACKAGE, Mutant, copied

BUGS = (
    # Conditions that are missing.
    (
        "a claim asks nothing",
        "workers/claims.py",
        "self._condition = unchanged(seen)",
        "self._condition = seen.is_as_read(PipelineSession.user_id)",
    ),
    (
        "a claim does not see what the owner wrote",
        "workers/claims.py",
        "(PipelineSession.lease_write, PipelineSession.worker_id)",
        "(PipelineSession.worker_id,)",
    ),
    (
        "an agent's end asks for no lease",
        "workers/leased_writes.py",
        "condition=lease.condition)",
        "condition=None)",
    ),
    (
        "a session's end asks for no lease",
        "workers/leased_writes.py",
        "condition = lease.condition_as_written",
        "condition = PipelineSession.session_id.exists()",
    ),
    (
        "an execution is written as it is now",
        "services/execution_writes.py",
        "condition = seen_condition(seen)",
        "condition = None",
    ),
    (
        "an effect is reserved twice",
        "services/effects.py",
        "condition: Condition = AgentExecution.execution_id.does_not_exist()",
        "condition = None",
    ),
    (
        "a metric goes backward",
        "metrics/recorder.py",
        "Metric.seq < item.seq",
        "Metric.seq.exists()",
    ),
    # Tokens that are lost.
    (
        "a metric's cell is used after an error",
        "metrics/recorder.py",
        "error, written = (raised, _WriterCell(cell.key))",
        "error, written = (raised, cell)",
    ),
    (
        "a retried end has another token",
        "workers/leased_writes.py",
        "transact_write([request, *parts], token",
        "transact_write([request, *parts], uuid.uuid4().hex",
    ),
    (
        "an own execution is not known again",
        "services/execution_writes.py",
        "if not _is_written_with(stored, token):",
        "if True:",
    ),
    # Reads before the fence, and other ways to lose or to forget.
    (
        "work is read from an index that lags",
        "services/progress.py",
        "for execution in await client.executions.get_many(keys)",
        "for execution in (await client.executions.page(session_id, "
        "index=AgentExecution.project_index))[0]",
    ),
    (
        "an end is never due",
        "workers/leased_writes.py",
        "changes.append(set_to(PipelineSession.due_at, now + pause))",
        "changes.append(PipelineSession.due_at.remove())",
    ),
    (
        "a claim is never due",
        "workers/claims.py",
        "set_to(PipelineSession.due_at, self._due_at)",
        "PipelineSession.due_at.remove()",
    ),
    (
        "deploys count as failures",
        "services/resume.py",
        "resumed = force or not was_handed_back(seen)",
        "resumed = True",
    ),
    (
        "progress is forgotten",
        "workers/leased_writes.py",
        "*(progress_made() if ended else ())",
        "*()",
    ),
    ("what had no lease is not adopted", "services/tracking.py", "if lease.adopts:", "if False:"),
    (
        "stale work counts",
        "services/progress.py",
        "is_outdated = (execution.fence or 0) < latest_fence",
        "is_outdated = False",
    ),
    # Who is declared dead, and who learns of it.
    (
        "a lease looks over before it is",
        "workers/liveness.py",
        "now <= (moment or 0) <= now + longest",
        "now <= (moment or 0) - 12 <= now + longest",
    ),
    (
        "a late heartbeat shortens the lease",
        "workers/presence.py",
        "condition=_beats_still() & later",
        "condition=_beats_still()",
    ),
    (
        "who was declared dead renews its lease",
        "workers/presence.py",
        "condition=_beats_still() & later",
        "condition=later",
    ),
    (
        "a session is taken from a worker that was not declared dead",
        "workers/claims.py",
        "return await declare_dead(client, seen.worker_id, calm_seconds)",
        "return not calm_seconds()",
    ),
    (
        "nobody waits after an outage of the store",
        "workers/liveness.py",
        "if calm_seconds():",
        "if False:",
    ),
    (
        "a claim of unknown outcome is forgotten",
        "workers/claims.py",
        "presence.settle(claim.settle)",
        "pass",
    ),
)


def mutants() -> list[Mutant]:
    """Return every bug as a changed file of the package."""
    found = []
    for name, file, old, new in BUGS:
        source = ast.unparse(ast.parse((PACKAGE / file).read_text()))
        if source.count(old) != 1:
            sys.exit(f"{file} no longer has once: {old}")
        found.append(Mutant(name, file, source.replace(old, new)))
    return found


def found_with(mutant: Mutant, histories: int) -> str | None:
    """Return how the simulation finds a bug, or None where it does not."""
    with copied(mutant) as copy:
        command = [sys.executable, "-m", "tests.simulation", "--histories", str(histories)]
        done = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("seed")]
    return lines[0] if lines else f"an error: {done.stderr.strip().splitlines()[-1]}"


def main(words: list[str], histories: int) -> int:
    """Put in each bug whose name has all words."""
    chosen = [one for one in mutants() if all(word in one.name for word in words)]
    missed = 0
    for mutant in chosen:
        begun = time.monotonic()
        how = found_with(mutant, histories)
        missed += how is None
        print(f"{mutant.name}: {how or 'NOT FOUND'} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} bugs found")
    return 1 if missed else 0
