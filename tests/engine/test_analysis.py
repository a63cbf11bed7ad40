"""Reports of a seeded month equal a plain recomputation from what was seeded."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from tdev_models import (
    AGENTS,
    InvalidRequest,
    Settings,
    agent_performance,
    compare_variants,
    query_metrics,
    record_metric,
    settings,
    sync,
    usage_report,
)
from tdev_models.metrics.totals import Totals
from tests.conftest import make_tables

START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
DAYS = 30
END = START + DAYS * 86400


@dataclass
class Month:
    """What was done, written down beside the calls that did it."""

    events: list[tuple[str, float, str]] = field(default_factory=list)
    runs: list[tuple[str, float, float, bool]] = field(default_factory=list)
    retries: list[tuple[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stopped: Counter[str] = field(default_factory=Counter)
    technologies: Counter[str] = field(default_factory=Counter)
    downloads: int = 0


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def once(dynoxide: str) -> tuple[Month, Settings]:
    """Thirty days of sessions, run through the public calls while the clock is moved."""
    dice, month, clock = random.Random(11), Month(), Clock()
    store = make_tables(dynoxide, automatic_metrics=True)
    with settings.use(store, clock=clock, lease_seconds=1e5, stalled_after_seconds=2e5):
        moments = sorted(START - 86400 * 5 + dice.random() * 86400 * 35 for _ in range(45))
        for number, moment in enumerate(moments):
            clock.now = round(moment, 6)
            one_session(month, clock, dice, f"s{number}")
        sync.flush_metrics()
    return month, store


@pytest.fixture
def seeded(once: tuple[Month, Settings], monkeypatch: pytest.MonkeyPatch) -> Month:
    monkeypatch.setattr(settings, "_configured", once[1])
    return once[0]


def one_session(month: Month, clock: Clock, dice: random.Random, name: str) -> None:
    kind = dice.choice(["SIMPLE", "PRODUCTION"])
    fails_at = dice.choice([None, None, None, *AGENTS])
    begun = clock.now
    month.events.append(("started", begun, kind))

    def work(tracker: Any, broken: str | None, retried: str | None) -> None:
        for agent in AGENTS:
            with tracker.agent(agent) as run:
                if run.done:
                    continue
                took = round(dice.lognormvariate(1, 1), 3)
                clock.now = round(clock.now + took, 6)
                month.runs.append((agent, clock.now, took, agent == broken))
                if agent == retried:
                    month.retries.append((agent, clock.now))
                if agent == broken:
                    raise ValueError(agent)

    try:
        with sync.track_session(name, pipeline_type=kind) as tracker:
            work(tracker, fails_at, None)
    except ValueError:
        month.events.append(("failed", clock.now, kind))
        if inside(clock.now):
            month.stopped[str(fails_at)] += 1
        clock.now += 60
        if dice.random() < 0.4:
            sync.abandon_session(name, "enough")
            month.events.append(("abandoned", clock.now, kind))
            return
        month.events.append(("resumed", clock.now, kind))
        with sync.resume_pipeline(name) as resumed:
            work(resumed, None, fails_at)
    month.events.append(("completed", clock.now, kind))
    if not inside(clock.now):
        return
    month.seconds.append(clock.now - begun)
    made_of = dice.sample(["React", "Vue", "C#", "MongoDB"], 2)
    sync.save_user_project(user_id="u", project_id=name, tech_stack=made_of)
    month.technologies.update(one.replace("#", "♯") for one in made_of)
    for download in range(dice.randrange(3)):
        sync.record_download("u", name, str(download))
        month.downloads += 1


def inside(moment: float) -> bool:
    return START <= moment < END


def rank(numbers: list[float], percent: float) -> float:
    return sorted(numbers)[max(0, math.ceil(percent / 100 * len(numbers)) - 1)]


async def test_the_usage_report_is_what_was_done(seeded: Month) -> None:
    report = await usage_report(START, END)
    events = [event for event in seeded.events if inside(event[1])]

    def counted(group_of: Any) -> dict[str, Counter[str]]:
        groups: dict[str, Counter[str]] = {}
        for event, moment, kind in events:
            when = datetime.fromtimestamp(moment, UTC)
            groups.setdefault(group_of(when, kind), Counter())[event] += 1
        return groups

    for found, expected in (
        ((report.sessions,), counted(lambda when, kind: "all")),
        (report.by_day, counted(lambda when, kind: f"{when:%Y-%m-%d}")),
        (report.by_hour, counted(lambda when, kind: f"{when:%H}")),
        (report.by_type, counted(lambda when, kind: kind)),
    ):
        assert [one.group for one in found] == sorted(expected)
        for one in found:
            counts = {name: count for name, count in one.items() if name != "group" and count}
            assert counts == expected[one.group]
    every = Counter(event for event, _, _ in events)
    assert min(every.values()) > 2
    ended = every["completed"] + every["abandoned"]
    assert report.success_rate == every["completed"] / ended < 1
    assert report.abandonment_rate == every["abandoned"] / ended > 0
    good = Counter(agent for agent, when, _, failed in seeded.runs if inside(when) and not failed)
    assert [(step.agent_name, step.completed, step.stopped) for step in report.funnel] == [
        (agent, good[agent], seeded.stopped[agent]) for agent in AGENTS
    ]
    assert report.seconds is not None
    assert report.seconds.count == len(seeded.seconds)
    assert report.seconds.sum == pytest.approx(math.fsum(seeded.seconds), rel=1e-6)
    for percent, value in report.seconds.percentiles.items():
        assert value == pytest.approx(rank(seeded.seconds, percent), rel=0.02)
    assert report.technologies == seeded.technologies
    assert [*report.technologies.values()] == sorted(report.technologies.values(), reverse=True)
    assert report.downloads == seeded.downloads > 0


async def test_the_agents_performance_is_what_was_done(seeded: Month) -> None:
    middle = START + 10 * 86400
    report = await agent_performance(middle, END)
    before = middle - (END - middle)
    assert [one.agent_name for one in report.agents] == [*AGENTS]
    for one in report.agents:
        every = [run for run in seeded.runs if run[0] == one.agent_name]
        runs = [run for run in every if middle <= run[1] < END]
        former = [run for run in every if before <= run[1] < middle]
        times = [seconds for _, _, seconds, _ in runs]
        failures = sum(failed for *_, failed in runs)
        assert (one.runs, one.failures) == (len(runs), failures)
        assert one.success_rate == pytest.approx(1 - failures / len(runs))
        assert one.retries == sum(
            agent == one.agent_name and middle <= when < END for agent, when in seeded.retries
        )
        assert one.mean == pytest.approx(math.fsum(times) / len(times), rel=1e-5)
        assert one.max == pytest.approx(max(times), rel=1e-5)
        for percent in (50, 95, 99):
            assert one[f"p{percent}"] == pytest.approx(rank(times, percent), rel=0.0201)
        mean_before = math.fsum(run[2] for run in former) / len(former)
        assert one.trend == pytest.approx(one.mean / mean_before - 1, rel=1e-4)
    assert report.slowest == max(report.agents, key=lambda one: one.p95).agent_name
    failing = max(report.agents, key=lambda one: one.failures / one.runs)
    assert report.most_failing == failing.agent_name


async def test_the_longest_range_may_begin_within_an_hour(store: Settings) -> None:
    report = await agent_performance(START + 1800, START + 1800 + 366 * 86400)
    assert report.agents == ()
    with pytest.raises(InvalidRequest, match=r"^end: "):
        await agent_performance(START, START + 366 * 86400 + 1)


async def test_a_range_with_none_before_it_is_refused(strict_store: Settings) -> None:
    with pytest.raises(InvalidRequest, match=r"^start: "):
        await agent_performance("0001-01-02T00:00:00Z", "0001-01-09T00:00:00Z")


async def test_the_range_before_does_not_share_an_hour(store: Settings) -> None:
    for moment, value in ((START + 60, 1.0), (START + 3660, 3.0)):
        await record_metric(
            metric_name="agent_execution_time", agent_name="parser", value=value, timestamp=moment
        )
    report = await agent_performance(START + 3600 + 1800, START + 3600 + 1860)
    assert [(one.mean, one.trend) for one in report.agents] == [(3, 2)]
    assert (report.slowest, report.most_failing) == ("parser", None)


@pytest.mark.usefixtures("seeded")
async def test_nothing_is_added_up_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A month of it takes longer than anything else in the loop may wait."""
    threads, add = set[int](), Totals.add

    def noted(totals: Totals, more: Totals) -> None:
        threads.add(threading.get_ident())
        add(totals, more)

    monkeypatch.setattr(Totals, "add", noted)
    of_variant = {"metric_name": "tokens", "agent_name": "parser", "dimension": "a"}
    await record_metric(of_variant, value=1, timestamp=START)
    for call in (
        usage_report(START, END),
        agent_performance(START, END),
        query_metrics("agent_execution_time", START, END),
        compare_variants("parser", "a", "b", "tokens", START, END),
    ):
        threads.clear()
        await call
        assert threads
        assert threading.get_ident() not in threads


