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
    assert rows[-2:] == [["1", "3"], ["100", "3"]]
    assert "A worker's heartbeat costs 3 units every 5 s, whatever the number" in README


def test_a_run_costs_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.run_costs")
    found = [(row[0], row[4], row[5]) for row in rows[11:15]]
    said = re.findall(r"^\| ([\d.]+) KB \| ([\d.]+|fails) \| ([\d.]+) \|$", README, re.M)
    for (size, plan, ours), row in zip(found, said[-4:], strict=True):
        assert size == row[0]
        assert float(ours) == pytest.approx(float(row[2]), rel=0.1)
        assert plan == "inf" if row[1] == "fails" else float(plan) == pytest.approx(float(row[1]))
    assert rows[16] == ["reading", "progress:", "requests", "1,", "read", "units", "1"]


def test_encryption_costs_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.encryption", "1")
    for name, column in (("in clear", 2), ("encrypted", 3)):
        (said,) = re.findall(rf"^\| {name} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", README, re.M)
        found = [float(row[column]) for row in rows[3:7]]
        assert found == pytest.approx([float(figure) for figure in said], rel=0.1)
    calls = {"100 sessions": "{'GenerateDataKey': 1}", "to read": "{'Decrypt': 1}"}
    for begin, counted in calls.items():
        (line,) = [" ".join(row) for row in rows if " ".join(row).startswith(begin)]
        assert line.endswith(counted)
    assert "100 sessions take one call\nof KMS" in README


def test_finding_failures_costs_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.failed_sessions", "200", "2000")
    assert [row[1:] for row in rows[1:]] == 2 * [["150", "2", "54", "2", "327.5"]]
    assert "327.5 read units" in README


def test_a_poll_costs_as_said(dynoxide: str) -> None:
    rows = printed("benchmarks.recovery", "10", "200")
    assert [row[1:] for row in rows[2:]] == 2 * [["3", "1.5"]]
    assert "costs 3 requests and 1.5 read units, beside" in README
