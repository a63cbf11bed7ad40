"""How the demo prints what it read: tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table

from tdev_models.cli.demo import bill
from tdev_models.cli.demo.checks import Check, Facts, Story, process_of
from tdev_models.cli.engine import Engine
from tdev_models.results import AGENTS, Attempt, Execution, MetricRow, Project, Session

Pair: TypeAlias = tuple[Execution, Attempt]

_READS = ("GetItem", "Query", "TransactGetItems")

# What an agent's stored output says, in a few words.
_SUMMARIES: dict[str, Callable[[Any], str]] = {
    "nl_input": lambda output: f"{len(output['words'])} words",
    "ui_selection": lambda output: str(output["framework"]),
    "parser": lambda output: ", ".join(output["entities"]),
    "component_decision": lambda output: f"{sum(map(len, output.values()))} candidates",
    "match_rate": lambda output: f"{output['overall']:.0%} matched",
    "search": lambda output: str(output["api"]),
    "generation": lambda output: f"{len(output['files'])} files",
    "assembly": lambda output: f"{output['imports_checked']} imports checked",
    "download": lambda output: str(output["file_name"]),
}


def tables(console: Console, facts: Facts, story: Story) -> None:
    """Print the timeline, the attempts, the history, the metrics and the cost."""
    attempts = [(run, attempt) for run in facts.executions for attempt in run.attempts]
    attempts.sort(key=lambda pair: pair[1].start_time or 0)
    for table in (
        _timeline(facts.session, story, attempts),
        _attempts(story, attempts),
        _history(facts.projects, story),
        _metrics(facts.metrics),
        _cost(facts.bill),
    ):
        console.print(table)
        console.print()


def _timeline(session: Session, story: Story, attempts: Sequence[Pair]) -> Table:
    def at(moment: float | None) -> str:
        return "" if moment is None else f"+{moment - (session.created_at or 0):.2f} s"

    table = _table(f"Session {session.session_id}", "from", "to", "what", "by", right=(0, 1))
    table.add_row(at(session.created_at), "", "session created", _who(story, attempts[0][1]))
    for _, group in groupby(attempts, lambda pair: (pair[1].worker, pair[1].status)):
        (first, begun), *_, (last, ended) = 2 * list(group)
        agents = " … ".join(dict.fromkeys([first.agent_name, last.agent_name]))
        what = f"{agents} {ended.status}{'' if ended.end_time else ', never ended'}"
        table.add_row(at(begun.start_time), at(ended.end_time), what, _who(story, ended))
    what = f"session {session.status}, {session.progress} of {len(AGENTS)} agents"
    table.add_row("", at(session.last_updated), what, _who(story, attempts[-1][1]))
    return table


def _attempts(story: Story, attempts: Sequence[Pair]) -> Table:
    table = _table("Attempts", "agent", "#", "status", "took", "by", "output", right=(1, 3))
    for execution, attempt in attempts:
        took, output = "cut off", ""
        if attempt.start_time and attempt.end_time:
            took = _milliseconds(attempt.end_time - attempt.start_time)
            output = _SUMMARIES[execution.agent_name](execution.output_data)
        number, by = str(attempt.number), _who(story, attempt)
        table.add_row(execution.agent_name, number, attempt.status, took, by, output)
    return table


def _history(projects: Sequence[Project], story: Story) -> Table:
    table = _table(
        f"History of {story.user_id}", "project", "made of", "downloads", "size", right=(2, 3)
    )
    for project in projects:
        size = f"{1000 * (project.size_mb or 0):.1f} KB"
        made_of = ", ".join(project.tech_stack)
        table.add_row(project.project_name, made_of, str(project.download_count), size)
    return table


def _metrics(rows: Sequence[MetricRow]) -> Table:
    columns = ("runs", "mean", "max", "failed")
    table = _table("Metric agent_execution_time today", "agent", *columns, right=(1, 2, 3, 4))
    for row in sorted(rows, key=lambda row: AGENTS.index(row.agent_name or "")):
        mean, most = _milliseconds(row.mean), _milliseconds(row.max)
        table.add_row(row.agent_name, str(row.count), mean, most, f"{row.error_rate:.0%}")
    return table


def _cost(file: Path) -> Table:
    columns = ("requests", "read units", "write units", "refused")
    table = _table("What it cost", "who", *columns, right=(1, 2, 3, 4))
    sums: dict[str, list[float]] = {}
    for sender, event in bill.read(file):
        reads = event.units if event.operation in _READS else 0
        line = [1, reads, event.units - reads, event.error is not None]
        for key in (sender, "all"):
            sums[key] = [a + b for a, b in zip(sums.get(key, [0] * 4), line, strict=True)]
    total = sums.pop("all")
    for sender, line in [*sorted(sums.items()), ("all", total)]:
        table.add_row(sender, *(f"{number:g}" for number in line), style="bold" * (sender == "all"))
    return table


def checked(console: Console, checks: Sequence[Check]) -> bool:
    """Print each claim with a tick, or the value that is wrong; return whether all hold."""
    for claim, actual, expected in checks:
        if actual == expected:
            console.print(f"[green]✓[/] {claim}")
        else:
            console.print(f"[red]✗[/] {claim}")
            console.print(f"  found    {actual!r}\n  expected {expected!r}", markup=False)
    return all(actual == expected for _, actual, expected in checks)


def further(console: Console, engine: Engine, directory: Path, story: Story) -> None:
    """Print how to look further at what is left running."""
    exports = "\n".join(f"export {name}={value}" for name, value in engine.environ.items())
    console.print(
        f"\nThe engine runs on, pid {engine.pid}. To look further:\n\n{exports}\n"
        "python -c 'from tdev_models.sync import get_pipeline_session as get; "
        f'print(get("{story.session_id}"))\'\n'
        f"unzip -l {directory}/*.zip\n"
        f"kill {engine.pid}; rm -r {directory}  # ends it",
        soft_wrap=True,
    )


def _who(story: Story, attempt: Attempt) -> str:
    pid = process_of(attempt)
    return f"worker {story.pids.index(pid) + 1}" if pid in story.pids else f"process {pid}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _table(title: str, *columns: str, right: tuple[int, ...] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number in right else "left")
    return table
