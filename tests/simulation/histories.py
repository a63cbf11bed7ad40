"""Let histories happen, on all cores at once."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from tests.simulation.clients import simulated
from tests.simulation.records import Violation
from tests.simulation.world import History

_AT_ONCE = 10
_PARTS_OF_A_PROCESS = 200  # of 5 MB each, which it never gives back
CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def broken(seed: int) -> str | None:
    """Return what was wrong in the history of a seed, or None."""
    try:
        History(seed).run()
    except Violation as violation:
        return str(violation)
    except BaseException as error:  # of a program, say; a lost process would never be missed
        return f"{type(error).__name__}: {error}"
    return None


def outcomes(first: int, count: int) -> Iterator[tuple[int, str | None]]:
    """Yield the seed of each history, in their order, and what was wrong in it."""
    end = first + count
    parts = [range(seed, min(seed + _AT_ONCE, end)) for seed in range(first, end, _AT_ONCE)]
    # Not by fork: other threads of a process that has tested other things may hold any lock.
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(
        min(CORES, len(parts)), _begin, maxtasksperchild=_PARTS_OF_A_PROCESS
    ) as processes:
        for found in processes.imap(_part, parts):
            yield from found


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    _world.enter_context(simulated())
    atexit.register(_world.close)  # before what the package does at an exit
    gc.disable()  # it would look through everything again and again


_world = ExitStack()


def _part(seeds: range) -> list[tuple[int, str | None]]:
    found = [(seed, broken(seed)) for seed in seeds]
    gc.freeze()  # nor does the process look through it when it ends: a sixth of the time
    return found
