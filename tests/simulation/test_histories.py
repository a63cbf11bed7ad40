"""As many histories as the suite has time for; `make simulate` lets as many happen as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.simulation import bugs
from tests.simulation.__main__ import broken
from tests.simulation.clients import simulated

SECONDS = 30.0


@pytest.mark.calm
def test_all_rules_hold_whatever_befalls_workers_and_requests() -> None:
    begun, seed = time.monotonic(), 0
    with simulated():
        while time.monotonic() < begun + SECONDS:
            assert broken(seed) is None, f"python -m tests.simulation --histories 1 --seed {seed}"
            seed += 1
    assert seed > 10


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


def test_a_bug_is_found() -> None:
    claim = next(one for one in bugs.mutants() if one.name == "a claim asks nothing")
    found = bugs.found_with(claim, 300)
    assert found is not None
    assert found.startswith("seed")
