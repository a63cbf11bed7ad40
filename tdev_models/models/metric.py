"""The table of metrics."""

from __future__ import annotations

from typing import Self

from pynamodb.attributes import BinaryAttribute, UnicodeAttribute

from tdev_models.models.attributes import NumberAttribute, TotalAttribute
from tdev_models.models.base import BaseModel, TableMeta
from tdev_models.models.totals import Totals, packed, unpacked


class Metric(BaseModel):
    """One writer's totals of one metric in one hour.

    The stored sort key `metric_name` is `name#agent#HH#dimension#writer`; parts may be empty.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "metrics"

    date = UnicodeAttribute(hash_key=True)
    cell = UnicodeAttribute(range_key=True, attr_name="metric_name")
    value = TotalAttribute(null=True)
    # `count` is a method of PynamoDB's models.
    sample_count = NumberAttribute(null=True, attr_name="count")
    avg_response_time = TotalAttribute(null=True)
    error_rate = TotalAttribute(null=True)
    agent_name = UnicodeAttribute(null=True)
    hour = NumberAttribute(null=True)

    seq = NumberAttribute(null=True)
    error_count = NumberAttribute(null=True)
    smallest = NumberAttribute(null=True, attr_name="min")
    largest = NumberAttribute(null=True, attr_name="max")
    sum_squares = TotalAttribute(null=True)
    log_count = NumberAttribute(null=True)
    log_sum = TotalAttribute(null=True)
    log_sum_squares = TotalAttribute(null=True)
    histogram = BinaryAttribute(legacy_encoding=False, null=True)

    @classmethod
    def of(cls, date: str, cell: str, seq: int, totals: Totals) -> Self:
        """Return the cell that holds these totals, its `seq`-th state."""
        _, agent_name, hour, _, _ = cell.split("#")
        return cls(
            date,
            cell,
            value=totals.sum,
            sample_count=totals.count,
            avg_response_time=totals.mean,
            error_rate=totals.error_rate,
            agent_name=agent_name or None,
            hour=int(hour),
            seq=seq,
            error_count=totals.errors,
            smallest=totals.min,
            largest=totals.max,
            sum_squares=totals.squares,
            log_count=totals.positives,
            log_sum=totals.logs,
            log_sum_squares=totals.log_squares,
            histogram=packed(totals.buckets),
        )

    @property
    def totals(self) -> Totals:
        """What the cell holds."""
        totals = Totals()
        totals.count, totals.errors = int(self.sample_count), int(self.error_count)
        totals.sum = float(self.value)
        totals.min, totals.max = float(self.smallest), float(self.largest)
        totals.squares, totals.positives = self.sum_squares, int(self.log_count)
        totals.logs, totals.log_squares = self.log_sum, self.log_sum_squares
        totals.buckets = unpacked(self.histogram)
        return totals
