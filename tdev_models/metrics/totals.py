"""Totals of samples, which merge in any order: counts, sums, extremes and a histogram."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter

from tdev_models.errors import PayloadDamaged
from tdev_models.models import Metric
from tdev_models.models.base import Item
from tdev_models.validation import LARGEST

# A bucket's middle is within e**(WIDTH / 2) - 1 < 2 % of every value in it.
_WIDTH = 0.0396
# Added to the number of each bucket, so that even 1e-60 has a number above that of 0.
_ONE = 4000
_BELOW_ALL = -2 * _ONE
_VERSION = b"\x01"
_COUNT_BITS = 63
_MOST_LOG = 139.0  # a little more than that of the largest value


class Totals:
    """What is kept of some samples.

    Attributes:
        sum: the sum; with `rest`, the part of it that a float cannot hold, exact to 1e-30.
        positives, logs, log_squares: how many values are above 0, the sums of their natural
            logarithms and of those squared.
        buckets: how many values each bucket has; their numbers rise with the values.
    """

    __slots__ = (
        "buckets",
        "count",
        "errors",
        "log_squares",
        "logs",
        "max",
        "min",
        "positives",
        "rest",
        "sum",
    )

    def __init__(self) -> None:
        self.count = self.errors = self.positives = 0
        self.sum = self.rest = self.logs = self.log_squares = 0.0
        self.min, self.max = math.inf, -math.inf
        self.buckets: dict[int, int] = {}

    @classmethod
    def of(cls, values: Sequence[float], errors: int = 0) -> Totals:
        """Return the totals of some values, of which `errors` are failures."""
        totals = cls()
        if not values:
            return totals
        totals.count, totals.errors = len(values), errors
        totals.sum, totals.rest = _exactly(values)
        logs = [math.log(value) for value in values if value > 0]
        totals.positives = len(logs)
        totals.logs = math.fsum(logs)
        totals.log_squares = math.fsum(log * log for log in logs)
        totals.min, totals.max = min(values), max(values)
        totals.buckets = Counter(map(bucket, values))
        return totals

    def add(self, other: Totals) -> None:
        """Add the samples of others."""
        self.count += other.count
        self.errors += other.errors
        self.sum, self.rest = _exactly((self.sum, self.rest, other.sum, other.rest))
        self.positives += other.positives
        self.logs += other.logs
        self.log_squares += other.log_squares
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        count_of = self.buckets.get
        for number, count in other.buckets.items():
            self.buckets[number] = count_of(number, 0) + count

    @property
    def mean(self) -> float:
        """The mean; there must be samples."""
        return self.sum / self.count

    @property
    def error_rate(self) -> float:
        """The share of failures; there must be samples."""
        return self.errors / self.count

    def percentile(self, percent: float) -> float:
        """Return the value that `percent` % of the samples do not exceed, within 2 %.

        By nearest rank: the smallest sample that is at least as large as `percent` % of them.
        """
        from fractions import Fraction  # not in the way of each import of the package

        rank = max(1, math.ceil(Fraction(str(float(percent))) * self.count / 100))
        if rank == 1:
            return self.min
        if rank < self.count:
            seen = 0
            for number in sorted(self.buckets):
                seen += self.buckets[number]
                if seen >= rank:
                    return min(self.max, max(self.min, _middle(number)))
        return self.max


def bucket(value: float) -> int:
    """Return the number of the bucket that a value falls in."""
    if value == 0:
        return 0
    number = math.ceil(math.log(abs(value)) / _WIDTH) + _ONE
    return number if value > 0 else -number


def _middle(number: int) -> float:
    if number == 0:
        return 0.0
    return math.copysign(math.exp((abs(number) - _ONE - 0.5) * _WIDTH), number)


def _exactly(values: Iterable[float]) -> tuple[float, float]:
    parts = list(values)
    total = math.fsum(parts)
    return total, math.fsum((*parts, -total))


def pack(buckets: Mapping[int, int]) -> bytes:
    """Return buckets as bytes: a version, then for each its distance from the last and its count.

    Both as numbers of 7 bits a byte, the lowest first; two or three bytes a bucket in all.
    """
    out, last = bytearray(_VERSION), _BELOW_ALL
    for number in sorted(buckets):
        for part in (number - last, buckets[number]):
            while part > 127:
                out.append(part & 127 | 128)
                part >>= 7
            out.append(part)
        last = number
    return bytes(out)


def unpack(data: bytes) -> dict[int, int]:
    """Return the buckets that `pack` wrote.

    Raises:
        PayloadDamaged: another form, of a newer release perhaps.
    """
    if data[:1] != _VERSION:
        raise PayloadDamaged(
            f"histogram of version {data[:1].hex() or 'none'}: upgrade tdev-models to read it"
        )
    if len(data) == 1:
        return {}
    distance, rest = _numbers(data)
    counts, distances = rest[::2], rest[1::2]
    numbers = [*accumulate(distances, initial=_BELOW_ALL + distance)]
    if len(numbers) != len(counts):
        raise PayloadDamaged("histogram that ends in the middle of a bucket")
    if not distance or 0 in distances or numbers[-1] >= -_BELOW_ALL:
        raise PayloadDamaged("histogram with a bucket that no value has")
    return dict(zip(numbers, counts, strict=True))


def _numbers(data: bytes) -> tuple[int, Sequence[int]]:
    """Return the first number behind the version, and the others."""
    parts, part, shift = list[int](), 0, 0
    for at, byte in enumerate(data[1:], 2):
        part |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            # As a rule all but the first have one byte, and are there already.
            if not parts and (rest := data[at:]).isascii():
                return part, rest
            parts.append(part)
            part = shift = 0
        elif shift > _COUNT_BITS:  # else a long number would take time by its square
            raise PayloadDamaged("histogram with a number of too many digits")
    if shift:
        raise PayloadDamaged("histogram that ends in the middle of a bucket")
    return parts[0], parts[1:]


def to_item(date: str, cell: str, seq: int, totals: Totals) -> Metric:
    """Return the item of a writer's cell that holds these totals; `seq` numbers its writes."""
    _, agent_name, hour, _, _ = cell.split("#")
    values = {
        "date": date,
        "cell": cell,
        "value": totals.sum,
        "sample_count": totals.count,
        "avg_response_time": totals.mean,
        "error_rate": totals.error_rate,
        "agent_name": agent_name or None,
        "hour": int(hour),
        "seq": seq,
        "error_count": totals.errors,
        "smallest": totals.min,
        "largest": totals.max,
        "log_count": totals.positives,
        "log_sum": totals.logs,
        "log_sum_squares": totals.log_squares,
        "histogram": pack(totals.buckets),
    }
    return Metric.having({name: one for name, one in values.items() if one is not None})


