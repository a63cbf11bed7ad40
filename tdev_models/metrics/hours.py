"""The metrics' totals of each hour, read and grouped."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pynamodb.attributes import Attribute

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.errors import InvalidRequest, PayloadDamaged, logged
from tdev_models.metrics.totals import READ, Totals, from_item
from tdev_models.models import Metric

G = TypeVar("G", bound=Hashable)

_log = logging.getLogger(__name__)

_HOURS = [f"{hour:02}" for hour in range(24)]
_MOST_DAYS = 366
_DAYS_AT_ONCE = 8


class HourTotals(NamedTuple):
    """All writers' totals of one hour, agent and dimension; `day` and `hour` are UTC."""

    day: str
    hour: int
    agent_name: str
    dimension: str
    totals: Totals


async def read_totals(
    client: Client,
    name: str,
    first: float,
    last: float,
    agent_name: str | None = None,
    *,
    only: Sequence[Attribute[Any]] = READ,
) -> list[HourTotals]:
    """Return the totals of every hour that [first, last) touches, as `query_metrics` reads them."""
    prefix = f"{name}#" if agent_name is None else f"{name}#{agent_name}#"
    hours = range(int(first // 3600), -int(-last // 3600))
    days = range(hours[0] // 24, hours[-1] // 24 + 1)
    read = [partial(_day, client, day, hours, prefix, only) for day in days]
    return [cell for day in await client.gather(read, _DAYS_AT_ONCE) for cell in day]


async def grouped(
    client: Client, cells: Iterable[HourTotals], group_of: Callable[[HourTotals], G]
) -> dict[G, Totals]:
    """Return the totals of each group of hours; not in the loop: months of them would stop it."""

    def add() -> dict[G, Totals]:
        groups: dict[G, Totals] = {}
        for cell in cells:
            groups.setdefault(group_of(cell), Totals()).add(cell.totals)
        return groups

    return await client.compute(add)


def instants(start: Any, end: Any) -> tuple[float, float]:
    """Return a checked range of time as epoch seconds."""
    first, last = validation.instant("start", start), validation.instant("end", end)
    if not 0 < last - first <= _MOST_DAYS * 86400:
        raise InvalidRequest("end", f"must be after start, by at most {_MOST_DAYS} days")
    return first, last


async def _day(
    client: Client, number: int, hours: range, prefix: str, only: Sequence[Attribute[Any]]
) -> list[HourTotals]:
    """Return which of the hours are of a day; both are counted since the epoch."""
    day = datetime.fromtimestamp(86400 * number, UTC).date().isoformat()
    # Merged page by page: all cells of a day with many writers would take too much memory.
    merged: defaultdict[tuple[int, str, str], Totals] = defaultdict(Totals)
    start = None
    while True:
        page, start = await client.metrics.raw_page(
            day, range_condition=Metric.cell.startswith(prefix), start=start, only=only
        )
        await client.compute(_merge, merged, day, page)
        if start is None:
            return [
                HourTotals(day, *cell, total)
                for cell, total in merged.items()
                if 24 * number + cell[0] in hours
            ]


def _merge(
    merged: defaultdict[tuple[int, str, str], Totals], day: str, page: Iterable[Mapping[str, Any]]
) -> None:
    """Add the writers' cells of a page to the totals of their hour, agent and dimension."""
    cell = Metric.cell.attr_name
    for item in page:
        name = item[cell]["S"]
        try:
            _, agent, hour, dimension, _ = name.split("#")
            key, totals = (_HOURS.index(hour), agent, dimension), from_item(item)
        except (PayloadDamaged, KeyError, ValueError) as error:
            # Of another program: it hides no other cell.
            _log.warning("metric %s of %s cannot be read: %s", name, day, logged(error))
            continue
        merged[key].add(totals)
