"""The table of metrics."""

from __future__ import annotations

from pynamodb.attributes import UnicodeAttribute

from tdev_models.models.attributes import NumberAttribute
from tdev_models.models.base import BaseModel, TableMeta


class Metric(BaseModel):
    """One writer's totals of one metric in one hour.

    The stored sort key `metric_name` is `name#agent#HH#dimension#writer`; parts may be empty.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "metrics"

    date = UnicodeAttribute(hash_key=True)
    cell = UnicodeAttribute(range_key=True, attr_name="metric_name")
    value = NumberAttribute(null=True)
    # `count` is a method of PynamoDB's models.
    sample_count = NumberAttribute(null=True, attr_name="count")
    avg_response_time = NumberAttribute(null=True)
    error_rate = NumberAttribute(null=True)
    agent_name = UnicodeAttribute(null=True)
    hour = NumberAttribute(null=True)

    seq = NumberAttribute(null=True)
    error_count = NumberAttribute(null=True)
    smallest = NumberAttribute(null=True, attr_name="min")
    largest = NumberAttribute(null=True, attr_name="max")