@pytest.mark.usefixtures("seeded")
async def test_percentiles_of_many_rows_are_computed_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, percentile = set[int](), Totals.percentile

    def noted(totals: Totals, percent: float) -> float:
        threads.add(threading.get_ident())
        return percentile(totals, percent)

    monkeypatch.setattr(Totals, "percentile", noted)
    assert await query_metrics("agent_execution_time", START, END, percentiles=(50, 99))
    assert threads
    assert threading.get_ident() not in threads


async def test_a_report_keeps_no_hours_that_it_does_not_show(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [("agent_execution_time", START + 3600 * hour) for hour in range(72)]
    await asyncio.gather(
        *(record_metric(metric_name=name, value=1, timestamp=moment) for name, moment in samples)
    )
    alive, most, changing = 0, 0, threading.Lock()

    def change(by: int) -> None:
        nonlocal alive, most
        with changing:
            alive += by
            most = max(most, alive)

    make = Totals.__init__

    def made(totals: Totals) -> None:
        change(1)
        make(totals)

    monkeypatch.setattr(Totals, "__init__", made)
    monkeypatch.setattr(Totals, "__del__", lambda totals: change(-1), raising=False)
    report = await agent_performance(START, START + 3 * 86400)
    assert report.agents[0].runs == len(samples)
    assert most < len(samples) / 2


async def test_reports_of_nothing_are_empty(store: Settings) -> None:
    report = await usage_report(START, END)
    assert (report.sessions.started, report.success_rate, report.seconds) == (0, None, None)
    assert (report.by_day, report.technologies, report.downloads) == ((), {}, 0)
    assert [step.completed for step in report.funnel] == [0] * len(AGENTS)
    performance = await agent_performance(START, END)
    assert (performance.agents, performance.slowest, performance.most_failing) == ((), None, None)
    for call in (usage_report, agent_performance):
        with pytest.raises(InvalidRequest, match=r"^end: "):
            await call(END, START)
