"""`python -m tests.simulation` lets histories happen, and stops at the first that breaks a rule."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation import bugs
from tests.simulation.clients import simulated
from tests.simulation.histories import CORES, outcomes
from tests.simulation.records import Violation
from tests.simulation.world import History

_SHOWN_AFTER_SECONDS = 10.0

# Histories: the rarest bug shows in one of some eight thousand.
_WITHOUT, _WITH_A_BUG = 10_000, 50_000


def replay(seed: int) -> int:
    """Print the history of a seed, and what was wrong in it."""
    history = History(seed, keep=True)
    wrong: str | None = None
    try:
        with simulated():
            history.run()
    except Violation as violation:
        wrong = str(violation)
    finally:
        print(*history.lines, sep="\n")
    print(f"seed {seed}: {wrong or 'all rules held'}")
    return 1 if wrong else 0


def many(first: int, count: int, rule: str) -> int:
    """Let many histories happen, until one breaks a rule; print how many a second."""
    begun = shown = time.perf_counter()
    for done, (seed, wrong) in enumerate(outcomes(first, count), 1):
        if wrong is not None and rule in wrong:
            print(f"seed {seed}, after {done - 1} others: {wrong}")
            print(f"its history: python -m tests.simulation --seed {seed} --histories 1")
            return 1
        now = time.perf_counter()
        if now > shown + _SHOWN_AFTER_SECONDS:
            shown = now
            print(f"{done:,} histories, {done / (now - begun):.0f} a second", flush=True)
    rate = count / (time.perf_counter() - begun)
    print(
        f"{count:,} histories from seed {first}, {rate:.0f} a second on {CORES} cores: "
        "all rules held"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, help="1 prints it")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument(
        "--bugs", nargs="*", metavar="WORD", help="put bugs in, each of which is to be found"
    )
    parser.add_argument("--rule", default="", metavar="TEXT", help="stop only where it says so")
    chosen = parser.parse_args()
    if chosen.bugs is not None:
        return bugs.main(chosen.bugs, chosen.histories or _WITH_A_BUG)
    if chosen.histories == 1:
        return replay(chosen.seed)
    return many(chosen.seed, chosen.histories or _WITHOUT, chosen.rule)


if __name__ == "__main__":
    sys.exit(main())
