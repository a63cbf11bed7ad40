"""Totals merge in any order, and tell percentiles within 2 %."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given, settings, strategies as st

from tdev_models import PayloadDamaged
from tdev_models.metrics.totals import Totals, bucket, from_item, pack, to_item, unpack

values = st.one_of(st.just(0.0), st.floats(1e-60, 1e60), st.floats(-1e60, -1e-60))
samples = st.lists(values, min_size=1, max_size=40)


def merged(parts: list[Totals]) -> Totals:
    whole = Totals()
    for part in parts:
        whole.add(part)
    return whole


@given(st.lists(samples, min_size=1, max_size=6), st.randoms())
def test_merging_in_any_order_gives_the_totals_of_all(
    parts: list[list[float]], shuffler: random.Random
) -> None:
    everything = [value for part in parts for value in part]
    shuffled = [Totals.of(part) for part in parts]
    shuffler.shuffle(shuffled)
    for whole in (merged(shuffled), merged([merged(shuffled[:2]), merged(shuffled[2:])])):
        assert (whole.count, whole.min, whole.max) == (
            len(everything),
            min(everything),
            max(everything),
        )
        assert whole.buckets == Counter(map(bucket, everything))
        assert whole.positives == sum(value > 0 for value in everything)
        size = math.fsum(map(abs, everything))
        assert abs(whole.sum - math.fsum(everything)) <= 1e-12 * size


@given(samples, st.integers(1, 10**6))
def test_a_cell_comes_back_as_it_was(numbers: list[float], seq: int) -> None:
    totals = Totals.of(numbers, errors=1)
    stored = to_item("2026-03-01", "m#parser#07##w", seq, totals).serialize()
    back = from_item(stored)
    for name in set(Totals.__slots__) - {"rest"}:
        if name in ("sum", "logs", "log_squares"):
            expected = pytest.approx(getattr(totals, name), rel=1e-15, abs=1e-130)
        else:
            expected = getattr(totals, name)
        assert getattr(back, name) == expected, name


@given(st.dictionaries(st.integers(-7999, 7999), st.integers(1, 10**12)))
def test_buckets_come_back_as_they_were(buckets: dict[int, int]) -> None:
    assert unpack(pack(Counter(buckets))) == buckets


@given(values, values)
def test_buckets_rise_with_the_values(one: float, other: float) -> None:
    assert (one <= other) <= (bucket(one) <= bucket(other))


def test_a_histogram_of_a_newer_release_is_refused() -> None:
    with pytest.raises(PayloadDamaged, match="upgrade"):
        unpack(b"\x02")


@settings(deadline=None)
@given(st.binary(max_size=60))
@example(b"")
@example(b"\x01" + b"\xff" * 400_000)
@example(b"\x01" + b"\x01" * 400_000)
@example(b"\x01\x80")
def test_hostile_bytes_are_buckets_or_refused(data: bytes) -> None:
    for hostile in (data, b"\x01" + data):
        try:
            buckets = unpack(hostile)
        except PayloadDamaged:
            continue
        assert all(-8000 <= number < 8000 for number in buckets)


DRAWS: dict[str, Callable[[random.Random], float]] = {
    "lognormal": lambda dice: dice.lognormvariate(0, 2),
    "bimodal": lambda dice: dice.gauss(0.2, 0.01) if dice.random() < 0.7 else dice.gauss(40, 3),
    "constant": lambda dice: 0.7,
    "both signs": lambda dice: dice.gauss(0, 100),
}


@pytest.mark.parametrize("name", DRAWS)
def test_percentiles_of_a_million_samples_are_within_2_percent(name: str) -> None:
    dice, draw = random.Random(name), DRAWS[name]
    numbers = [draw(dice) for _ in range(250_000 if name == "both signs" else 1_000_000)]
    totals = merged([Totals.of(numbers[n::7]) for n in range(7)])
    numbers.sort()
    for percent in (0, 0.01, 1, 5, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100):
        rank = math.ceil(Decimal(str(percent)) * len(numbers) / 100)
        exact = numbers[max(0, rank - 1)]
        assert totals.percentile(percent) == pytest.approx(exact, rel=0.02), percent
    if name == "lognormal":
        assert len(pack(totals.buckets)) < 1500


@given(st.integers(1, 5000), st.decimals(0, 100, places=3))
@example(1000, Decimal("99.9"))
@example(100, Decimal(7))
def test_a_percentile_is_of_the_nearest_rank(count: int, percent: Decimal) -> None:
    rank = max(1, math.ceil(percent * count / 100))
    totals = Totals.of([1.0] * rank + [1000.0] * (count - rank))
    assert totals.percentile(float(percent)) == pytest.approx(1, rel=0.02)
    totals = Totals.of([1.0] * (rank - 1) + [1000.0] * (count - rank + 1))
    assert totals.percentile(float(percent)) == pytest.approx(1000, rel=0.02)
