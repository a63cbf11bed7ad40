"""Processes that record metrics under faults and are killed; then each sample is looked for.

`python -m tests.soak [SAMPLES]` runs 8 processes with so many samples each (10,000) on an engine of
its own. Each sample has a bucket of its own within its cell, so the histograms tell which samples
are in, and how often.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tdev_models import Settings, record_metric, settings
from tdev_models.cli.engine import Engine
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.errors import TdevError, Throttled, Unavailable
from tdev_models.metrics.hours import read_totals
from tdev_models.metrics.totals import bucket
from tdev_models.settings import Transport
from tests.conftest import make_tables

PROCESSES = 8
CALLERS = 40
BASE = 1_780_000_000 // 86400 * 86400
HOURS = 30
OF_ONE_NAME = 1000
FAULTS = ("lost", "unanswered", "resent", "late", "throttled", "killed before", "killed after")


def value_of(sample: int) -> float:
    """Return a value in a bucket of its own among the samples of one name."""
    return math.exp(0.0396 * (sample % OF_ONE_NAME - 500.5))


class Faults:
    """Lets one write in `every` meet a fault."""

    def __init__(self, seed: str, every: int, log: int) -> None:
        self.random, self.every, self.log = random.Random(seed), every, log

    def wrap(self, send: Transport) -> Transport:
        async def faulty(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if self.random.randrange(self.every):
                return await send(operation, request)
            fault = self.random.choice(FAULTS)
            os.write(self.log, f"fault {fault}\n".encode())
            if fault == "killed before":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "throttled":
                raise Throttled("injected")
            if fault == "late":
                # It arrives when others have been written meanwhile.
                threading.Timer(0.2, lambda: drive(swallow(send, operation, request))).start()
                raise Unavailable("injected: late")
            if fault != "lost":
                response = await send(operation, request)
                if fault == "killed after":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "resent":
                    await swallow(send, operation, request)
                    return response
            raise Unavailable(f"injected: {fault}")

        return faulty


async def swallow(send: Transport, operation: str, request: Mapping[str, Any]) -> None:
    with suppress(TdevError):
        await send(operation, request)


class Clock:
    """Hours that roll over as the samples go on."""

    hour = 0

    def __call__(self) -> float:
        return BASE + 3600.0 * self.hour


async def work(number: int, first: int, last: int, log: int, clock: Clock) -> None:
    """Record samples, each written down when it begins and when it is durable."""
    left = iter(range(first, last))
    dice = random.Random(f"{number} {first}")

    async def caller() -> None:
        for sample in left:
            hour = clock.hour = sample * HOURS // last
            late = dice.random() < 0.1
            if late:
                hour -= 5
            os.write(log, f"begun {sample} {hour}\n".encode())
            try:
                await record_metric(
                    metric_name="soak",
                    agent_name=f"{number}.{sample // OF_ONE_NAME}",
                    value=value_of(sample),
                    timestamp=BASE + 3600 * hour if late else None,
                )
            except (Throttled, Unavailable):
                continue
            os.write(log, f"durable {sample} {hour}\n".encode())

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def worker(endpoint: str, environment: str, number: int, last: int, every: int, log: Path) -> None:
    """Go on where a killed process of the same number ended."""
    first = 1 + max((int(line.split()[1]) for line in lines(log, "begun")), default=-1)
    written, clock = os.open(log, os.O_WRONLY | os.O_APPEND), Clock()
    with settings.use(
        environment=environment,
        region="us-east-1",
        endpoint=endpoint,
        transport=Faults(f"{number} {first}", every, written).wrap,
        clock=clock,
    ):
        asyncio.run(work(number, first, last, written, clock))
        time.sleep(0.3)  # what is late


def lines(log: Path, word: str) -> Iterator[str]:
    return (line for line in log.read_text().splitlines() if line.startswith(word))


def run(store: Settings, samples: int, every: int, directory: Path) -> Counter[str]:
    """Run the processes until all samples were begun; return what they met and what is stored."""
    logs = [directory / str(number) for number in range(PROCESSES)]
    running: dict[int, subprocess.Popen[bytes]] = {}
    for log in logs:
        log.touch()
    left = set(range(PROCESSES))
    while left:
        for number in left - set(running):
            given = [str(store.endpoint), store.environment, number, samples, every, logs[number]]
            command = [sys.executable, "-m", "tests.soak", "worker", *map(str, given)]
            running[number] = subprocess.Popen(command)
        time.sleep(0.02)
        for number, process in [*running.items()]:
            if (code := process.poll()) is not None:
                del running[number]
                assert code in (0, -signal.SIGKILL), code
                left -= {number} if code == 0 else set()
    met = Counter(line for log in logs for line in lines(log, "fault"))
    with settings.use(store):
        met.update(judge(number, log) for number, log in enumerate(logs))
        cells = drive(
            read_totals(
                BlockingClient.for_settings(),
                "soak",
                BASE - 86400,
                BASE + 3 * 86400,
                lambda cell: cell,
            )
        )
    met["cells"] = len(cells)
    return met


def judge(number: int, log: Path) -> str:
    """Compare what one worker wrote down with what is stored, sample by sample."""
    begun: dict[tuple[str, int], set[int]] = {}
    durable: dict[tuple[str, int], set[int]] = {}
    for word, into in (("begun", begun), ("durable", durable)):
        for line in lines(log, word):
            sample, hour = map(int, line.split()[1:])
            into.setdefault((f"{number}.{sample // OF_ONE_NAME}", hour), set()).add(sample)
    stored: dict[tuple[str, int], Counter[int]] = {}
    sums: Counter[tuple[str, int]] = Counter()
    for agent in {agent for agent, _ in begun}:
        cells = read_totals(
            BlockingClient.for_settings(),
            "soak",
            BASE - 86400,
            BASE + 3 * 86400,
            lambda cell: cell,
            agent,
        )
        for cell, totals in drive(cells).items():
            day = int(cell.day[-2:]) - int(time.strftime("%d", time.gmtime(BASE)))
            key = agent, 24 * day + cell.hour
            stored.setdefault(key, Counter()).update(totals.buckets)
            sums[key] += totals.sum  # type: ignore[assignment]
            assert totals.count == sum(totals.buckets.values())
    for key, samples in begun.items():
        found = stored.pop(key, Counter())
        there = {sample for sample in samples if found[bucket(value_of(sample))] == 1}
        assert found.total() == len(there), f"{key}: some sample is in twice"
        assert durable.get(key, set()) <= there, f"{key}: an awaited sample is missing"
        expected = math.fsum(map(value_of, there))
        assert math.isclose(sums[key], expected, rel_tol=1e-12), key
    assert not stored, f"cells of nobody: {stored}"
    return "workers right"


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] == "worker":
        endpoint, environment, number, last, every, log = arguments[1:]
        worker(endpoint, environment, int(number), int(last), int(every), Path(log))
        return
    samples = int(arguments[0]) if arguments else 10_000
    with temporary_engine() as endpoint, TemporaryDirectory() as directory:
        begun = time.monotonic()
        met = run(make_tables(endpoint), samples, 60, Path(directory))
        took = time.monotonic() - begun
    print(f"{PROCESSES} processes, {samples:,} samples each, {took:.0f} s")
    for what, count in sorted(met.items()):
        print(f"  {what}: {count}")
    print("every awaited sample is in, once")


@contextmanager
def temporary_engine() -> Iterator[str]:
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    with Engine.start() as engine:
        yield engine.endpoint


if __name__ == "__main__":
    main(sys.argv[1:])
