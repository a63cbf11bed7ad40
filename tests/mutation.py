"""Remove each condition and each token of the services in turn: some test must fail for each.

`python -m tests.mutation [WORD ...]` prints a line for each mutant and the sum; words choose
mutants by their description. A mutant that no test notices makes the exit status 1.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tdev_models"
FILES = [
    *sorted((PACKAGE / "services").glob("*.py")),
    *sorted((PACKAGE / "workers").glob("*.py")),
    PACKAGE / "dynamodb" / "saves.py",
    PACKAGE / "metrics" / "recorder.py",
]
AT_ONCE = 2
SECONDS = 900
# What is most likely to notice runs first, of each file that is changed.
FIRST = {
    "workers/claims.py": ("presence", "resume", "users", "clocks", "recovery"),
    "workers/presence.py": ("presence", "late_copies", "workers"),
    "workers/liveness.py": ("presence", "workers"),
    "services/failed_attempts.py": ("failed_attempts",),
    "workers/lease.py": ("resume", "races", "users", "clocks", "recovery"),
    "workers/leased_writes.py": ("leased_writes", "late_copies", "races", "ends", "users"),
    "workers/users.py": ("users",),
    "services/sessions.py": ("sessions", "late_copies", "users", "expiry"),
    "services/execution_writes.py": ("failed_attempts", "executions", "users", "ends", "usage"),
    "services/executions.py": ("executions", "users", "ends", "usage"),
    "services/execution_states.py": ("executions", "late_copies"),
    "services/effects.py": ("effects",),
    "services/adoption.py": ("users",),
    "services/progress.py": ("users", "agent_keys", "from_agent"),
    "services/projects.py": ("projects", "late_copies"),
    "services/reencryption.py": ("rekey",),
    "dynamodb/saves.py": ("late_copies", "sessions", "projects"),
    "metrics/recorder.py": ("cells", "automatic"),
}

ALWAYS = ast.parse(
    "__import__('pynamodb.expressions.operand').expressions.operand.Path('x').does_not_exist()"
    " | __import__('pynamodb.expressions.operand').expressions.operand.Path('x').exists()",
    mode="eval",
).body

# What recognises an own write, or makes a resent one do nothing.
TOKENS = (
    ("workers/claims.py", "stored is None or stored.lease_token != self._token", "True"),
    (
        "workers/leased_writes.py",
        "(stored.status, stored.fence) == (ends, lease.fence)",
        "False",
    ),
    ("workers/leased_writes.py", "stored.last_updated == now", "True"),
    (
        "workers/leased_writes.py",
        "transact_write([request, *parts], token",
        "transact_write([request, *parts], uuid.uuid4().hex",
    ),
    ("workers/leased_writes.py", "stored.lease_write in writes", "False"),
    ("dynamodb/saves.py", "token in (stored.write_token, stored.former_token)", "False"),
    ("dynamodb/saves.py", "stored.former_token)", "None)"),
    ("services/progress.py", "unfenced or execution.fence is not None", "True"),
    ("services/execution_writes.py", "or began_or_ended_with(stored, token)", ""),
    ("services/execution_writes.py", "stored.write_token == token or", ""),
    ("services/effects.py", "stored is None or stored.write_token != token", "True"),
    ("services/projects.py", "chosen in (seen.download_ids or ())", "False"),
    ("services/projects.py", "download_id is None or seen.last_accessed in tried", "True"),
    ("services/projects.py", "download_id is None or seen.last_accessed in tried", "False"),
    ("metrics/recorder.py", "stored is None or stored.seq != item.seq", "True"),
    ("metrics/recorder.py", "stored is None or stored.seq != item.seq", "False"),
    (
        "metrics/recorder.py",
        "error, written = (raised, _WriterCell(cell.key))",
        "error, written = (raised, cell)",
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One file of the services, changed in one place."""

    name: str
    file: str
    source: str


class _Change(ast.NodeTransformer):
    """Counts the places that can be changed, and changes the n-th."""

    def __init__(self, place: int) -> None:
        self.place, self.seen, self.said = place, 0, ""

    def _here(self, node: ast.AST, what: str) -> bool:
        self.seen += 1
        if self.seen - 1 != self.place:
            return False
        self.said = f"line {getattr(node, 'lineno', 0)}: {what}"
        return True

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if isinstance(node.op, ast.BitAnd) and self._here(node, f"without {ast.unparse(node)}"):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if ast.unparse(node.annotation) == "Condition" and self._here(
            node, f"always, not {ast.unparse(node)}"
        ):
            node.value = ALWAYS
            return node
        return self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        if node.arg == "condition" and self._here(node.value, f"no {ast.unparse(node)}"):
            node.value = ast.Constant(None)
            return node
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if isinstance(node.op, ast.BitAnd):
            for kept, dropped in ((node.left, node.right), (node.right, node.left)):
                if self._here(node, f"without & {ast.unparse(dropped)}"):
                    return kept
        return self.generic_visit(node)


def mutants() -> Iterator[Mutant]:
    """Yield every mutant."""
    for path in FILES:
        place = 0
        while True:
            tree = ast.parse(path.read_text())
            change = _Change(place)
            source = ast.unparse(ast.fix_missing_locations(change.visit(tree)))
            if not change.said:
                break
            file = str(path.relative_to(PACKAGE))
            yield Mutant(f"{file} {change.said}", file, source)
            place += 1
    for file, old, new in TOKENS:
        source = ast.unparse(ast.parse((PACKAGE / file).read_text()))
        if source.count(old) != 1:
            sys.exit(f"{file} no longer has once: {old}")
        yield Mutant(f"{file} {old} -> {new}", file, source.replace(old, new))


@contextmanager
def copied(mutant: Mutant) -> Iterator[Path]:
    """Copy the project to a place of its own, and put the mutant in."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for part in (
            "tdev_models",
            "migrations",
            "tests",
            "benchmarks",
            "setup.cfg",
            "pyproject.toml",
            "README.md",
            "examples",
        ):
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, copy / part, symlinks=True)
            else:
                shutil.copy2(ROOT / part, copy / part)
        (copy / "tdev_models" / mutant.file).write_text(mutant.source)
        yield copy


def killed_by(mutant: Mutant) -> str | None:
    """Return the first test that fails with the mutant, or None."""
    with copied(mutant) as copy:
        paths = [
            *(ROOT / "tests" / "engine").glob("test_*.py"),
            ROOT / "tests/security/test_rekey.py",
        ]
        others = sorted(str(path.relative_to(ROOT)) for path in paths)
        first = [f"/test_{name}.py" for name in FIRST.get(mutant.file, ())]
        tests = [path for name in first for path in others if path.endswith(name)]
        tests += [path for path in others if path not in tests]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, "-k", "not moto", *tests],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy)},
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"no test ended within {SECONDS} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode and not failed:
        sys.exit(f"{mutant.name}: no test ran\n{done.stdout}{done.stderr}")
    return failed[0].split(" - ")[0] if done.returncode else None


def main(words: list[str]) -> int:
    chosen = [one for one in mutants() if all(word in one.name for word in words)]
    survived = 0
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for mutant, killer in zip(chosen, threads.map(killed_by, chosen), strict=True):
            survived += killer is None
            print(f"{'SURVIVED' if killer is None else 'killed  '} {mutant.name}")
            print(f"         {killer or 'no test failed'}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} killed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