READ = (
    *(Metric.cell, Metric.histogram, Metric.sample_count, Metric.error_count),
    *(Metric.value, Metric.smallest, Metric.largest),
)
"""The attributes of a cell that readers need."""

LOGS = (Metric.log_count, Metric.log_sum, Metric.log_sum_squares)
"""Those that a comparison needs besides."""

_HISTOGRAM, *_NUMBERS = (attribute.attr_name for attribute in READ[1:])
_numbers_of = itemgetter(*_NUMBERS)
_logs_of = itemgetter(*(attribute.attr_name for attribute in LOGS))


def from_item(item: Item) -> Totals:
    """Return the totals that a writer's cell holds, from its item as DynamoDB sends it.

    A year of many processes has millions of them: no model's instance is made of each. What
    belongs to logarithms is 0 where it was not read.

    Raises:
        PayloadDamaged, KeyError, ValueError: another program wrote it.
    """
    totals = Totals()
    count, errors, total, least, most = _numbers_of(item)
    totals.count, totals.errors = int(count["N"]), int(errors["N"])
    totals.sum, totals.min, totals.max = float(total["N"]), float(least["N"]), float(most["N"])
    counts_hold = 0 <= totals.errors <= totals.count <= LARGEST and totals.count > 0
    if not (counts_hold and -LARGEST <= totals.min <= totals.max <= LARGEST):
        raise PayloadDamaged("counts or extremes that no samples have")
    totals.buckets = unpack(item[_HISTOGRAM]["B"])
    if LOGS[0].attr_name in item:
        positives, logs, squares = _logs_of(item)
        totals.positives = int(positives["N"])
        totals.logs, totals.log_squares = float(logs["N"]), float(squares["N"])
        most = _MOST_LOG * totals.positives
        logs_hold = abs(totals.logs) <= most and 0 <= totals.log_squares <= _MOST_LOG * most
        if not (logs_hold and totals.positives <= totals.count):
            raise PayloadDamaged("logarithms that no samples have")
    return totals
