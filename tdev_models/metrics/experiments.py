"""A/B tests: which variant a unit gets, and what the metrics say of two of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.errors import InvalidRequest, shown
from tdev_models.metrics.distributions import binomial, normal, student, student_quantile
from tdev_models.metrics.hours import instants, read_totals
from tdev_models.metrics.totals import LOGS, READ, Totals
from tdev_models.results import Comparison, Difference, Variant

_PART = validation.key(200, part=True)
_TEXT = validation.key()

_LEVEL = 0.05
# The normal quantiles of 1 - _LEVEL / 2, and of the power of 0.8 that `needed` is for.
_Z_LEVEL, _Z_POWER = 1.959963984540054, 0.8416212335729143
_SPLIT_LEVEL = 0.001
# Where fewer samples are meant for a variant the normal distribution is too far off at that level.
_SPLIT_FEW = 100
_LEAST = 30
# Where fewer events are expected of a variant the normal distribution is too far off.
_FEW = 5
# Of so few expected ones more than this have a probability below 1e-200.
_MOST_EVENTS = 200
# Means of logarithms that differ by less are equal: the rest is rounding.
_SAME = 1e-9


def assign_variant(experiment: str, unit_id: str, weights: Mapping[str, float]) -> str:
    """Return the variant of a unit (a user, say): always the same, and each by its weight.

    Reads and writes nothing. The first 8 bytes of BLAKE2b of `experiment`, a zero byte and
    `unit_id`, as a fraction of 2**64, pick a place on a line along which the variants lie in the
    order of their names, each as long as its weight. Experiments assign independently of each
    other. Where weights change, only the units move whose place now lies in another variant.

    Args:
        experiment: its name.
        unit_id: who or what gets the variant.
        weights: variant to weight, at least 0; any scale.

    Raises:
        InvalidRequest: an empty name, or weights that are no weights.
    """
    experiment, unit_id = _TEXT("experiment", experiment), _TEXT("unit_id", unit_id)
    line = sorted(_checked(weights).items())
    total = math.fsum(weight for _, weight in line)
    digest = hashlib.blake2b(f"{experiment}\0{unit_id}".encode(), digest_size=8).digest()
    place, reached = int.from_bytes(digest) / 2**64 * total, 0.0
    for name, weight in line:
        reached += weight
        if place < reached:
            return name
    return max(name for name, weight in line if weight)  # the sum was rounded


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(weights, Mapping) or not weights:
        raise InvalidRequest("weights", "must be a mapping of variants to weights")
    checked = {
        _PART("weights", name): validation.number("weights", weights[name]) for name in weights
    }
    if min(checked.values()) < 0 or max(checked.values()) <= 0:
        raise InvalidRequest("weights", "must be at least 0, and one of them above")
    return checked


async def compare_variants(
    client: Client,
    agent: str,
    a: str,
    b: str,
    metric: str,
    start: Any,
    end: Any,
    *,
    weights: Mapping[str, float] | None = None,
    effect: float = 0.05,
) -> Comparison:
    """Compare two variants of one agent by the totals of a metric: b against a.

    Success rates by Newcombe's interval and the test of two proportions (Fisher's mid-p where fewer
    than five failures, or successes, are expected of a variant), and a difference is one where both
    say so; values by Welch's test of their logarithms (values above 0, failed runs included). Each
    at 5 %: of ten pairs of equal variants one shows a difference in either. Decide on the range
    beforehand: who looks again and again until a difference shows will find one by chance. A retry
    is a sample like any other, except for the check of the split, which leaves out the retries of
    `agent_execution_time`. The check and the 5 % hold where each session runs the agent once: its
    runs with `key=` share a variant, and what they have in common counts as often as they are. One
    Query a day of the range, two for `agent_execution_time`, consistent; whole hours, as
    `query_metrics`.

    Args:
        agent: the agent.
        a: one variant, the dimension of its samples.
        b: the other.
        metric: usually "agent_execution_time", which the tracker records.
        start: instant, inclusive; epoch seconds, datetime (naive: local time) or ISO text.
        end: instant, exclusive; at most 366 days later.
        weights: the weights that units were assigned by; equal when not given.
        effect: what `needed` is for, at most 0.5: 0.05 is five points of success, or 5 % of the
            value.

    Raises:
        InvalidRequest: a wrong value.
        Throttled, Unavailable: after all retries; safe to call again.
    """
    agent, a, b, metric = (
        _PART(field, value)
        for field, value in (("agent", agent), ("a", a), ("b", b), ("metric", metric))
    )
    if a == b:
        raise InvalidRequest("b", "must be another variant than a")
    if not 0 < validation.number("effect", effect) <= 0.5:
        raise InvalidRequest("effect", "must be above 0, and at most 0.5")
    share = 0.5
    if weights is not None:
        weight_a, weight_b = (_checked(weights).get(name, 0.0) for name in (a, b))
        share = weight_a / (weight_a + weight_b) if weight_a + weight_b else 0.0
        if not 0 < share < 1:
            problem = f"must be above 0 for {a} and {b}; they are given for {shown([*weights])}"
            raise InvalidRequest("weights", problem)

    async def totals_of(name: str) -> dict[str, Totals]:
        first, last = instants(start, end)
        asked = lambda cell: cell.dimension if cell.dimension in (a, b) else None  # noqa: E731
        only = (*READ, *LOGS)
        found = await read_totals(client, name, first, last, asked, agent, only=only)
        return {a: Totals(), b: Totals()} | found

    samples, retried = await totals_of(metric), (0, 0)
    if metric == "agent_execution_time":
        retries = await totals_of("agent_retries")
        retried = retries[a].count, retries[b].count
    return compared(agent, metric, (a, samples[a]), (b, samples[b]), share, float(effect), retried)


def compared(
    agent: str,
    metric: str,
    a: tuple[str, Totals],
    b: tuple[str, Totals],
    share: float = 0.5,
    effect: float = 0.05,
    retries: tuple[int, int] = (0, 0),
) -> Comparison:
    """Return the comparison of two totals; `share` of the first attempts were meant for `a`."""
    (_, totals_a), (_, totals_b) = a, b
    first_a, first_b = (
        max(0, totals.count - again)
        for totals, again in zip((totals_a, totals_b), retries, strict=True)
    )
    split = _split(first_a, first_b, share) if first_a + first_b else None
    both = totals_a.count and totals_b.count
    success = _success(totals_a, totals_b, effect) if both else None
    enough = min(totals_a.positives, totals_b.positives) > 1
    ratio = _ratio(totals_a, totals_b, effect) if enough else None
    return Comparison(
        metric=metric,
        agent_name=agent,
        a=_variant(*a) if totals_a.count else None,
        b=_variant(*b) if totals_b.count else None,
        success=success,
        ratio=ratio,
        split_p_value=split,
        verdict=_verdict(a, b, success, ratio, split),
    )


def _variant(name: str, totals: Totals) -> Variant:
    return Variant(
        name=name,
        count=totals.count,
        success_rate=1 - totals.error_rate,
        mean=totals.mean,
        typical=math.exp(totals.logs / totals.positives) if totals.positives else None,
        p50=totals.percentile(50),
        p95=totals.percentile(95),
        p99=totals.percentile(99),
    )


def _split(a: int, b: int, share: float) -> float:
    if (a + b) * min(share, 1 - share) < _SPLIT_FEW:
        return min(1.0, 2 * min(binomial(a, a + b, share), binomial(b, a + b, 1 - share)))
    z = (a - (a + b) * share) / math.sqrt((a + b) * share * (1 - share))
    return 2 * normal(-abs(z))


def _success(a: Totals, b: Totals, effect: float) -> Difference:
    p, q = 1 - a.error_rate, 1 - b.error_rate
    (a_low, a_high), (b_low, b_high) = _wilson(p, a.count), _wilson(q, b.count)
    wanted = p - effect if p >= effect else p + effect
    middle = (p + wanted) / 2
    needed = (
        _Z_LEVEL * math.sqrt(2 * middle * (1 - middle))
        + _Z_POWER * math.sqrt(p * (1 - p) + wanted * (1 - wanted))
    ) / effect
    return Difference(
        effect=q - p,
        low=q - p - math.hypot(q - b_low, a_high - p),
        high=q - p + math.hypot(b_high - q, p - a_low),
        p_value=_proportions(a, b),
        needed=math.ceil(needed**2),
    )


def _proportions(a: Totals, b: Totals) -> float:
    """Return the p-value of two success rates: by the normal distribution, or exactly by few."""
    small = min(a, b, key=attrgetter("count"))
    both, failed = a.count + b.count, a.errors + b.errors
    rare, seen = min((failed, small.errors), (both - failed, small.count - small.errors))
    if small.count * rare < _FEW * both:
        return _mid_p(seen, rare, small.count, both)
    pooled = failed / both
    error = math.sqrt(pooled * (1 - pooled) * (1 / a.count + 1 / b.count))
    return 2 * normal(-abs(a.error_rate - b.error_rate) / error)


def _mid_p(seen: int, rare: int, count: int, both: int) -> float:
    """Return Fisher's two-sided mid-p: `seen` of all `rare` events among `count` of `both`.

    `rare` and `count` are at most half of `both`, and fewer than `_FEW` events are expected.
    """
    likely = [1.0]  # of each number of events, against that of none
    for x in range(min(count, rare, _MOST_EVENTS)):
        odds = (count - x) * (rare - x) / ((x + 1) * (both - count - rare + x + 1))
        likely.append(likely[-1] * odds)
    if seen >= len(likely):
        return 0.0
    tail = min(math.fsum(likely[:seen]), math.fsum(likely[seen + 1 :])) + likely[seen] / 2
    return 2 * tail / math.fsum(likely)


def _wilson(p: float, count: int) -> tuple[float, float]:
    z = _Z_LEVEL
    middle = p + z * z / (2 * count)
    width = z * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return (middle - width) / scale, (middle + width) / scale


def _ratio(a: Totals, b: Totals, effect: float) -> Difference:
    parts = []
    for totals in (a, b):
        n = totals.positives
        variance = max(0.0, totals.log_squares - totals.logs * totals.logs / n) / (n - 1)
        parts.append((totals.logs / n, variance, n))
    (mean, variance, n), (other_mean, other_variance, m) = parts
    difference, square = other_mean - mean, variance / n + other_variance / m
    same = abs(difference) <= _SAME
    p_value, width = float(same), 0.0
    if square:
        freedom = square**2 / ((variance / n) ** 2 / (n - 1) + (other_variance / m) ** 2 / (m - 1))
        if not same:
            p_value = 2 * student(-abs(difference) / math.sqrt(square), freedom)
        width = student_quantile(1 - _LEVEL / 2, freedom) * math.sqrt(square)
    needed = (_Z_LEVEL + _Z_POWER) ** 2 * (variance + other_variance)
    return Difference(
        effect=_exp(difference),
        low=_exp(difference - width),
        high=_exp(difference + width),
        p_value=p_value,
        needed=max(2, math.ceil(needed / math.log1p(effect) ** 2)),
    )


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))  # beyond it is no float


def _verdict(
    a: tuple[str, Totals],
    b: tuple[str, Totals],
    success: Difference | None,
    ratio: Difference | None,
    split: float | None,
) -> str:
    (a_name, totals_a), (b_name, totals_b) = a, b
    fewest = min(totals_a.count, totals_b.count)
    enough = totals_a.count + totals_b.count >= 2 * _LEAST  # to ask where those of one have gone
    if enough and split is not None and split < _SPLIT_LEVEL:
        return (
            f"Not to be trusted: {totals_a.count} samples of {a_name} and {totals_b.count} of "
            f"{b_name} are not split as intended, so samples of one of them must be missing."
        )
    if fewest < _LEAST or success is None:
        return (
            f"Not enough data: {totals_a.count} samples of {a_name} and {totals_b.count} of "
            f"{b_name}; a comparison takes at least {_LEAST} of each."
        )
    positive = min(totals_a.positives, totals_b.positives)
    return _findings(a_name, b_name, success, ratio, fewest, positive)


def _findings(
    a_name: str,
    b_name: str,
    success: Difference,
    ratio: Difference | None,
    fewest: int,
    positive: int,
) -> str:
    """Return what `fewest` samples of a variant, `positive` of them above 0, say at least."""
    sentences, undecided = [], []
    if success.p_value < _LEVEL and not success.low <= 0 <= success.high:
        more = "more" if success.effect > 0 else "less"
        sentences.append(
            f"{b_name} succeeds {more} often than {a_name}: by {100 * abs(success.effect):.1f} "
            f"points ({100 * success.low:+.1f} to {100 * success.high:+.1f})."
        )
    elif fewest < success.needed:
        undecided.append(f"success ({success.needed} each)")
    else:
        sentences.append("Success rates show no difference.")
    if ratio is None or positive < _LEAST:
        undecided.append(f"values ({_LEAST} each above 0, at least)")
    elif ratio.p_value < _LEVEL:
        less = "less" if ratio.effect < 1 else "more"
        sentences.append(
            f"{b_name} takes {100 * abs(ratio.effect - 1):.1f} % {less} than {a_name} "
            f"({100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} %)."
        )
    elif positive < ratio.needed:
        undecided.append(f"values ({ratio.needed} each)")
    else:
        sentences.append("Values show no difference.")
    if undecided:
        sentences.append(
            f"Not enough data to tell an effect of that size in {' and '.join(undecided)}."
        )
    return " ".join(sentences)
