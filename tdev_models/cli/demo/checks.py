"""Checks what is stored against what the demo saw happen."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tdev_models.cli.demo import bill
from tdev_models.cli.demo.agents import RUN
from tdev_models.results import AGENTS, Attempt, Execution, MetricRow, Project, Session

_MOST_APART = 1e-4  # seconds


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened, as the demo saw it: `left` is the session right after the kill."""

    request: str
    session_id: str
    user_id: str
    pids: list[int]
    died_of: int
    left: Session
    steps: list[dict[str, Any]]

    @property
    def winner(self) -> int:
        """The process that claimed the session."""
        return self.pids[1 + [step["step"] for step in self.steps].index("claimed")]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the store says afterwards."""

    session: Session
    executions: Sequence[Execution]
    projects: Sequence[Project]
    metrics: Sequence[MetricRow]
    stalled: Sequence[Session]
    file: Path
    bill: Path


class Check(NamedTuple):
    """One claim, and the actual and the expected value."""

    claim: str
    actual: Any
    expected: Any

    def to_dict(self) -> dict[str, Any]:
        """Return whether it holds, and the values where it does not."""
        holds = self.actual == self.expected
        values = {} if holds else {"found": repr(self.actual), "expected": repr(self.expected)}
        return {"claim": self.claim, "holds": holds, **values}


def check(facts: Facts, story: Story) -> list[Check]:
    """Return every claim of the demo with the actual and the expected value."""
    return [*_takeover(story), *_store(facts, story)]


def _takeover(story: Story) -> list[Check]:
    claimed = next(step for step in story.steps if step["step"] == "claimed")
    return [
        Check("worker 1 died of SIGKILL", story.died_of, 9),
        Check(
            "and left the session ACTIVE inside generation, 6 of 9 agents ended",
            (story.left.status, story.left.current_agent, story.left.progress, story.left.fence),
            ("ACTIVE", "generation", 6, 1),
        ),
        Check(
            "of two claims at once one won",
            sorted(step["step"] for step in story.steps),
            ["claimed", "refused"],
        ),
        Check(
            "it began at generation with the six stored outputs",
            (claimed["fence"], claimed["start_agent"], claimed["outputs"]),
            (2, "generation", list(AGENTS[:6])),
        ),
    ]


def _store(facts: Facts, story: Story) -> list[Check]:
    killed, winner, session = story.pids[0], story.winner, facts.session
    once = {name: [("COMPLETED", killed)] for name in AGENTS[:6]}
    once |= {name: [("COMPLETED", winner)] for name in AGENTS[7:]}
    made: dict[str, Any] = {}
    for name, agent in RUN.items():
        made[name] = agent(story.request, made)
    requests = [event for _, event in bill.read(facts.bill)]
    return [
        *_times(facts),
        Check(
            "the session is COMPLETED, 9 of 9, resumed once",
            (session.status, session.progress, session.fence, session.resume_count),
            ("COMPLETED", 9, 2, 1),
        ),
        Check(
            "each agent ran once, generation again by the winner",
            {
                run.agent_name: [(attempt.status, process_of(attempt)) for attempt in run.attempts]
                for run in facts.executions
            },
            once | {"generation": [("LOST", killed), ("COMPLETED", winner)]},
        ),
        Check(
            "the stored outputs are what the agents make of the request",
            {run.agent_name: run.output_data for run in facts.executions},
            made,
        ),
        Check(
            "the zip holds the files of the manifest, by checksum",
            _checksums(facts.file),
            {path: file["sha256"] for path, file in made["assembly"]["manifest"].items()},
        ),
        Check(
            "the history has the project, one download though it was reported twice",
            [(item.project_id, item.download_count, item.tech_stack) for item in facts.projects],
            [(story.session_id, 1, list(made["search"].values()))],
        ),
        Check(
            "the metrics have one run of each agent, none failed",
            {row.agent_name: (row.count, row.error_rate) for row in facts.metrics},
            dict.fromkeys(AGENTS, (1, 0)),
        ),
        Check("nothing is left to recover", [stalled.session_id for stalled in facts.stalled], []),
        Check(
            "the bill has each agent's begin and end, and the begin that was cut off",
            sum(sent.operation == "TransactWriteItems" and not sent.error for sent in requests),
            2 * len(AGENTS) + 1,
        ),
    ]


def _times(facts: Facts) -> list[Check]:
    """Check that metrics and attempts say the same of how long agents worked."""
    stored = {run.agent_name: run.attempts[-1] for run in facts.executions}
    told = {str(row.agent_name): row.mean for row in facts.metrics}
    apart = [
        name
        for name, attempt in stored.items()
        if abs((attempt.end_time or 0) - (attempt.start_time or 0) - told.get(name, math.inf))
        > _MOST_APART
    ]
    return [Check("metrics and attempts say the same of how long each agent worked", apart, [])]


def process_of(attempt: Attempt) -> int:
    """Return the pid of the worker that made an attempt."""
    return int((attempt.worker or "").rpartition(":")[2])


def _checksums(file: Path) -> dict[str, str]:
    with zipfile.ZipFile(file) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
