"""The tables and plots of a run, from what was measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

_OURS: Final = "this package, async"
_WIDE: Final = 0.10
_MARKERS: Final = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.S)


def median(rounds: Sequence[Mapping[str, float]], figure: str) -> float:
    """Return a figure's median over the rounds."""
    return statistics.median(one[figure] for one in rounds)


def spread(rounds: Sequence[Mapping[str, float]], figure: str) -> float:
    """Return how far the middle half of the rounds lies apart, as a part of the median."""
    values = [one[figure] for one in rounds]
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / statistics.median(values)


def table(
    found: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
    cases: Mapping[str, str],
    figure: str,
    *,
    ratios: bool = True,
    digits: int = 0,
) -> str:
    """Return a Markdown table: a row for each client, two columns for each case.

    Args:
        found: what was measured, by case and client.
        cases: which cases, and the heading of each.
        figure: what is shown.
        ratios: whether this package's figure is shown as a part of each client's, too.
        digits: decimals.
    """
    names = list(dict.fromkeys(name for case in cases for name in found[case]))
    heads = [head for case in cases.values() for head in ([case, "ours is"] if ratios else [case])]
    lines = ["| client | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name in names:
        cells = []
        for case in cases:
            rounds = found[case].get(name)
            if rounds is None:
                cells += ["-"] * (1 + ratios)
                continue
            value = median(rounds, figure)
            cells.append(f"{value:,.{digits}f}{' ~' if spread(rounds, figure) > _WIDE else ''}")
            if ratios:
                ours = median(found[case][_OURS], figure)
                cells.append("" if name == _OURS else f"{ours / value:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(
    title: str,
    found: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
    cases: Mapping[str, str],
    figure: str,
) -> str:
    """Return an SVG picture: for each case a bar for each client."""
    height, left, width, rows = 18, 190, 760, 0
    parts: list[str] = []

    def text(x: float, words: str, *, bold: bool = False, anchor: str = "start") -> None:
        style = ' font-weight="bold"' if bold else ""
        parts.append(
            f'<text x="{x:.0f}" y="{rows * height + 13}" text-anchor="{anchor}"{style}>'
            f"{escape(words)}</text>\n"
        )

    text(8, title, bold=True)
    for case, head in cases.items():
        rows += 2
        text(8, head, bold=True)
        values = {name: median(rounds, figure) for name, rounds in found[case].items()}
        for name, value in values.items():
            rows += 1
            long = value / max(values.values()) * (width - left - 70)
            colour = "#0b6e4f" if name.startswith("this package") else "#9aa5b1"
            text(left - 8, name, anchor="end")
            parts.append(
                f'<rect x="{left}" y="{rows * height + 2}" width="{long:.1f}" height="14" '
                f'fill="{colour}"/>\n'
            )
            text(left + long + 6, f"{value:,.0f}")
    full = (rows + 1) * height + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{full}" '
        f'viewBox="0 0 {width} {full}" font-family="sans-serif" font-size="12" fill="#1f2933">\n'
        f'<rect width="{width}" height="{full}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


_OPERATIONS: Final = ("get", "update", "query", "transaction")
_SERVICES: Final = {
    "get": "the store's get",
    "get_session": "`get_pipeline_session`",
    "save": "`save_pipeline_session`",
    "list": "`list_pipeline_sessions(limit=25)`",
    "update_execution": "`update_agent_execution`",
    "record_metric": "`record_metric`",
    "track": "`track_session`, nine agents",
}


def _cases(at_once: int, operations: Sequence[str] = _OPERATIONS) -> dict[str, str]:
    return {f"{name} {at_once}": "query of 25" if name == "query" else name for name in operations}


def _services(run: Mapping[str, Any]) -> str:
    lines = ["| call | async, 1 | async, 32 | blocking, 1 |", "|---|---:|---:|---:|"]
    for name, head in _SERVICES.items():
        cells = []
        for at_once, client in (
            (1, _OURS),
            (32, _OURS),
            (1, "this package, blocking"),
        ):
            rounds = run["services"][f"{name} {at_once}"][client]
            wide = " ~" if spread(rounds, "microseconds") > _WIDE else ""
            cells.append(f"{median(rounds, 'microseconds'):,.0f}{wide}")
        lines.append(f"| {head} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _pipeline(run: Mapping[str, Any]) -> str:
    rounds = run["services"]["track 32"][_OURS]
    agents, cost = run["agents"], run["pipeline"]
    return (
        f"| a nine-agent run, 32 at once on a local engine | |\n|---|---:|\n"
        f"| tracked agents a second, one process | {median(rounds, 'a_second') * agents:,.0f} |\n"
        f"| processor time a tracked agent (begin and end) | "
        f"{median(rounds, 'microseconds') / agents:,.0f} µs |\n"
        f"| requests a run | {cost['requests']:g} |\n"
        f"| write units a run | {cost['units']:g} |\n"
    )


def _versions(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items()) + "\n"


_SECTIONS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "versions": _versions,
    "cpu1": lambda run: table(run["plain"], _cases(1), "microseconds"),
    "cpu32": lambda run: table(run["plain"], _cases(32), "microseconds"),
    "cpu256": lambda run: table(run["plain"], _cases(256), "microseconds"),
    "rate256": lambda run: table(run["plain"], _cases(256), "a_second"),
    "tls": lambda run: table(run["tls"], _cases(32), "microseconds"),
    "latency": lambda run: table(
        run["latency"], {"get 32": "32 at once", "get 256": "256 at once"}, "a_second"
    ),
    "memory": lambda run: table(
        run["memory"],
        {"get 1": "one get", "get 1000": "1,000 gets at once"},
        "peak_megabytes",
        ratios=False,
    ),
    "starts": lambda run: table(
        run["starts"],
        {"import": "import", "first get": "first get", "first save": "first save"},
        "milliseconds",
    ),
    "services": _services,
    "pipeline": _pipeline,
}


def sections(run: Mapping[str, Any]) -> dict[str, str]:
    """Return each table by its name."""
    return {name: make(run) for name, make in _SECTIONS.items()}


def plots(run: Mapping[str, Any]) -> dict[str, str]:
    """Return each picture by its file's name."""
    return {
        "processor.svg": plot(
            "microseconds of processor time an operation, 32 at once",
            run["plain"],
            _cases(32),
            "microseconds",
        ),
        "latency.svg": plot(
            "gets a second over 4 ms of latency",
            run["latency"],
            {"get 32": "32 at once", "get 256": "256 at once"},
            "a_second",
        ),
    }


def with_tables(document: str, run: Mapping[str, Any]) -> str:
    """Return the document with the tables of a run between its markers."""
    made = sections(run)
    return _MARKERS.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}", document)


def write(run: Mapping[str, Any], document: Path) -> None:
    """Write the tables of a run into the document, and its pictures beside it."""
    document.write_text(with_tables(document.read_text(), run))
    for name, picture in plots(run).items():
        (document.with_suffix("") / name).write_text(picture)
