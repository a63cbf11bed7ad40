"""A month of T-Developer: sessions, agents, failures, retries, workers, projects and metrics.

`seed(...)` fills the tables of the settings in force as the services would have left them; the same
arguments make the same month. `python -m benchmarks.seeded_month 10000` fills the tables that the
environment names, for looking at `tdev` and its pages: `tdev local -- python -m ...`.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

from benchmarks.month import (
    PRICE,
    VARIANTS,
    Item,
    Month,
    Run,
    attempt,
    cell,
    execution,
    kept,
    project,
    stored,
    worker,
)
from tdev_models import AGENTS, Settings, aws, settings

DAYS = 30
# Of each agent: the median of its seconds, how often an attempt fails, tokens in and out.
_WORK = {
    "nl_input": (1.2, 0.004, 900, 150),
    "ui_selection": (2.5, 0.003, 1_200, 200),
    "parser": (4.0, 0.012, 2_600, 900),
    "component_decision": (6.0, 0.010, 3_500, 700),
    "match_rate": (1.5, 0.002, 0, 0),
    "search": (3.0, 0.030, 0, 0),
    "generation": (38.0, 0.060, 9_000, 14_000),
    "assembly": (5.0, 0.020, 0, 0),
    "download": (0.8, 0.006, 0, 0),
}
_ERRORS = {
    "httpx.ReadTimeout": "no answer from the model within {n} s",
    "openai.RateLimitError": "429: rate limit reached for requests, try again in {n} s",
    "ValueError": "file src/app{n}.js imports './missing{n}', which is not there",
    "json.decoder.JSONDecodeError": "Expecting ',' delimiter: line {n} column 7 (char {n}1)",
    "ConnectionError": "search index '10.0.0.{n}:9200' refused the connection",
}
_BY_AGENT = {"generation": 0, "parser": 3, "search": 4, "assembly": 2}
_THINGS = ("todo app", "blog", "shop", "chat", "wiki", "dashboard", "booking site", "할 일 앱")


def seed(sessions: int = 10_000, days: int = DAYS, now: float | None = None) -> dict[str, int]:
    """Fill the tables, and return how many sessions have which fate."""
    chosen, moment = settings.current(), time.time() if now is None else now
    names = [f"worker-{number}:{1000 + 7 * number}:{number:08x}" for number in range(1, 7)]
    month = Month(moment, days, random.Random(sessions), names, names[-1])
    with ThreadPoolExecutor(4) as threads:
        items = _items(month, sessions)
        while batch := list(islice(items, 100)):
            # Not more at once than the engine takes: what is queued is memory.
            list(
                threads.map(
                    partial(_write, chosen),
                    (batch[at : at + 25] for at in range(0, len(batch), 25)),
                )
            )
    return month.counts


def _write(chosen: Settings, items: list[Item]) -> None:
    puts: dict[str, list[Any]] = {}
    for table, raw in items:
        puts.setdefault(chosen.table_name(table), []).append({"PutRequest": {"Item": raw}})
    aws.call(chosen, "BatchWriteItem", {"RequestItems": puts})


def _items(month: Month, sessions: int) -> Iterator[Item]:
    for number, name in enumerate(month.workers):
        yield worker(month, name, number)
    for number in range(sessions):
        yield from _session(month, number, sessions)
    for key, samples in month.samples.items():
        yield cell(*key, samples)


def _fate(month: Month, number: int, sessions: int) -> tuple[str, float]:
    """Return how a session has ended so far, and when it was created."""
    open_ones = max(1, sessions // 200)
    left = sessions - number
    dice = month.dice
    if left <= open_ones:
        return "live", month.now - dice.uniform(5, 240)
    if left <= 2 * open_ones:
        fate = ("dead", "backoff", "due", "backoff", "stalled")[number % 5]
        return fate, month.now - dice.uniform(1300, 7200)
    at = month.now - 86400 * month.days * (left / sessions) - dice.uniform(0, 3600)
    # By day more than by night.
    at -= 6 * 3600 * (math.sin(at / 86400 * 2 * math.pi) > 0.5) * dice.random()
    return ("abandoned" if dice.random() < 0.015 else "completed"), at


def _session(month: Month, number: int, sessions: int) -> Iterator[Item]:
    dice = month.dice
    fate, at = _fate(month, number, sessions)
    worker = month.dead if fate == "dead" else dice.choice(month.workers[:4])
    run = Run(month, number, fate, at, worker)
    kind = "SIMPLE" if dice.random() < 0.7 else "PRODUCTION"
    user, thing = f"u{int(dice.paretovariate(1.2)) % 400:03}", dice.choice(_THINGS)
    month.sample(at, "sessions_started", dimension=kind)
    stops_in = None if fate == "completed" else AGENTS[min(8, int(dice.gauss(6, 1.6)) % 9)]
    for agent in AGENTS:
        if not _agent(run, agent, stops_in):
            break
    month.counts[fate] = month.counts.get(fate, 0) + 1
    yield from run.executions
    yield stored(run, user, thing, kind)
    ends = {"completed": "sessions_completed", "abandoned": "sessions_abandoned"}
    ends |= dict.fromkeys(("backoff", "due"), "sessions_failed")
    if fate in ends:
        stopped = "" if fate == "completed" else str(run.failed_agent)
        month.sample(run.at, ends[fate], agent=stopped, dimension=kind)
    if fate == "completed":
        month.sample(run.at, "session_duration", run.at - run.created, dimension=kind)
        yield project(run, user, thing)


def _agent(run: Run, agent: str, stops_in: str | None) -> bool:
    """Run one agent; return whether the session goes on."""
    month, dice = run.month, run.month.dice
    median, failing, tokens_in, tokens_out = _WORK[agent]
    run.current = agent
    attempts: dict[str, Any] = {}
    stops = agent == stops_in and run.fate != "completed"
    used = [0, 0]
    for tried in range(1, 4):
        run.at += dice.uniform(0.02, 0.2)
        seconds, begun = dice.lognormvariate(math.log(median), 0.45), run.at
        latest = month.now - (2 if run.fate == "live" else 1250)
        open_ones = run.fate in ("live", "dead", "stalled")
        if open_ones and (stops or run.at + seconds > latest):
            run.at = min(run.at, latest)
            attempts[str(tried)] = attempt(run, tried, "RUNNING", run.at, None, None)
            run.executions.append(execution(run, agent, "RUNNING", attempts, used))
            return False
        run.at += seconds
        used = [used[0] + tokens_in, used[1] + int(tokens_out * dice.uniform(0.5, 1.5))]
        fails = stops or (tried < 3 and dice.random() < failing)
        _sample(run, agent, seconds, tried, fails)
        if not fails:
            attempts[str(tried)] = attempt(run, tried, "COMPLETED", begun, run.at, None)
            break
        attempts[str(tried)] = _failed(run, agent, tried, begun)
        if tried == 2 and not stops:  # the session failed, and another worker resumed it later
            run.fence, run.at = run.fence + 1, run.at + dice.uniform(30, 900)
            run.worker = dice.choice(month.workers[:4])
            month.sample(run.at, "sessions_resumed")
    if stops:
        run.executions.append(execution(run, agent, "FAILED", attempts, used))
        return False
    run.progress += 1
    run.executions.append(execution(run, agent, "COMPLETED", attempts, used))
    if sum(used):
        month.sample(run.at, "agent_tokens", sum(used), agent, "large")
        month.sample(run.at, "agent_cost_usd", PRICE * sum(used), agent, "large")
    return True


def _sample(run: Run, agent: str, seconds: float, tried: int, fails: bool) -> None:
    """Record what the package would of one try."""
    variant = VARIANTS[run.number % 2] if agent == "search" else ""
    run.month.sample(run.at, "agent_execution_time", seconds, agent, variant, error=fails)
    if tried > 1:
        run.month.sample(run.at, "agent_retries", agent=agent)


def _failed(run: Run, agent: str, tried: int, begun: float) -> dict[str, Any]:
    """Let an attempt fail, keep it, and return it."""
    dice = run.month.dice
    kind = list(_ERRORS)[_BY_AGENT.get(agent, dice.randrange(5))]
    if agent == "generation" and dice.random() < 0.3:
        kind = "openai.RateLimitError"
    error = f"{kind.rpartition('.')[2]}: {_ERRORS[kind].format(n=dice.randint(2, 60))}"
    run.executions.append(kept(run, agent, tried, begun, kind, error))
    run.month.sample(run.at, "agent_failures", agent=agent)
    run.failed_agent, run.error = agent, error
    return attempt(run, tried, "FAILED", begun, run.at, error)


if __name__ == "__main__":
    print(seed(*map(int, sys.argv[1:2])))
