"""How the demo prints what it read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from tdev_models import settings
from tdev_models.cli import timeline
from tdev_models.cli.demo import bill
from tdev_models.cli.demo.checks import Check, Facts, Story
from tdev_models.cli.engine import Engine
from tdev_models.cli.screen import READS
from tdev_models.cli.show import facts as facts_of
from tdev_models.cli.tables import Column, Table
from tdev_models.results import AGENTS, Execution, MetricRow, Project
from tdev_models.views.numbers import short

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


def tables(console: Console, facts: Facts, story: Story, prices: Mapping[str, float]) -> None:
    """Print the session, what it made, the history, the metrics and the bill.

    `prices`: USD for a million units of `read` and of `write`.
    """
    parts: list[RenderableType] = [
        *facts_of(facts.session),
        "",
        timeline.of(facts.session, facts.executions),
        f"Processes: {_processes(story)}",
        "",
        _outputs(facts.executions),
        "",
        _history(facts.projects, story),
        "",
        _metrics(facts.metrics),
        "",
        _bill(facts.bill, prices),
        f"At ${prices['read']:g} a million read units, ${prices['write']:g} a million write units: "
        "--read-price and --write-price set them.",
        "",
    ]
    for part in parts:
        console.print(part)


def _processes(story: Story) -> str:
    return ", ".join(f"{pid} is worker {number}" for number, pid in enumerate(story.pids, 1))


def _outputs(executions: Sequence[Execution]) -> Table[Execution]:
    ordered = sorted(executions, key=lambda one: AGENTS.index(one.agent_name))
    columns: list[Column[Execution]] = [
        Column(head="agent", cell=lambda one: one.agent_name, kind="name"),
        Column(
            head="output", cell=lambda one: _SUMMARIES[one.agent_name](one.output_data), kind="name"
        ),
    ]
    return Table("What they made", columns, ordered)


def _history(projects: Sequence[Project], story: Story) -> Table[Project]:
    columns: list[Column[Project]] = [
        Column(head="project", cell=lambda one: one.project_name or "", kind="name"),
        Column(head="made of", cell=lambda one: ", ".join(one.tech_stack), kind="name"),
        Column(head="downloads", cell=lambda one: str(one.download_count), kind="number"),
        Column(head="size KB", cell=lambda one: short(1000 * (one.size_mb or 0)), kind="number"),
    ]
    return Table(f"History of {story.user_id}", columns, projects)


def _metrics(rows: Sequence[MetricRow]) -> Table[MetricRow]:
    ordered = sorted(rows, key=lambda row: AGENTS.index(row.agent_name or ""))
    columns: list[Column[MetricRow]] = [
        Column(head="agent", cell=lambda one: one.agent_name or "", kind="name"),
        Column(head="runs", cell=lambda one: str(one.count), kind="number"),
        Column(head="mean s", cell=lambda one: short(one.mean), kind="number"),
        Column(head="max s", cell=lambda one: short(one.max), kind="number"),
        Column(head="failed %", cell=lambda one: f"{100 * one.error_rate:.0f}", kind="number"),
    ]
    return Table("Metric agent_execution_time today", columns, ordered)


def _bill(file: Path, prices: Mapping[str, float]) -> Table[Sequence[Any]]:
    sums: dict[str, list[float]] = {}
    for sender, event in bill.read(file):
        reads = event.units if event.operation in READS else 0
        writes = event.units - reads
        cents = 100 * (reads * prices["read"] + writes * prices["write"]) / 1e6
        line = [1, event.error is not None, reads, writes, cents]
        for key in (sender, "all"):
            sums[key] = [a + b for a, b in zip(sums.get(key, [0] * 5), line, strict=True)]
    total = sums.pop("all")
    lines = [[who, *line] for who, line in [*sorted(sums.items()), ("all", total)]]
    numbers = ("requests", "refused", "read units", "write units")
    columns: list[Column[Sequence[Any]]] = [
        Column(head="who", cell=itemgetter(0), kind="name"),
        *(
            Column(head=head, cell=lambda line, at=at: f"{line[at]:g}", kind="number", drop=at == 2)
            for at, head in enumerate(numbers, 1)
        ),
        Column(head="cents", cell=lambda line: f"{line[5]:.4f}", kind="number"),
    ]
    return Table("What it cost", columns, lines)


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
    environ = {"TDEV_ENV": settings.current().environment, **engine.environ}
    exports = "\n".join(f"export {name}={value}" for name, value in environ.items())
    console.print(
        f"\nThe engine runs on, pid {engine.pid}. To look further:\n\n{exports}\n"
        "python -c 'from tdev_models.sync import get_pipeline_session as get; "
        f'print(get("{story.session_id}"))\'\n'
        f"unzip -l {directory}/*.zip\n"
        f"kill {engine.pid}; rm -rf {directory}  # ends it",
        soft_wrap=True,
    )
