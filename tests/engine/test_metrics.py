"""Samples in, totals out."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from tdev_models import (
    InvalidRequest,
    MetricRow,
    Settings,
    compare_variants,
    query_metrics,
    record_metric,
)
from tests import raw
from tests.faults import Fault, injected

DAY = datetime(2026, 3, 1, tzinfo=UTC)


async def seed(*samples: tuple[float, str, datetime, str | None]) -> None:
    for value, agent, moment, dimension in samples:
        await record_metric(
            metric_name="seconds",
            agent_name=agent,
            value=value,
            timestamp=moment,
            dimension=dimension,
            error=value > 5,
        )


async def test_samples_are_grouped_by_hour_day_agent_or_dimension(store: Settings) -> None:
    await seed(
        (1, "parser", DAY + timedelta(minutes=1), "A"),
        (3, "parser", DAY + timedelta(minutes=59), "B"),
        (8, "search", DAY + timedelta(hours=1), None),
        (4, "search", DAY + timedelta(days=1, hours=23), "A"),
        (100, "search", DAY + timedelta(days=2), None),
    )
    await record_metric(metric_name="seconds_other", value=7, timestamp=DAY)
    end = DAY + timedelta(days=2)

    def shape(rows: list[MetricRow]) -> list[tuple[object, ...]]:
        return [(row.count, row.sum, row.mean, row.min, row.max, row.error_rate) for row in rows]

    hours = await query_metrics("seconds", DAY, end)
    assert [(row.day, row.hour) for row in hours] == [
        ("2026-03-01", 0),
        ("2026-03-01", 1),
        ("2026-03-02", 23),
    ]
    assert shape(hours) == [(2, 4, 2, 1, 3, 0), (1, 8, 8, 8, 8, 1), (1, 4, 4, 4, 4, 0)]
    days = await query_metrics("seconds", DAY, end, group_by="day")
    assert [(row.day, row.count, row.error_rate) for row in days] == [
        ("2026-03-01", 3, 1 / 3),
        ("2026-03-02", 1, 0),
    ]
    agents = await query_metrics("seconds", DAY, end, group_by="agent")
    assert [(row.agent_name, row.count) for row in agents] == [("parser", 2), ("search", 2)]
    dimensions = await query_metrics("seconds", DAY, end, group_by="dimension")
    assert [(row.dimension, row.count) for row in dimensions] == [("", 1), ("A", 2), ("B", 1)]
    (only,) = await query_metrics(
        "seconds", DAY, end, agent_name="search", dimension="A", group_by="agent"
    )
    assert (only.count, only.sum) == (1, 4)
    assert await query_metrics("seconds", DAY, end, agent_name="nobody") == []


class Percent(int, Enum):
    P95 = 95


async def test_an_enum_that_is_a_number_counts_as_its_value(strict_store: Settings) -> None:
    await seed((2.5, "parser", DAY, "A"))
    end = DAY + timedelta(hours=1)
    (row,) = await query_metrics("seconds", DAY, end, percentiles=(Percent.P95,))
    assert row.percentiles == {Percent.P95: 2.5}


async def test_a_cell_has_the_plans_attributes(store: Settings) -> None:
    await seed((2.5, "parser", DAY, "A"))
    (cell,) = raw.everything(store, "metrics")
    assert cell["date"] == {"S": "2026-03-01"}
    assert cell["metric_name"]["S"].startswith("seconds#parser#00#A#")
    assert (cell["value"], cell["count"], cell["hour"]) == ({"N": "2.5"}, {"N": "1"}, {"N": "0"})
    assert (cell["avg_response_time"], cell["error_rate"]) == ({"N": "2.5"}, {"N": "0"})
    assert cell["agent_name"] == {"S": "parser"}


async def test_a_sample_resent_after_a_lost_reply_counts_once(store: Settings) -> None:
    with injected(Fault("resent", operation="UpdateItem")):
        await seed((1, "parser", DAY, None))
    (row,) = await query_metrics("seconds", DAY, DAY + timedelta(hours=1))
    assert row.count == 1


async def test_every_form_of_time_is_the_same_moment(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Seoul")
    time.tzset()
    try:
        naive = datetime(2026, 3, 1, 9, 0)  # noqa: DTZ001 (what the plan's datetime.now() gives)
        for moment in (DAY, naive, DAY.timestamp(), "2026-03-01T00:00:00Z", "2026-03-01T09:00"):
            await record_metric(metric_name="m", value=1, timestamp=moment)
        (row,) = await query_metrics("m", naive, naive + timedelta(hours=1))
        assert (row.day, row.hour, row.count) == ("2026-03-01", 0, 5)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", None),
        ("value", float("nan")),
        ("value", "1"),
        ("value", True),
        ("value", 1e-61),
        ("value", 10**61),
        ("value", 10**400),
        ("value", Decimal("sNaN")),
        ("metric_name", "a#b"),
        ("metric_name", ""),
        ("agent_name", "a#b"),
        ("timestamp", "yesterday"),
        ("timestamp", 1e300),
        ("error", 1),
        ("unit", "s"),
    ],
)
async def test_bad_input_names_the_field_before_any_request(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await record_metric({"metric_name": "m", "value": 1, field: value})


async def test_a_range_must_be_one(store: Settings) -> None:
    for start, end in ((DAY, DAY), (DAY, DAY - timedelta(1)), (DAY, DAY + timedelta(days=367))):
        with pytest.raises(InvalidRequest, match=r"^end: "):
            await query_metrics("m", start, end)
    for percentiles in (95, "95", (101,), ("a",)):
        with pytest.raises(InvalidRequest, match=r"^percentiles: "):
            await query_metrics(
                "m",
                DAY,
                DAY + timedelta(1),
                percentiles=percentiles,  # type: ignore[arg-type]
            )
    with pytest.raises(InvalidRequest, match=r"^group_by: "):
        await query_metrics("m", DAY, DAY + timedelta(1), group_by="week")
    for field in ("agent_name", "dimension"):
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            await query_metrics("m", DAY, DAY + timedelta(1), **{field: 0})  # type: ignore[arg-type]


async def test_a_range_has_every_hour_that_it_touches_and_no_other(store: Settings) -> None:
    hours = [DAY + timedelta(hours=hour) for hour in (-2, -1, 0, 1, 22, 23, 24)]
    for hour in hours:
        await record_metric(metric_name="m", value=1, timestamp=hour + timedelta(minutes=30))

    async def found(start: datetime, end: datetime) -> list[datetime]:
        rows = await query_metrics("m", start, end)
        assert all(row.count == 1 for row in rows)
        return [datetime.fromisoformat(f"{row.day}T{row.hour:02}:00:00+00:00") for row in rows]

    second, minute = timedelta(seconds=1), timedelta(minutes=1)
    assert await found(hours[0], hours[-1]) == hours[:-1]
    assert await found(hours[2], hours[3]) == hours[2:3]
    assert await found(hours[2] - second, hours[3] + second) == hours[1:4]
    assert await found(hours[2] + 59 * minute, hours[2] + 60 * minute) == hours[2:3]
    assert await found(hours[5], hours[6]) == hours[5:6]
    assert await found(hours[3] + minute, hours[5]) == hours[3:5]


async def test_what_has_no_agent_or_dimension_can_be_asked_for(store: Settings) -> None:
    for agent, dimension in ((None, None), ("parser", None), (None, "A"), ("parser", "A")):
        await record_metric(
            metric_name="m", value=1, timestamp=DAY, agent_name=agent, dimension=dimension
        )
    for question, count in (
        ({"dimension": ""}, 2),
        ({"agent_name": ""}, 2),
        ({"agent_name": "", "dimension": ""}, 1),
        ({}, 4),
    ):
        (row,) = await query_metrics("m", DAY, DAY + timedelta(1), **question)  # type: ignore[arg-type]
        assert row.count == count


async def test_a_sample_of_long_ago_can_be_read(store: Settings) -> None:
    long_ago = datetime(999, 5, 1, tzinfo=UTC)
    await record_metric(metric_name="m", value=1, timestamp=long_ago)
    (row,) = await query_metrics("m", long_ago, long_ago + timedelta(hours=1))
    assert (row.day, row.count) == ("0999-05-01", 1)


@pytest.mark.parametrize(
    "damage",
    [
        {"value": {"S": "of another program"}},
        {"min": {"NULL": True}},
        {"max": {"N": "1E+99"}},
        {"count": {"N": "1E+99"}},
        {"count": {"N": "0"}},
        {"error_count": {"N": "2"}},
        {"histogram": {"B": b"\x02"}},
        {"histogram": {"NULL": True}},
    ],
)
async def test_a_cell_that_cannot_be_read_hides_no_other(
    strict_store: Settings, damage: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    for agent in ("parser", "search"):
        await record_metric(metric_name="m", value=1, agent_name=agent, timestamp=DAY)
    damaged = next(
        one
        for one in raw.everything(strict_store, "metrics")
        if "search" in one["metric_name"]["S"]
    )
    key = damaged["date"]["S"], damaged["metric_name"]["S"]
    raw.put_attribute(strict_store, "metrics", *key, **damage)
    (row,) = await query_metrics("m", DAY, DAY + timedelta(hours=1), group_by="agent")
    assert (row.agent_name, row.count) == ("parser", 1)
    assert key[1] in caplog.text


async def test_a_cell_of_no_hour_hides_no_other(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    await record_metric(metric_name="m", value=1, timestamp=DAY)
    (cell,) = raw.everything(strict_store, "metrics")
    date, name = cell.pop("date")["S"], cell.pop("metric_name")["S"]
    for hour in ("24", "-1", ""):
        other = name.replace("#00#", f"#{hour}#")
        raw.put_attribute(strict_store, "metrics", date, other, **cell)
        (row,) = await query_metrics("m", DAY, DAY + timedelta(days=1))
        assert (row.hour, row.count) == (0, 1)
        assert other in caplog.text


@pytest.mark.parametrize(
    "damage", [{"log_sum": "1E+9"}, {"log_sum_squares": "1E+99"}, {"log_count": "2"}]
)
async def test_a_comparison_leaves_out_logarithms_of_another_program(
    strict_store: Settings, damage: dict[str, str]
) -> None:
    await record_metric(metric_name="m", value=2, agent_name="parser", dimension="A", timestamp=DAY)
    (cell,) = raw.everything(strict_store, "metrics")
    key = cell["date"]["S"], cell["metric_name"]["S"]
    others = {name: {"N": number} for name, number in damage.items()}
    raw.put_attribute(strict_store, "metrics", *key, **others)
    found = await compare_variants("parser", "A", "B", "m", DAY, DAY + timedelta(hours=1))
    assert found.a is None
