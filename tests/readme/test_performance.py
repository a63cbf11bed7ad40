"""docs/performance.md shows what `make bench` has measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.clients import report

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
RUN = json.loads((DOCUMENT.with_suffix("") / "figures.json").read_text())


def test_the_tables_are_those_of_the_run() -> None:
    document = DOCUMENT.read_text()
    for name, table in report.sections(RUN).items():
        assert f"<!-- {name} -->\n{table}<!-- end -->" in document
    assert report.with_tables(document, RUN) == document


@pytest.mark.parametrize("name", sorted(report.plots(RUN)))
def test_the_plots_are_those_of_the_run(name: str) -> None:
    assert (DOCUMENT.with_suffix("") / name).read_text() == report.plots(RUN)[name]
    assert f"(performance/{name})" in DOCUMENT.read_text()


def test_a_figure_spread_wide_is_marked() -> None:
    def rounds(*microseconds: float) -> list[dict[str, float]]:
        return [{"microseconds": one} for one in microseconds]

    found = {
        "get 1": {
            "this package, async": rounds(50, 50, 51, 49, 90),
            "another": rounds(100, 130, 70, 140, 60),
        }
    }
    table = report.table(found, {"get 1": "get"}, "microseconds")
    assert table.splitlines()[2:] == [
        "| this package, async | 50 |  |",
        "| another | 100 ~ | 0.50 |",
    ]
