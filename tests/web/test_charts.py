"""What is drawn over time stands at its time, also beside days without anything."""

from __future__ import annotations

from tdev_models.results import MetricRow, SessionCounts
from tdev_models.web.charts import columns, lines


def counts(day: str) -> SessionCounts:
    numbers = {"started": 3, "completed": 2, "failed": 1, "abandoned": 0, "resumed": 0}
    return SessionCounts(group=day, **numbers)


def row(day: str, hour: int | None = None) -> MetricRow:
    return MetricRow(
        metric_name="m",
        day=day,
        hour=hour,
        count=1,
        sum=2.0,
        mean=2.0,
        min=2.0,
        max=2.0,
        error_rate=0.0,
        percentiles={50: 2.0},
    )


def test_a_column_stands_at_its_day() -> None:
    drawn = columns([counts("2026-02-27"), counts("2026-02-28"), counts("2026-03-08")], ("failed",))
    assert [one.x for one in drawn] == [1.2, 11.2, 91.2]
    assert {one.width for one in drawn} == {7.6}
    assert columns([], ("failed",)) == []


def test_a_point_stands_at_its_hour_and_marks_do_not_overlap() -> None:
    drawn = lines([row("2026-02-28", 22), row("2026-02-28", 23), row("2026-03-01", 8)], [50])
    assert [x for x, _ in drawn.lines["p50"]] == [0, 10, 100]
    assert [tick.label for tick in drawn.xs] == ["02-28 22h", "03-01 08h"]
    month = lines([row(f"2026-01-{day:02}") for day in range(1, 32)], [50])
    assert [tick.label for tick in month.xs] == [f"01-{day:02}" for day in range(1, 32, 5)]


def test_one_point_stands_in_the_middle() -> None:
    assert [x for x, _ in lines([row("2026-02-28")], [50]).lines["p50"]] == [50]
