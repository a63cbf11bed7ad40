"""`python -m tests.simulation` lets histories happen, and stops at the first that breaks a rule."""

from __future__ import annotations

import argparse
import gc
import sys
import time

from tests.simulation import bugs
from tests.simulation.clients import simulated
from tests.simulation.records import Violation
from tests.simulation.world import History

_COLLECTED_AFTER = 50
_SHOWN_AFTER_SECONDS = 10.0


def broken(seed: int) -> str | None:
    """Return what was wrong in the history of a seed, or None."""
    try:
        History(seed).run()
    except Violation as violation:
        return str(violation)
    return None


def replay(seed: int) -> int:
    """Print the history of a seed, and what was wrong in it."""
    history = History(seed, keep=True)
    try:
        history.run()
    except Violation as violation:
        print(*history.lines, sep="\n")
        print(f"seed {seed}: {violation}")
        return 1
    print(*history.lines, sep="\n")
    print(f"seed {seed}: all rules held")
    return 0


def many(first: int, count: int) -> int:
    """Let many histories happen; print how many a second."""
    begun = shown = time.perf_counter()
    gc.freeze()
    gc.disable()  # it would look through everything again and again
    for number in range(count):
        if number % _COLLECTED_AFTER == 0:
            gc.collect()
        seed = first + number
        if (wrong := broken(seed)) is not None:
            print(f"seed {seed}, after {number} others: {wrong}")
            print(f"its history: python -m tests.simulation --seed {seed} --histories 1")
            return 1
        if time.perf_counter() > shown + _SHOWN_AFTER_SECONDS:
            shown = time.perf_counter()
            print(f"{number + 1:,} histories, {(number + 1) / (shown - begun):.0f} a second")
    rate = count / (time.perf_counter() - begun)
    print(f"{count:,} histories from seed {first}, {rate:.0f} a second: all rules held")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=10_000, help="1 prints it")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument(
        "--bugs", nargs="*", metavar="WORD", help="put bugs in, each of which is to be found"
    )
    chosen = parser.parse_args()
    if chosen.bugs is not None:
        return bugs.main(chosen.bugs, chosen.histories)
    with simulated():
        if chosen.histories == 1:
            return replay(chosen.seed)
        return many(chosen.seed, chosen.histories)


if __name__ == "__main__":
    sys.exit(main())
