"""Each awaited sample is in, once: batches, faults, forks, threads, exits."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdev_models import (
    RequestEvent,
    Settings,
    TdevError,
    Throttled,
    Unavailable,
    flush_metrics,
    query_metrics,
    record_metric,
    settings,
    sync,
)
from tdev_models.metrics import recorder as recording
from tdev_models.settings import Transport
from tests import raw, soak
from tests.faults import Fault, injected

NOW = 1_780_000_000.0


class Gate:
    """Holds back every write until opened; then lets through, or fails, what `verdict` says."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.requests: list[Mapping[str, Any]] = []
        self.verdict: Callable[[int], str] = lambda number: "ok"
        self.send: Transport

    def wrap(self, send: Transport) -> Transport:
        self.send = send

        async def gated(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if operation != "UpdateItem":
                return await send(operation, request)
            self.requests.append(request)
            number = len(self.requests)
            self.open.wait(10)
            verdict = self.verdict(number)
            if verdict != "lost":
                response = await send(operation, request)
                if verdict == "ok":
                    return response
            raise Unavailable(f"injected: {verdict}")

        return gated


@pytest.fixture
def gate(strict_store: Settings, monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    gated = replace(strict_store, transport=gate.wrap, clock=lambda: NOW, retry_seconds=0)
    monkeypatch.setattr(settings, "_configured", gated)
    return gate


def record(value: float, name: str = "m", **more: Any) -> asyncio.Task[None]:
    return asyncio.ensure_future(record_metric(metric_name=name, value=value, **more))


async def begun(gate: Gate, number: int) -> None:
    """Wait until so many writes are under way or over."""
    async with asyncio.timeout(5):
        while len(gate.requests) < number:  # noqa: ASYNC110 (set by other threads)
            await asyncio.sleep(0.005)


async def found(name: str = "m") -> tuple[int, float]:
    rows = await query_metrics(name, NOW - 90_000, NOW + 7200, group_by="agent")
    return (rows[0].count, rows[0].sum) if rows else (0, 0)


def cell_count(store: Settings) -> int:
    return len(raw.everything(store, "metrics"))


async def test_calls_made_during_a_write_share_the_next(gate: Gate, strict_store: Settings) -> None:
    first = record(1)
    await begun(gate, 1)
    others = [record(1) for _ in range(500)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in (first, *others))
    gate.open.set()
    await asyncio.gather(first, *others)
    assert len(gate.requests) == 2
    assert await found() == (501, 501)
    assert cell_count(strict_store) == 1


@pytest.mark.parametrize("fate", ["lost", "unanswered"])
async def test_a_failed_write_fails_its_calls_and_no_others(
    gate: Gate, strict_store: Settings, fate: str
) -> None:
    safe_waits = threading.Event()

    def verdict(number: int) -> str:
        if number == 3:
            safe_waits.wait(10)
        return fate if number == 3 else "ok"

    gate.verdict = verdict
    gate.open.set()
    await record(1)
    gate.open.clear()
    second = record(2)
    await begun(gate, 2)
    doomed = [record(4), record(8)]
    await asyncio.sleep(0.02)
    gate.open.set()
    await begun(gate, 3)
    safe = [second, record(16), record(32)]
    elsewhere = record(64, "other")
    await begun(gate, 4)
    safe_waits.set()
    for task in doomed:
        with pytest.raises(Unavailable, match=fate):
            await task
    await asyncio.gather(*safe, elsewhere, record(128))
    sure = 1 + 2 + 16 + 32 + 128
    assert await found() == ((5, sure) if fate == "lost" else (7, sure + 4 + 8))
    assert cell_count(strict_store) == 3


async def test_a_write_that_arrives_late_or_again_changes_nothing(
    gate: Gate, strict_store: Settings
) -> None:
    gate.open.set()
    gate.verdict = lambda number: "lost" if number == 3 else "ok"
    await record(1)
    await record(2)
    with pytest.raises(Unavailable):
        await record(4)
    await record(8)
    assert await found() == (3, 11)
    stored = raw.everything(strict_store, "metrics")
    for request in gate.requests[:2]:
        with pytest.raises(TdevError):
            await gate.send("UpdateItem", request)
    assert raw.everything(strict_store, "metrics") == stored
    await gate.send("UpdateItem", gate.requests[2])  # unanswered then, and under way until now
    assert await found() == (4, 15)


async def test_a_resend_of_each_write_counts_once(strict_store: Settings) -> None:
    for nth in (1, 2):
        with injected(Fault("resent", operation="UpdateItem", nth=nth)):
            for value in (1, 2, 4):
                await record(value, f"m{nth}", timestamp=NOW)
        assert await found(f"m{nth}") == (3, 7)


async def test_a_cell_that_someone_else_wrote_is_left_alone(
    strict_store: Settings,
) -> None:
    await record(1, timestamp=NOW)
    (cell,) = raw.everything(strict_store, "metrics")
    key = cell["date"]["S"], cell["metric_name"]["S"]
    others = {"seq": {"N": "9"}, "count": {"N": "5"}, "value": {"N": "50"}}
    raw.put_attribute(strict_store, "metrics", *key, **others)
    await record(2, timestamp=NOW)
    await record(4, timestamp=NOW)
    assert await found() == (7, 56)
    assert cell_count(strict_store) == 2


async def test_a_cancelled_call_disturbs_no_other(gate: Gate) -> None:
    first = record(1)
    await begun(gate, 1)
    second, third = record(2), record(4)
    await asyncio.sleep(0.02)
    first.cancel()
    second.cancel()
    gate.open.set()
    await third
    assert await found() == (3, 7)


async def test_an_old_hours_cell_is_retired_and_a_late_sample_opens_another(
    strict_store: Settings,
) -> None:
    now = [NOW]
    with settings.use(strict_store, clock=lambda: now[0]):
        await record(1, timestamp=NOW)
        now[0] += 3 * 3600
        await record(2)
        await record(4, timestamp=NOW)
        await record(8, timestamp=NOW)
        recorder = recording.Recorder.for_settings(settings.current())
        assert len(recorder._cells) == 2
        await record(16, "another", timestamp=NOW)
    rows = await query_metrics("m", NOW - 3600, NOW + 4 * 3600)
    assert [(row.count, row.sum) for row in rows] == [(3, 13), (1, 2)]
    assert cell_count(strict_store) == 4


async def test_memory_is_bounded_whatever_the_names(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_MOST_CELLS", 10)
    await asyncio.gather(*(record(1, f"m{n}", timestamp=NOW) for n in range(25)))
    await asyncio.sleep(1)  # then it looks again which cells can go
    await record(1, "new", timestamp=NOW)
    assert len(recording.Recorder.for_settings(strict_store)._cells) <= 10
    await record(1, "m0", timestamp=NOW)
    assert await found("m0") == (2, 2)


def test_where_no_thread_can_be_started_the_caller_writes(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        sync.record_metric(metric_name="m", value=1, timestamp=NOW)
    assert asyncio.run(found()) == (1, 1)


def test_threads_share_writes(strict_store: Settings) -> None:
    events: list[RequestEvent] = []
    observed = replace(strict_store, on_request=events.append)

    def work() -> None:
        with settings.use(observed):
            for _ in range(25):
                sync.record_metric(metric_name="m", value=1, timestamp=NOW)

    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(events) < 200
    assert sync.query_metrics("m", NOW - 3600, NOW)[0].count == 800
    assert cell_count(strict_store) == 1


def test_loops_and_threads_share_one_cell(strict_store: Settings) -> None:
    async def many() -> None:
        await asyncio.gather(*(record(1, timestamp=NOW) for _ in range(50)))

    loops = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(3)]
    for thread in loops:
        thread.start()
    sync.record_metric(metric_name="m", value=1, timestamp=NOW)
    for thread in loops:
        thread.join()
    asyncio.run(many())
    assert asyncio.run(found()) == (201, 201)
    assert cell_count(strict_store) == 1


def test_a_loop_that_ends_in_the_middle_harms_nobody(gate: Gate) -> None:
    async def leave() -> None:
        record(1)
        await begun(gate, 1)
        record(2)
        await asyncio.sleep(0.01)

    asyncio.run(leave())
    gc.collect()
    threading.Timer(0.05, gate.open.set).start()
    sync.record_metric(metric_name="m", value=4)
    assert asyncio.run(found()) == (3, 7)


def test_a_child_of_a_fork_has_cells_of_its_own(gate: Gate, strict_store: Settings) -> None:
    gate.open.set()
    sync.record_metric(metric_name="m", value=1)
    gate.open.clear()
    waiting = threading.Thread(target=sync.record_metric, kwargs={"metric_name": "m", "value": 2})
    waiting.start()
    asyncio.run(begun(gate, 2))
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(gate,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    gate.open.set()
    waiting.join()
    sync.record_metric(metric_name="m", value=4)
    assert asyncio.run(found()) == (5, 1 + 2 + 4 + 8 + 16)
    assert cell_count(strict_store) == 2


def _in_child(gate: Gate) -> None:
    gate.open.set()
    sync.record_metric(metric_name="m", value=8)
    sync.record_metric(metric_name="m", value=16)


async def test_a_thousand_callers_cost_a_hundredth_of_a_write_each(
    strict_store: Settings,
) -> None:
    events: list[RequestEvent] = []

    async def caller() -> None:
        for _ in range(5):
            await record_metric(metric_name="m", value=1.5, timestamp=NOW)

    with settings.use(strict_store, on_request=events.append):
        await asyncio.gather(*(caller() for _ in range(1000)))
    assert await found() == (5000, 7500)
    assert sum(event.units for event in events) <= 50


def test_what_was_not_awaited_is_written_at_the_exit(strict_store: Settings) -> None:
    program = """
from tdev_models.sync import track_session
with track_session("s") as session:
    for name in ("nl_input", "parser"):
        with session.agent(name):
            pass
"""
    assert python(program, strict_store) == ""
    rows = sync.query_metrics("agent_execution_time", *today(), group_by="agent")
    assert [(row.agent_name, row.count) for row in rows] == [("nl_input", 1), ("parser", 1)]
    assert sync.query_metrics("sessions_completed", *today())[0].count == 1


def test_an_exit_handler_may_record(strict_store: Settings) -> None:
    program = """
import atexit, time, tdev_models.metrics.recorder as recording
from tdev_models.sync import record_metric
recording._IDLE_SECONDS = 0.01
record_metric(metric_name="m", value=1)
time.sleep(0.1)
atexit.register(record_metric, metric_name="m", value=2)
"""
    assert python(program, strict_store) == ""
    assert sync.query_metrics("m", *today())[0].sum == 3


def test_an_exit_waits_for_a_dead_table_only_so_long(strict_store: Settings) -> None:
    program = """
import time, threading, tdev_models.metrics.recorder as recording
from tdev_models import Settings, configure
from tdev_models.sync import save_user_project, track_session
recording._EXIT_SECONDS = 0.3
def deaf(send):
    async def dead(operation, request):
        if request["TableName"].endswith("metrics"):
            time.sleep(30)
        return await send(operation, request)
    return dead
configure(Settings.from_env(), transport=deaf)
save_user_project(user_id="u", project_id="p", tech_stack=["React"])
"""
    begun = time.monotonic()
    assert "not written" in python(program, strict_store)
    assert time.monotonic() - begun < 15


def today() -> tuple[float, float]:
    return time.time() - 3600, time.time() + 3600


def python(program: str, store: Settings) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "TDEV_ENV": store.environment,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_DYNAMODB": str(store.endpoint),
        },
    )
    return done.stderr


def test_8_processes_under_faults_and_kills_lose_and_double_nothing(
    strict_store: Settings, tmp_path: Path
) -> None:
    met = soak.run(strict_store, 150, 15, tmp_path)
    assert met["workers right"] == soak.PROCESSES
    assert sum(count for what, count in met.items() if what.startswith("fault")) > 10


async def test_awaited_samples_share_a_cell_with_the_packages_own(
    gate: Gate,
) -> None:
    recorder = recording.Recorder.for_settings(settings.current())
    key = recording.CellKey(int(NOW // 3600), "m", "", "")
    gate.open.set()
    recorder.add(key, 1, error=False, awaited=False)
    await flush_metrics()
    assert len(gate.requests) == 1
    gate.verdict = lambda number: "lost" if number == 2 else "ok"
    with pytest.raises(Unavailable):
        await record(2)
    await record(4)
    assert await found() == (2, 5)


def test_a_hook_that_records_what_it_sees_hangs_nobody(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(event: RequestEvent) -> None:
        sync.record_metric(metric_name="requests", agent_name=event.operation, value=event.seconds)

    with settings.use(strict_store, on_request=hook):
        sync.save_pipeline_session(session_id="s")
        sync.get_pipeline_session("s")
    rows = sync.query_metrics("requests", *today(), group_by="agent")
    assert [(row.agent_name, row.count) for row in rows] == [("GetItem", 1), ("UpdateItem", 1)]
    assert "a write of metrics cannot record metrics" in caplog.text


def test_a_hook_that_waits_for_metrics_hangs_nobody(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with settings.use(strict_store, on_request=lambda event: sync.flush_metrics()):
        sync.record_metric(metric_name="m", value=1, timestamp=NOW)
    assert "a write of metrics cannot flush metrics" in caplog.text


def test_settings_that_are_gone_keep_nothing(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_MOST_RECORDERS", 5)
    for _ in range(20):
        with settings.use(strict_store, on_request=lambda event: None):
            sync.record_metric(metric_name="m", value=1, timestamp=NOW)
    assert len(recording.Recorder.all()) <= 5
    assert asyncio.run(found()) == (20, 20)


def test_a_log_that_raises_keeps_nobody_waiting(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(recording._log, "warning", broken)
    with settings.use(strict_store, automatic_metrics=True):
        recorder = recording.Recorder.for_settings(settings.current())
        with injected(Fault("broken", operation="UpdateItem")):
            quiet = recording.Recorder.for_settings(settings.current())
            future = quiet.add(recording.CellKey(0, "m", "", ""), 1, error=False, awaited=False)
            assert future.wait(5)
            assert future.error
            sync.record_metric(metric_name="m", value=1, timestamp=NOW)
        assert recorder is not quiet
    assert asyncio.run(found()) == (1, 1)


async def test_what_somebody_awaits_goes_before_the_packages_own(gate: Gate) -> None:
    recorder, others = recording.Recorder.for_settings(settings.current()), threading.Event()

    def verdict(number: int) -> str:
        if 1 < number <= recording._THREADS:
            others.wait(10)
        return "ok"

    gate.verdict = verdict
    for number in range(12):
        key = recording.CellKey(int(NOW // 3600), f"m{number}", "", "")
        recorder.add(key, 1, error=False, awaited=False)
    await begun(gate, recording._THREADS)
    awaited = [record(1), record(1, "m11")]
    await asyncio.sleep(0.02)
    gate.open.set()
    await asyncio.gather(*awaited)
    others.set()
    await flush_metrics()
    keys = [request["Key"]["metric_name"]["S"] for request in gate.requests[recording._THREADS :]]
    assert [key.partition("#")[0] for key in keys][:2] == ["m", "m11"]
    assert len(keys) == 5


class _Recording(logging.Handler):
    """Counts what is logged as a metric, and then fails."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(TdevError):
            sync.record_metric(metric_name="logged", value=1)
        raise self.error


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(1)])
async def test_a_log_handler_that_records_what_it_sees_hangs_nobody(
    gate: Gate, error: BaseException
) -> None:
    recorder = recording.Recorder.for_settings(settings.current())
    gate.verdict = lambda number: "lost" if number <= recording._THREADS else "ok"
    handler = _Recording(error)
    recording._log.addHandler(handler)
    try:
        lost = [
            recorder.add(recording.CellKey(0, f"m{number}", "", ""), 1, False, awaited=False)
            for number in range(recording._THREADS)
        ]
        await begun(gate, recording._THREADS)
        gate.open.set()
        assert all([await asyncio.to_thread(future.wait, 5) for future in lost])
        await asyncio.wait_for(record(1), 5)
    finally:
        recording._log.removeHandler(handler)


async def test_throttled_calls_say_so(strict_store: Settings) -> None:
    with injected(Fault("throttled", operation="UpdateItem")), pytest.raises(Throttled):
        await record(1)
