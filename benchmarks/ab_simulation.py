"""A/A and A/B tests by the thousand: how often `compare_variants` finds what is not there, or is.

Lognormal durations, seeded, through the same totals as stored cells; no store is needed.
"""

import math
import random
import sys

from tdev_models.metrics.experiments import compared
from tdev_models.metrics.totals import Totals

SIGMA, LEVEL = 0.8, 0.05


def found(dice: random.Random, count: int, ratio: float) -> bool:
    """Return whether one comparison of `count` samples each calls the values different."""
    a = [dice.lognormvariate(0, SIGMA) for _ in range(count)]
    b = [dice.lognormvariate(math.log(ratio), SIGMA) for _ in range(count)]
    difference = compared("x", "m", ("A", Totals.of(a)), ("B", Totals.of(b))).ratio
    return difference is not None and difference.p_value < LEVEL


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    dice = random.Random(2026)
    for count in (30, 100):
        wrong = sum(found(dice, count, 1.0) for _ in range(runs)) / runs
        print(f"A/A, {count} samples each, {runs:,} runs: {wrong:.2%} called different (5 % meant)")
    for effect in (0.5, 0.25):
        pilot = [Totals.of([dice.lognormvariate(0, SIGMA) for _ in range(5000)]) for _ in "AB"]
        sized = compared("x", "m", ("A", pilot[0]), ("B", pilot[1]), effect=effect).ratio
        assert sized is not None
        power = sum(found(dice, sized.needed, 1 + effect) for _ in range(runs)) / runs
        print(
            f"A/B, {effect:.0%} longer, {sized.needed} samples each as sized, {runs:,} runs: "
            f"{power:.1%} found (80 % promised)"
        )


if __name__ == "__main__":
    main()
