"""Drives one client in one process, as the lines of its standard input say.

`python -m benchmarks.clients.runner MODULE VARIANT ENDPOINT`. A line: `OPERATION AT_ONCE SECONDS`;
its answer is what was measured, as JSON. SECONDS 0: each runs the operation one time.
It needs the standard library alone, besides its client.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def in_a_loop(operation: Callable[[], Any], at_once: int, seconds: float) -> int:
    """Run the operation so long, by so many tasks at once; return how often it ran."""
    done, end = 0, time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while True:
            await operation()
            done += 1
            if time.perf_counter() >= end:
                return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(work())
    return done


def in_threads(
    threads: ThreadPoolExecutor, operation: Callable[[], Any], at_once: int, seconds: float
) -> int:
    """Run the operation so long, by so many threads at once; return how often it ran."""
    end = time.perf_counter() + seconds

    def work(_: int) -> int:
        done = 0
        while True:
            operation()
            done += 1
            if time.perf_counter() >= end:
                return done

    return work(0) if at_once == 1 else sum(threads.map(work, range(at_once)))


def main(module: str, variant: str, endpoint: str) -> None:
    client: Any = importlib.import_module(f"benchmarks.clients.{module}")
    with asyncio.Runner() as loop, ThreadPoolExecutor(1000) as threads:
        operations = client.operations(endpoint, variant)
        blocking = not inspect.isawaitable(operations)
        if not blocking:
            operations = loop.run(operations)

        def run(operation: Callable[[], Any], at_once: int, seconds: float) -> int:
            if blocking:
                return in_threads(threads, operation, at_once, seconds)
            return loop.run(in_a_loop(operation, at_once, seconds))

        print(json.dumps(sorted(operations)), flush=True)
        for line in sys.stdin:
            name, at_once, seconds = line.split()
            if float(seconds):  # the first use, and connections that were closed since
                run(operations[name], int(at_once), 0)
                gc.collect()
            begun, used = time.perf_counter(), processor_seconds()
            done = run(operations[name], int(at_once), float(seconds))
            took, used = time.perf_counter() - begun, processor_seconds() - used
            measured = {
                "microseconds": round(used / done * 1e6, 1),
                "a_second": round(done / took, 1),
                "peak_megabytes": round(peak_megabytes(), 1),
            }
            print(json.dumps(measured), flush=True)
        os._exit(0)  # nothing is left to be said; some clients cannot be closed from here


if __name__ == "__main__":
    main(*sys.argv[1:])
