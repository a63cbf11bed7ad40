"""`tdev metrics`, `usage`, `agents` and `ab`: tables that fit, and the same for machines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tdev_models import AGENTS, Settings, settings, sync
from tdev_models.cli import main

Printed = Callable[..., str]


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def printed(
    strict_store: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Printed:
    """Runs a command on a store with some runs in it, and returns what it printed."""
    monkeypatch.setenv("COLUMNS", "80")
    chosen = replace(strict_store, automatic_metrics=True)
    monkeypatch.setattr(settings, "_configured", chosen)
    for number in range(3):
        with sync.track_session(f"s{number}", pipeline_type="PRODUCTION") as session:
            for name in AGENTS:
                with session.agent(name, variant="A" if number else "B"):
                    pass
    sync.save_user_project(user_id="u", project_id="p", tech_stack=["React" * 30, "C#"])
    for number in range(80):
        for name in ("agent_execution_time", "waiting"):
            sync.record_metric(
                metric_name=name,
                agent_name="component_decision",
                dimension="AB"[number % 2],
                value=123456.789 * (1 + number % 2),
                error=number % 10 == 0,
            )
    sync.flush_metrics()
    capsys.readouterr()

    def run(*arguments: str) -> str:
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    return run


COMMANDS = [
    ("metrics", "agent_execution_time"),
    ("metrics", "agent_execution_time", "--by", "hour", "--agent", "parser"),
    ("metrics", "agent_execution_time", "--by", "agent"),
    ("metrics", "session_duration", "--by", "dimension"),
    ("usage",),
    ("agents",),
    ("ab", "component_decision", "A", "B"),
    ("ab", "component_decision", "A", "nobody"),
]


def test_every_table_fits_80_columns_and_has_its_json(printed: Printed) -> None:
    for command in COMMANDS:
        text = printed(*command)
        assert max(map(len, text.splitlines())) <= 80, text
        assert "…" not in text, text
        assert lines_of(printed(*command, "--json"))


def test_hours_and_days_are_said_to_be_utc(printed: Printed) -> None:
    for group in ("hour", "day"):
        assert f"\n{group} (UTC) " in printed("metrics", "agent_execution_time", "--by", group)
    assert "Sessions by day (UTC): " in printed("usage")


def test_a_range_in_which_no_session_ended_says_so(printed: Printed) -> None:
    assert "\nSessions by day (UTC): none has ended" in printed("usage", "--end", "2020-01-01")


def test_the_tables_show_what_was_recorded(printed: Printed) -> None:
    usage = printed("usage")
    assert "100.0 % of those that ended completed, 0.0 % abandoned" in " ".join(usage.split())
    assert usage.splitlines()[3].startswith("0 FAILED sessions wait to be resumed; due by now: 0.")
    sync.save_pipeline_session(session_id="f", status="FAILED")
    waiting = "1 FAILED session waits to be resumed; due by now: 1."
    assert printed("usage").splitlines()[3].startswith(waiting)
    assert "PRODUCTION" in usage
    assert "C♯" in usage
    agents = printed("agents")
    assert all(agent in agents for agent in AGENTS)
    assert "Slowest (p95): component_decision. Most failing: component_decision." in agents
    ab = ("ab", "component_decision", "A", "B", "--metric", "waiting")
    assert "B takes 100.0 % more than A" in " ".join(printed(*ab).split())
    by_agent = printed("metrics", "agent_execution_time", "--by", "agent").splitlines()
    assert by_agent[1].startswith("All hours from ")
    assert by_agent[4].rstrip().endswith("failed %")
    assert re.search(r"^component_decision +83 +\S+ +\S+ .* 9\.6$", "\n".join(by_agent), re.M)
    (row,) = lines_of(
        printed("metrics", "agent_execution_time", "--agent", "parser", "--days", "1", "--json")
    )
    assert (row["count"], row["agent_name"], row["error_rate"]) == (3, "parser", 0)
    (report,) = lines_of(printed("usage", "--json"))
    assert (report["sessions"]["started"], report["funnel"][2]["completed"]) == (4, 3)
    assert (report["waiting"], report["due"]) == (1, 1)


def test_an_uneven_test_is_given_its_weights(
    printed: Printed, capsys: pytest.CaptureFixture[str]
) -> None:
    ab = ("ab", "component_decision", "A", "B", "--json", "--weights")
    (even,), (uneven,) = (lines_of(printed(*ab, text)) for text in ("A=1,B=1", "A=1,B=99,C=0.5"))
    assert even["split_p_value"] > 1e-3 > uneven["split_p_value"]
    for wrong in ("", "A", "A=", "A=1,A=2", "A=1,B=-1"):
        assert main([*ab, wrong]) == 64
        said = capsys.readouterr().err
        assert said.startswith("error: weights: ")
        assert "is not like 'old=9,new=1'" in said
    for wrong, given in (("A=1", "['A']"), ("A=x,B=1", "['A=x,B']"), ("A=0,B=1", "['A', 'B']")):
        assert main([*ab, wrong]) == 64
        said = f"must be above 0 for A and B; they are given for {given}"
        assert capsys.readouterr().err == f"error: weights: {said}\n"


def test_a_range_can_be_given(printed: Printed, capsys: pytest.CaptureFixture[str]) -> None:
    start, end = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    command = ("metrics", "agent_execution_time", "--json")
    assert lines_of(printed(*command, "--start", start, "--end", end)) == []
    hour_ago, soon = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    ends = ("--start", hour_ago.isoformat(), "--end", soon.isoformat())
    assert sum(row["count"] for row in lines_of(printed(*command, *ends))) == 3 * 9 + 80
    assert main(["usage", "--start", end, "--end", start]) == 64
    assert capsys.readouterr().err.startswith("error: end: ")
    assert main(["usage", "--start", "yesterday"]) == 0
    assert main(["usage", "--start", "yesterday", "--days", "3"]) == 64
    assert "not allowed with argument --start" in capsys.readouterr().err
    assert main(["usage", "--start", "lately"]) == 64
    assert capsys.readouterr().err.startswith("error: start: ")


def test_a_group_is_named_by_what_it_is_grouped_by(printed: Printed) -> None:
    text = printed("metrics", "waiting", "--by", "dimension", "--agent", "component_decision")
    assert [line.split()[0] for line in text.splitlines()[6:8]] == ["A", "B"]
    assert main(["usage", "--days", "0"]) == 64


def test_names_are_printed_as_they_are(printed: Printed) -> None:
    for name in ("a[/b]", "[bold]x", ":rocket:"):
        assert f"\nNo samples of {name} there." in printed("metrics", name)
        assert f"agent_execution_time of {name}" in printed("ab", name, "A", "B")
    sync.save_user_project(user_id="u", project_id="q", tech_stack=["\x1b[31mred", "[/b]"])
    sync.flush_metrics()
    usage = printed("usage")
    assert "\ufffd[31mred" in usage
    assert "[/b]" in usage
    assert "\x1b" not in usage
