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


class Cell(NamedTuple):
    """What the samples of a cell have in common, whoever wrote it; `day` and `hour` are UTC."""

    day: str
    hour: int
    agent_name: str
    dimension: str


async def read_totals(
    client: Client,
    name: str,
    first: float,
    last: float,
    group_of: Callable[[Cell], G | None],
    agent_name: str | None = None,
    *,
    only: Sequence[Attribute[Any]] = READ,
) -> dict[G, Totals]:
    """Return each group's totals of all hours that [first, last) touches; None leaves a cell out.

    Read as `query_metrics` says, and added up in a thread: months of it would stop a loop.
    """
    prefix = f"{name}#" if agent_name is None else f"{name}#{agent_name}#"
    hours = range(int(first // 3600), -int(-last // 3600))
    days = range(hours[0] // 24, hours[-1] // 24 + 1)
    read = [partial(_day, client, day, hours, prefix, group_of, only) for day in days]
    return await client.compute(_united, await client.gather(read, _DAYS_AT_ONCE))


def _united(days: Iterable[Mapping[G, Totals]]) -> dict[G, Totals]:
    groups: dict[G, Totals] = {}
    for day in days:
        for group, totals in day.items():
            if (first := groups.setdefault(group, totals)) is not totals:
                first.add(totals)
    return groups


def instants(start: Any, end: Any) -> tuple[float, float]:
    """Return a checked range of time as epoch seconds."""
    first, last = validation.instant("start", start), validation.instant("end", end)
    if not 0 < last - first <= _MOST_DAYS * 86400:
        raise InvalidRequest("end", f"must be after start, by at most {_MOST_DAYS} days")
    return first, last


async def _day(
    client: Client,
    number: int,
    hours: range,
    prefix: str,
    group_of: Callable[[Cell], G | None],
    only: Sequence[Attribute[Any]],
) -> dict[G, Totals]:
    """Return the totals of which of the hours are of a day; both are counted since the epoch."""
    day = datetime.fromtimestamp(86400 * number, UTC).date().isoformat()
    hours_of_day = range(hours.start - 24 * number, hours.stop - 24 * number)
    # Merged page by page: all cells of a day with many writers would take too much memory.
    merged: defaultdict[G, Totals] = defaultdict(Totals)
    start = None
    while True:
        page, start = await client.metrics.raw_page(
            day, range_condition=Metric.cell.startswith(prefix), start=start, only=only
        )
        await client.compute(_merge, merged, day, hours_of_day, group_of, page)
        if start is None:
            return merged


def _merge(
    merged: defaultdict[G, Totals],
    day: str,
    hours: range,
    group_of: Callable[[Cell], G | None],
    page: Iterable[Mapping[str, Any]],
) -> None:
    """Add the writers' cells of a page to the totals of their group."""
    cell = Metric.cell.attr_name
    for item in page:
        name = item[cell]["S"]
        try:
            _, agent, hour, dimension, _ = name.split("#")
            key, totals = Cell(day, _HOURS.index(hour), agent, dimension), from_item(item)
        except (PayloadDamaged, KeyError, ValueError) as error:
            # Of another program: it hides no other cell.
            _log.warning("metric %s of %s cannot be read: %s", name, day, logged(error))
            continue
        if key.hour in hours and (group := group_of(key)) is not None:
            merged[group].add(totals)
