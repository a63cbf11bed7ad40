"""The table of metrics."""

from __future__ import annotations

from pynamodb.attributes import BinaryAttribute, UnicodeAttribute

from tdev_models.models.attributes import NumberAttribute, TotalAttribute
from tdev_models.models.base import BaseModel, TableMeta


class Metric(BaseModel):
    """One writer's totals of one metric in one hour.

    The stored sort key `metric_name` is `name#agent#HH#dimension#writer`; parts may be empty.
    `metrics.totals` converts between items and totals.
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
