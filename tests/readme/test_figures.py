"""What the README says of costs is what its commands print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def printed(*arguments: str) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


def test_write_units_are_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.write_units")
    found = [(int(size), int(plan), int(ours)) for size, _, plan, ours, _ in rows[2:6]]
    said = re.findall(r"^\| (\d+) KB \| (\d+) \| (\d+) \|$", README, re.M)
    # Each release of Python has another library, which is the input, and another zlib.
    assert found == [pytest.approx([int(figure) for figure in row], rel=0.1) for row in said]
    beats = {size: units for size, _, units in rows[-3:]}
    assert beats == {"1": "1", "4": "4", "16": "16"}
    assert "one unit for a session of 1 KB, 4 for 4 KB, 16 for 16 KB" in README


def test_finding_failures_costs_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.failed_sessions", "200", "2000")
    assert [row[1:] for row in rows[1:]] == 2 * [["150", "2", "53", "2", "327.0"]]
    assert "327 read units" in README


def test_a_poll_costs_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.recovery", "10", "200")
    assert [row[1:] for row in rows[2:]] == 2 * [["2", "1.0"]]
    assert "costs 2 requests and 1 read unit, beside" in README
