"""As many histories as the suite has time for; `make simulate` lets as many happen as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.simulation import bugs
from tests.simulation.histories import outcomes

SECONDS, LEAST = 30.0, 50


@pytest.mark.calm
def test_all_rules_hold_whatever_befalls_workers_and_requests() -> None:
    deadline = time.monotonic() + SECONDS
    for seen, (seed, wrong) in enumerate(outcomes(0, 1_000_000), 1):
        assert wrong is None, f"python -m tests.simulation --histories 1 --seed {seed}: {wrong}"
        if seen >= LEAST and time.monotonic() > deadline:
            break


def test_a_seed_has_one_history() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--histories", "1", "--seed", "11"]
    first, second = (
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    )
    assert first == second
    assert len(first.splitlines()) > 20


@pytest.mark.parametrize("bug", bugs.BUGS, ids=[bug.name for bug in bugs.BUGS])
def test_each_bug_still_changes_one_place_of_the_package(bug: bugs.Bug) -> None:
    changed = bug.mutant().source
    compile(changed, bug.file, "exec")
    assert bug.new in changed


@pytest.mark.parametrize("rule", sorted({bug.rule for bug in bugs.BUGS}))
def test_each_rule_finds_the_bug_that_it_is_there_for(rule: str) -> None:
    bug = next(bug for bug in bugs.BUGS if bug.rule == rule)
    found = bugs.found_with(bug.mutant(), 2000, rule)
    assert found is not None, bug.name
    assert rule in found
