"""Tables fit every terminal; numbers are never broken; times are read as people write them."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

import pytest
from rich.console import Console

from tdev_models.cli import timeline
from tdev_models.cli.tables import Column, Table
from tdev_models.errors import InvalidRequest, plain
from tdev_models.results import Attempt, Execution, Session
from tdev_models.views import moments
from tdev_models.views.moments import ago, due, duration, local, moment
from tdev_models.views.numbers import short

Row = tuple[str, str, str]
COLUMNS: list[Column[Row]] = [
    Column(head="name", cell=itemgetter(0), kind="name"),
    Column(head="count", cell=itemgetter(1), kind="number", drop=1),
    Column(head="text", cell=itemgetter(2), drop=2),
]


def drawn(rows: list[Row], width: int, columns: list[Column[Row]] = COLUMNS) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(Table("", columns, rows))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 160])
def test_no_line_is_wider_and_no_number_is_broken(width: int) -> None:
    rows = [("n" * 70, "1234567", "t" * 90), ("할 일 앱", "7654321", "x\ny\x1b[31m")]
    lines = drawn(rows, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("n") >= 70  # a name is folded, never shortened
    left_out = "Left out at this width: " in " ".join(lines)
    for number in ("1234567", "7654321"):
        assert number in text or (left_out and "count" in text)
    assert "\x1b" not in text


def test_the_least_needed_columns_go_first_and_are_named() -> None:
    rows = [("n" * 20, "1234567", "t" * 30)]
    assert "Left out" not in "".join(drawn(rows, 47))
    assert drawn(rows, 46)[-1] == "Left out at this width: text"
    assert drawn(rows, 29)[-1] == "Left out at this width: text"
    assert " ".join(drawn(rows, 28)[-2:]) == "Left out at this width: count, text"


def test_what_is_said_of_an_empty_table_controls_no_terminal() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(Table("", COLUMNS, [], "User \x1b[31m has none."))
    assert captured.get() == "User \ufffd[31m has none.\n"


def test_a_column_of_which_nothing_is_known_is_left_out_in_silence() -> None:
    assert drawn([("a", "", "")], 80) == ["name", "────", "a"]


def test_harmless_text_and_short_numbers() -> None:
    assert plain("a\n[b]\x1b[31m\u202e") == "a [b]\ufffd[31m\ufffd"
    figures = {None: "", 0: "0", 0.5: "0.5000", 12.345: "12.3", 999.9: "1000", 123456: "123456"}
    figures |= {-12.345: "-12.3", -999.9: "-1000", -123456: "-123456"}
    assert {value: short(value) for value in figures} == figures


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 hours ago", 7200),
        ("90m", 5400),
        ("1.5h", 5400),
        ("1 day", 86400),
        ("3 weeks ago", 1814400),
        ("10 s", 10),
        ("5 mins ago", 300),
        ("now", 0),
    ],
)
def test_a_moment_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert moment("since", text) == pytest.approx(time.time() - seconds, abs=5)


def test_days_and_iso_are_read_and_others_refused() -> None:
    assert moment("since", "2026-01-01T00:00:00Z") == 1767225600
    for text in ("1767225600", "1767225600.5", "20260101T000000Z"):
        assert moment("since", text) == pytest.approx(1767225600, abs=0.5)
    for text in ("", "soon", "2 parsecs ago", "-3h"):
        with pytest.raises(InvalidRequest, match=r"^since: .* is not like '2 hours ago'"):
            moment("since", text)
    with pytest.raises(InvalidRequest, match=r"^since: "):
        moment("since", "99999999999 weeks")  # before all years


def test_a_moment_is_read_as_screens_and_pages_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone in ("UTC0", "KST-9", "<+05>-5", "CET-1CEST,M3.5.0,M10.5.0/3"):
            with monkeypatch.context() as there:
                there.setenv("TZ", zone)
                time.tzset()
                # Winter, summer, and the hour that the clocks repeat in between.
                for at in (1767225600, 1782864000, 1792888200, 1792891800):
                    assert moment("since", local(at)) == at
                assert moment("since", "2026-01-01 00:00:00 UTC") == 1767225600
                with pytest.raises(InvalidRequest, match=r"^since: "):
                    moment("since", "2026-01-01 00:00:00 XYZ")
    finally:
        time.tzset()


def test_days_begin_at_midnight_though_the_clocks_were_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    try:
        with monkeypatch.context() as berlin:
            berlin.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
            time.tzset()
            for day in ("2025-03-30", "2025-03-31", "2025-10-26", "2025-10-27", "2026-01-01"):
                noon = datetime.fromisoformat(f"{day}T12:00")

                class Then(datetime):
                    @classmethod
                    def now(cls, tz: Any = None, at: datetime = noon) -> Any:
                        return at.astimezone(tz) if tz else at

                berlin.setattr(moments, "datetime", Then)
                today = datetime.fromisoformat(day)
                yesterday = today - timedelta(days=1)
                assert moment("since", "today") == today.timestamp()
                assert moment("since", "yesterday") == yesterday.timestamp()
    finally:
        time.tzset()


def test_a_moment_that_is_none_is_shown_as_a_number() -> None:
    assert local(1.7e12) == "1.7e+12"


def test_durations_are_short() -> None:
    lengths = {0: "0s", 99: "99s", 100: "2m", 5999: "100m", 6000: "2h", 48 * 3600: "48h"}
    assert {seconds: duration(seconds) for seconds in lengths} == lengths
    assert duration(5 * 86400) == "5d"
    assert (ago(None), due(None), due(time.time() - 1)) == ("", "", "now")
    assert due(time.time() + 3600) == "in 60m"


def test_a_moment_is_shown_with_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as seoul:
            seoul.setenv("TZ", "KST-9")
            time.tzset()
            assert local(1767225600) == "2026-01-01 09:00:00 KST"
    finally:
        time.tzset()


def attempt(number: int, status: str, start: float, end: float | None) -> Attempt:
    return Attempt(number=number, status=status, start_time=start, end_time=end, worker="h:1:x")


def lines_of(session: Session, executions: list[Execution], width: int = 100) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(timeline.of(session, executions, now=2000.0))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_the_timeline_cuts_out_the_time_in_which_nothing_ran() -> None:
    first = Execution(
        execution_id="a",
        agent_name="parser",
        attempts=(attempt(1, "FAILED", 100, 110), attempt(2, "COMPLETED", 1000, 1010)),
    )
    second = Execution(
        execution_id="b", agent_name="search", attempts=(attempt(1, "RUNNING", 1990, None),)
    )
    active = Session(session_id="s", status="ACTIVE")
    lines = lines_of(active, [second, first])
    names = [line.split()[0] for line in lines if line.startswith(("parser", "search"))]
    assert names == ["parser", "parser", "search"]
    bars = [line.count(mark) for line, mark in zip(lines[-4:-1], "▓█▒", strict=True)]
    assert max(bars) - min(bars) <= 2  # ten seconds each
    assert lines[-1] == "No agent ran for 15m, 16m (:)."


@pytest.mark.parametrize("width", [34, 40])
def test_the_timeline_breaks_no_number_where_it_is_narrow(width: int) -> None:
    one = Execution(
        execution_id="a", agent_name="n" * 20, attempts=(attempt(1, "COMPLETED", 100, 112.3),)
    )
    lines = lines_of(Session(session_id="s", status="COMPLETED"), [one], width)
    assert max(map(len, lines)) <= width
    assert " ".join(lines).count("12.3") == 2  # of the axis, and of the attempt
    assert "…" not in "".join(lines)


def test_an_attempt_whose_worker_died_has_no_length() -> None:
    lost = Execution(
        execution_id="a",
        agent_name="parser",
        attempts=(attempt(1, "LOST", 100, None), attempt(2, "COMPLETED", 105, 110)),
    )
    lines = lines_of(Session(session_id="s", status="COMPLETED"), [lost])
    (row,) = (line for line in lines if line.startswith("parser") and "LOST" in line)
    assert row.count("?") == 1
    assert "LOST (?): its worker died or lost the session, nobody knows when." in lines
    assert lines_of(Session(session_id="s", status="ACTIVE"), []) == ["No agent has begun."]
