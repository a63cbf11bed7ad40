"""The table of metrics."""

from __future__ import annotations

from tdev_models.models.attributes import (
    BytesAttribute,
    NumberAttribute,
    TextAttribute,
    TotalAttribute,
)
from tdev_models.models.base import BaseModel, TableMeta


class Metric(BaseModel):
    """One writer's totals of one metric in one hour.

    The stored sort key `metric_name` is `name#agent#HH#dimension#writer`; parts may be empty.
    `metrics.totals` converts between items and totals.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "metrics"

    date = TextAttribute(hash_key=True)
    cell = TextAttribute(range_key=True, attr_name="metric_name")
    value = TotalAttribute()
    # `count` is a method of PynamoDB's models.
    sample_count = NumberAttribute(attr_name="count")
    avg_response_time = TotalAttribute()
    error_rate = TotalAttribute()
    agent_name = TextAttribute()
    hour = NumberAttribute()

    seq = NumberAttribute()
    error_count = NumberAttribute()
    smallest = NumberAttribute(attr_name="min")
    largest = NumberAttribute(attr_name="max")
    log_count = NumberAttribute()
    log_sum = TotalAttribute()
    log_sum_squares = TotalAttribute()
    histogram = BytesAttribute()
