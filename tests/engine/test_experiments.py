"""A/B tests: who gets which variant, and what the totals say of two of them."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from scipy import stats

from tdev_models import (
    InvalidRequest,
    Settings,
    assign_variant,
    compare_variants,
    record_metric,
)
from tdev_models.metrics.distributions import normal, student, student_quantile
from tdev_models.metrics.experiments import compared
from tdev_models.metrics.totals import Totals
from tests import raw

DAY = 1_780_000_000.0


def test_a_unit_keeps_its_variant_whatever_the_order_of_the_weights() -> None:
    weights = {"A": 1, "B": 2, "C": 1}
    backwards = dict(reversed(weights.items()))
    units = [f"user-{number}" for number in range(200)]
    for unit in units:
        assert assign_variant("e", unit, weights) == assign_variant("e", unit, backwards)
    # As documented, so that anyone can compute it.
    for unit in units:
        digest = hashlib.blake2b(b"search\0" + unit.encode(), digest_size=8).hexdigest()
        expected = "A" if int(digest, 16) < 0.25 * 2**64 else "B"
        assert assign_variant("search", unit, {"A": 1, "B": 3}) == expected


def test_variants_are_as_frequent_as_their_weights_and_experiments_independent() -> None:
    weights = {"A": 50, "B": 30, "C": 20, "off": 0}
    units = [f"user-{number}" for number in range(20_000)]
    one = [assign_variant("one", unit, weights) for unit in units]
    other = [assign_variant("other", unit, weights) for unit in units]
    counts = Counter(one)
    expected = [10_000, 6_000, 4_000]
    assert stats.chisquare([counts[name] for name in "ABC"], expected).pvalue > 0.001
    assert counts["off"] == 0
    pairs = Counter(zip(one, other, strict=True))
    table = [[pairs[row, column] for column in "ABC"] for row in "ABC"]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_a_weight_that_grows_moves_nobody_away() -> None:
    for number in range(2000):
        before = assign_variant("e", str(number), {"A": 10, "B": 90})
        after = assign_variant("e", str(number), {"A": 40, "B": 60})
        assert (before, after) != ("A", "B")


@pytest.mark.parametrize(
    ("experiment", "unit", "weights", "field"),
    [
        ("", "u", {"A": 1}, "experiment"),
        ("e", "", {"A": 1}, "unit_id"),
        ("e", "u", {}, "weights"),
        ("e", "u", ["A"], "weights"),
        ("e", "u", {"A": -1, "B": 2}, "weights"),
        ("e", "u", {"A": 0}, "weights"),
        ("e", "u", {"A": float("nan")}, "weights"),
        ("e", "u", {"A#": 1}, "weights"),
        ("e", "u", {"A": 10**400}, "weights"),
    ],
)
def test_wrong_assignments_name_the_field(
    experiment: str, unit: str, weights: Any, field: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        assign_variant(experiment, unit, weights)


def test_the_distributions_are_scipys() -> None:
    for t in (-40, -3, -1.1, -0.001, 0, 0.5, 1.96, 9):
        assert normal(t) == pytest.approx(stats.norm.cdf(t), rel=1e-12)
        for freedom in (1, 1.5, 3, 10, 57.3, 1000, 1e5):
            assert student(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-7)
    for freedom in (1, 2.5, 30, 1e4):
        for probability in (0.001, 0.025, 0.8, 0.975):
            expected = stats.t.ppf(probability, freedom)
            assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-8)


def draw(dice: random.Random, count: int, mean: float, sigma: float = 0.8) -> list[float]:
    return [dice.lognormvariate(mean, sigma) for _ in range(count)]


def both(a: Sequence[float], b: Sequence[float], a_failed: int = 0, b_failed: int = 0) -> Any:
    return compared("x", "m", ("A", Totals.of(a, a_failed)), ("B", Totals.of(b, b_failed)))


def test_values_are_compared_as_scipy_does() -> None:
    dice = random.Random(3)
    for count, other, shift in ((40, 90, 0.3), (500, 400, 0.0), (2, 3, 1.0)):
        a, b = draw(dice, count, 0), draw(dice, other, shift, 0.5)
        ratio = both(a, b).ratio
        logs = [[math.log(value) for value in values] for values in (b, a)]
        expected = stats.ttest_ind(*logs, equal_var=False)
        interval = expected.confidence_interval()
        assert ratio.p_value == pytest.approx(expected.pvalue, rel=1e-8)
        assert math.log(ratio.low) == pytest.approx(interval.low, rel=1e-8)
        assert math.log(ratio.high) == pytest.approx(interval.high, rel=1e-8)


def test_success_rates_are_compared_as_scipy_does() -> None:
    for n, failed, m, other_failed in ((60, 12, 80, 8), (1000, 31, 900, 57), (40, 3, 50, 10)):
        success = both([1.0] * n, [1.0] * m, failed, other_failed).success
        table = [[n - failed, failed], [m - other_failed, other_failed]]
        expected = stats.chi2_contingency(table, correction=False)
        assert success.p_value == pytest.approx(expected.pvalue, rel=1e-9)
        low, high = newcombe(m - other_failed, m, n - failed, n)
        assert (success.low, success.high) == (pytest.approx(low), pytest.approx(high))


def counted(count: int, failed: int) -> Totals:
    totals = Totals()
    totals.count, totals.errors = count, failed
    return totals


def succeeding(n: int, failed: int, m: int, other_failed: int) -> Any:
    return compared(
        "x", "m", ("A", counted(n, failed)), ("B", counted(m, other_failed)), n / (n + m)
    )


def test_few_failures_are_compared_by_fishers_mid_p() -> None:
    for n, failed, m, other_failed in (
        *((30, 0, 30, 4), (1000, 3, 30, 1), (30, 2, 1000, 4), (40, 38, 50, 49)),
        *((30, 0, 30, 0), (30, 30, 30, 30), (30, 5, 10**6, 9), (30, 25, 10**9, 10**8)),
    ):
        rare = stats.hypergeom(n + m, failed + other_failed, n)
        tail = min(rare.cdf(failed - 1), rare.sf(failed)) + rare.pmf(failed) / 2
        p_value = succeeding(n, failed, m, other_failed).success.p_value
        assert p_value == pytest.approx(2 * tail, rel=1e-6, abs=1e-12), (n, failed, m)


def test_the_verdict_claims_what_its_interval_shows() -> None:
    found = succeeding(30, 0, 30, 4)
    assert found.success.p_value == pytest.approx(0.0562, abs=1e-4)
    assert found.success.low < 0 < found.success.high
    assert "succeeds" not in found.verdict


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 1000), (1000, 30)])
def test_equal_variants_that_rarely_fail_differ_in_one_of_twenty(n: int, m: int) -> None:
    claims = [
        (failed, other)
        for failed in range(min(n, 140) + 1)
        for other in range(min(m, 140) + 1)
        if " often than A" in succeeding(n, failed, m, other).verdict
    ]
    assert claims
    for rate in (0.002, 0.005, 0.01, 0.02, 0.05, 0.08):
        a, b = (stats.binom.pmf(range(141), count, rate) for count in (n, m))
        assert sum(a[failed] * b[other] for failed, other in claims) <= 0.05, rate


def newcombe(x: int, n: int, y: int, m: int) -> tuple[float, float]:
    p, q = x / n, y / m
    one = stats.binomtest(x, n).proportion_ci(method="wilson")
    other = stats.binomtest(y, m).proportion_ci(method="wilson")
    return (
        p - q - math.hypot(p - one.low, other.high - q),
        p - q + math.hypot(one.high - p, q - other.low),
    )


def test_the_split_is_checked_as_scipy_does() -> None:
    found = compared("x", "m", ("A", Totals.of([1.0] * 700)), ("B", Totals.of([1.0] * 400)), 0.6)
    expected = stats.chisquare([700, 400], [660, 440]).pvalue
    assert found.split_p_value == pytest.approx(expected, rel=1e-9)
    assert both([1.0] * 1100, [1.0] * 900).verdict.startswith("Not to be trusted")


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.03, 0.1, 0.5, 0.9, 0.999])
def test_a_split_as_intended_is_suspect_in_one_of_a_thousand(share: float) -> None:
    for count in (60, 100, 500, 12_000):
        meant = stats.binom(count, share)
        counts = range(max(0, int(meant.ppf(1e-6)) - 1), min(count, int(meant.isf(1e-6))) + 1)
        found = [
            compared("x", "m", ("A", counted(a, 0)), ("B", counted(count - a, 0)), share)
            for a in counts
        ]
        suspect = [one.verdict.startswith("Not to be trusted") for one in found]
        assert sum(meant.pmf(counts)[suspect]) < 0.0012, count
        if count * min(share, 1 - share) < 100:
            tails = zip(meant.cdf(counts), meant.sf([a - 1 for a in counts]), strict=True)
            expected = [min(1, 2 * min(pair)) for pair in tails]
            assert [one.split_p_value for one in found] == pytest.approx(expected, rel=1e-6)


def test_equal_variants_differ_in_one_of_twenty_comparisons() -> None:
    dice = random.Random(8)
    found = sum(
        both(draw(dice, 50, 0), draw(dice, 50, 0)).ratio.p_value < 0.05 for _ in range(1000)
    )
    assert 30 <= found <= 70  # 3 standard deviations; the benchmark makes 10,000


def test_the_size_needed_has_the_power_promised() -> None:
    dice = random.Random(9)
    pilot = both(draw(dice, 4000, 0), draw(dice, 4000, 0))
    assert pilot.ratio.needed == pytest.approx(
        2 * ((1.96 + 0.8416) * 0.8 / math.log(1.05)) ** 2, rel=0.05
    )
    a, b = Totals.of(draw(dice, 4000, 0)), Totals.of(draw(dice, 4000, 0))
    few = compared("x", "m", ("A", a), ("B", b), effect=0.5)
    count = few.ratio.needed if few.ratio else 0
    found = sum(
        both(draw(dice, count, 0), draw(dice, count, math.log(1.5))).ratio.p_value < 0.05
        for _ in range(600)
    )
    assert found / 600 == pytest.approx(0.8, abs=0.055)


def test_the_verdict_says_what_the_numbers_do() -> None:
    dice = random.Random(5)
    assert "Not enough data: 3 samples of A and 2 of B" in both([1, 2, 3], [4, 5]).verdict
    assert both([], []).verdict.startswith("Not enough data")
    close = both(draw(dice, 100, 0), draw(dice, 100, 0), 1, 1)
    assert "Not enough data to tell an effect of that size" in close.verdict
    faster = both(draw(dice, 5000, 0), draw(dice, 5000, -0.3), 500, 100)
    assert "B succeeds more often than A: by 8.0 points" in faster.verdict
    assert "less than A" in faster.verdict
    same = both([2.0] * 5000, [2.0] * 5000, 50, 50)
    assert same.verdict == "Success rates show no difference. Values show no difference."


def test_a_variant_without_samples_is_missing_where_there_are_enough() -> None:
    gone = both([1.0] * 10_000, [])
    assert gone.verdict.startswith("Not to be trusted: 10000 samples of A and 0 of B")
    assert both([1.0] * 60, []).verdict.startswith("Not to be trusted")
    assert both([1.0] * 59, []).verdict.startswith("Not enough data")
    assert both([1.0] * 31, [1.0] * 29).verdict.startswith("Not enough data")


def test_the_verdict_waits_for_as_many_samples_as_it_takes() -> None:
    dice = random.Random(4)
    few, enough = draw(dice, 29, 0), draw(dice, 30, 3)
    assert both(few, enough).verdict.startswith("Not enough data: 29 samples of A and 30 of B")
    assert "B takes" in both([*few, 1.0], enough).verdict
    # The usual formula of two proportions: 0.9 against 0.85 at 5 % and a power of 80 %.
    success = both([1.0] * 100, [1.0] * 100, 10, 10).success
    p, q = 0.9, 0.85
    middle = (p + q) / 2
    root = 1.959964 * math.sqrt(2 * middle * (1 - middle))
    root += 0.841621 * math.sqrt(p * (1 - p) + q * (1 - q))
    assert success.needed == math.ceil((root / 0.05) ** 2) == 686
    for count, said in ((685, "Not enough data to tell"), (686, "Success rates show no")):
        failed = count // 10
        found = both([2.0] * count, [2.0] * count, failed, failed)
        needed = found.success.needed
        assert (said in found.verdict) == ((count < needed) == (said[:3] == "Not")), count
    values = [1.0, 1.13] * 20
    found = both(values, values)
    assert found.ratio.needed < len(values)
    assert "Values show no difference." in found.verdict
    values = [1.0, 1.25] * 31
    found = both(values, values)
    assert len(values) < found.ratio.needed < 2 * len(values)
    assert f"values ({found.ratio.needed} each)" in found.verdict


def test_values_that_are_equal_but_for_rounding_are_equal() -> None:
    parts = [Totals.of([0.7, 0.7]) for _ in range(50)]
    merged = Totals()
    for part in parts:
        merged.add(part)
    found = compared("x", "m", ("A", merged), ("B", Totals.of([0.7] * 101)))
    assert found.ratio is not None
    assert found.ratio.p_value == 1
    assert "takes" not in found.verdict


def test_values_are_judged_by_those_above_0() -> None:
    zeros = [0.0] * 5000
    found = both([*zeros, 1.0, 2.0, 3.0], [*zeros, 1.5, 2.5, 3.5])
    assert "values (30 each above 0, at least)" in found.verdict
    assert "values (30 each above 0, at least)" in both(zeros, zeros).verdict
    dice = random.Random(7)
    found = both([*zeros, *draw(dice, 40, 0)], [*zeros, *draw(dice, 40, 0.01)])
    assert f"values ({found.ratio.needed} each)" in found.verdict


def test_values_at_the_limits_are_compared() -> None:
    found = both([1e-60, 1e60] * 40, [1e60, 1e-60] * 40)
    assert found.ratio.high > 1e10
    assert found.ratio.low < 1e-10
    assert both([1e-60] * 2, [1e60] * 2).ratio.effect > 1e100
    assert both([1e-60, 1e60], [1e-60, 1e59]).ratio.high > 1e300


async def test_retries_do_not_make_a_split_suspect(store: Settings) -> None:
    for variant, tries in (("A", 100), ("B", 160)):
        for number in range(tries):
            name = ["agent_execution_time", *(["agent_retries"] if number >= 100 else [])]
            for one in name:
                await record_metric(
                    metric_name=one,
                    agent_name="search",
                    dimension=variant,
                    value=1,
                    timestamp=DAY,
                )
    question = ("search", "A", "B", "agent_execution_time", DAY, DAY + 1)
    found = await compare_variants(*question)
    assert found.split_p_value == 1
    assert (found.b and found.b.count) == 160
    found = await compare_variants(*question, weights={"A": 1, "B": 2, "C": 7})
    assert (found.split_p_value or 0) < 1e-3


async def test_a_cell_whose_logarithms_cannot_be_read_is_left_out(
    strict_store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    for variant in "AAB":
        await record_metric(
            metric_name="m", value=1, agent_name="search", dimension=variant, timestamp=DAY
        )
    (key,) = (
        (one["date"]["S"], one["metric_name"]["S"])
        for one in raw.everything(strict_store, "metrics")
        if "#A#" in one["metric_name"]["S"]
    )
    raw.put_attribute(strict_store, "metrics", *key, log_sum={"NULL": True})
    found = await compare_variants("search", "A", "B", "m", DAY, DAY + 3600)
    assert found.a is None
    assert found.b is not None
    assert key[1] in caplog.text


async def test_two_variants_are_compared_from_the_stored_totals(store: Settings) -> None:
    dice = random.Random(6)
    values = {"A": draw(dice, 60, 0), "B": draw(dice, 50, -1), "C": [99.0]}
    for variant, numbers in values.items():
        for number, value in enumerate(numbers):
            await record_metric(
                metric_name="agent_execution_time",
                agent_name="search",
                dimension=variant,
                value=value,
                error=number % 10 == 0,
                timestamp=DAY,
            )
    found = await compare_variants(
        "search", "A", "B", "agent_execution_time", DAY - 3600, DAY + 3600, weights={"A": 6, "B": 5}
    )
    expected = both(values["A"], values["B"], 6, 5)
    for name in ("success", "ratio"):
        for field, value in expected[name].items():
            assert found[name][field] == pytest.approx(value, rel=1e-9), field
    assert (found.a and found.a.count, found.b and found.b.count) == (60, 50)
    assert found.split_p_value == pytest.approx(1)
    assert "B takes" in found.verdict
    for arguments, field in (
        (("search", "A", "A", "m", 1, 2), "b"),
        (("search", "A", "", "m", 1, 2), "b"),
        (("search", "A", "B", "m", 2, 1), "end"),
    ):
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            await compare_variants(*arguments)
    for more, field in (
        ({"effect": 0}, "effect"),
        ({"effect": 0.6}, "effect"),
        ({"weights": {"A": 1}}, "weights"),
        ({"weights": {"A": 1, "B": 0}}, "weights"),
        ({"weights": {"A": 1e60, "B": 1e-60}}, "weights"),
        ({"weights": ["A", "B"]}, "weights"),
    ):
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            await compare_variants("search", "A", "B", "m", 1, 2, **more)
    weights: Any = {"A": Decimal(1), "B": Decimal(1)}
    assert (await compare_variants("s", "A", "B", "m", 1, 2, weights=weights)).a is None
