"""What field encryption costs: a run of nine agents with it on against off, and calls of KMS.

The same runs on the same tables, by turns; each agent's input is the output of the agent before it.
Processor time is that of the whole process, threads included. KMS is moto's, in a process of its
own. `python -m benchmarks.encryption [ROUNDS]`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.run_costs import WRITES, Inputs, code_of, our_run
from benchmarks.tables import fresh_tables
from tdev_models import get_agent_execution, settings, update_agent_execution
from tdev_models.results import RequestEvent
from tests.engine.pipelines import files
from tests.kms import Kms, at, watched
from tests.moto import server

ROUNDS = int(next(iter(sys.argv[1:]), 15))
OFF, ON = False, True


async def cpu_ms(work: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds of processor time that some work takes."""
    begun = time.process_time()
    await work()
    return 1000 * (time.process_time() - begun)


class Sides:
    """The same work with encryption on and off."""

    def __init__(self, events: list[RequestEvent], kms: Kms) -> None:
        self._events, self._kms, self._key = events, kms, kms.new_key()
        self._runs = 0

    async def run(self, kilobytes: float, on: bool) -> tuple[float, float]:
        """Return write units and milliseconds of one run."""
        self._runs += 1
        name = f"ours-{self._runs}-{on}"
        with settings.use(kms_key=self._key if on else None):
            self._events.clear()
            inputs = Inputs(code_of(kilobytes), all_so_far=False)
            took = await cpu_ms(lambda: our_run(name, inputs))
        units = sum(one.units for one in self._events if one.operation in WRITES)
        return units, took

    async def runs(self, kilobytes: float) -> None:
        """Print what runs with outputs of a size cost."""
        for on in (OFF, ON):
            await self.run(kilobytes, on)  # connections, data keys, prepared requests
        rounds = [[await self.run(kilobytes, on) for on in (OFF, ON)] for _ in range(ROUNDS)]
        columns = []
        for figure in (0, 1):
            without, encrypted = (
                statistics.median(one[side][figure] for one in rounds) for side in (OFF, ON)
            )
            columns.append(f"{without:>9.1f} {encrypted:>9.1f} {encrypted / without:>6.2f}")
        print(f"{kilobytes:>5g} KB", *columns)

    async def large(self, megabytes: int) -> None:
        """Print the processor time of a large payload."""
        output = files(megabytes * 1_000_000)
        for on in (OFF, ON):
            name = f"large{on}-generation"
            write = partial(update_agent_execution, execution_id=name, output_data=output)
            with settings.use(kms_key=self._key if on else None):
                wrote = await cpu_ms(write)
                read = await cpu_ms(partial(get_agent_execution, name))
            side = "on" if on else "off"
            print(
                f"{megabytes} MB, {side}: {wrote:.0f} ms to write and read back, {read:.0f} to read"
            )

    async def calls(self, sessions: int) -> None:
        """Print how often KMS is called for so many sessions."""
        self._kms.forget()
        first = self._runs + 1
        for _ in range(sessions):
            await self.run(1, ON)
        print(f"{sessions} sessions of nine agents, calls of KMS: {dict(self._kms.calls)}")
        self._kms.forget()
        with settings.use(kms_key=self._key):
            for number in range(first, first + sessions):
                await get_agent_execution(f"ours-{number}-{ON}-generation")
        print(f"to read them in another process: {dict(self._kms.calls)}")


async def main() -> None:
    with fresh_tables() as events, server() as endpoint, at(endpoint) as made, watched(made) as kms:
        sides = Sides(events, kms)
        print("a run of nine agents, the session's begin and end included")
        print(f"{'':>8} {'write units':>19} {'':>6} {'processor, ms':>19}")
        print(f"{'output':>8} {'off':>9} {'on':>9} {'ratio':>6} {'off':>9} {'on':>9} {'ratio':>6}")
        for kilobytes in (0.3, 1, 20, 100):
            await sides.runs(kilobytes)
        print()
        await sides.large(10)
        await sides.calls(100)


if __name__ == "__main__":
    asyncio.run(main())
