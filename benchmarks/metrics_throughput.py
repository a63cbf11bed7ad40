"""Awaited samples a second: `record_metric` beside ADD by PynamoDB, boto3 and pydynox, in one run.

Each way counts samples of one metric on a local engine. Rates are samples per second of the
client's own CPU time (all its threads), the median of the rounds, which take turns; write units are
those that the engine reports. pydynox is left out where it is not installed (`[bench]`).
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import boto3

from tdev_models import Metric, RequestEvent, Settings, configure, record_metric, settings
from tdev_models.cli.engine import Engine
from tdev_models.models import TABLES

ROUNDS = 5
CALLERS, EACH = 1000, 40
ADDS = 1000
AT_ONCE = 32
KEY = {"date": "2026-01-01", "metric_name": "m#parser#00##shared"}


class Round(NamedTuple):
    """What one round of one way took."""

    samples: int
    cpu: float
    wall: float
    units: float


def measured(samples: int, work: Callable[[], float]) -> Round:
    wall, cpu = time.perf_counter(), time.process_time()
    units = work()
    return Round(samples, time.process_time() - cpu, time.perf_counter() - wall, units)


def ours() -> float:
    events: list[RequestEvent] = []

    async def caller() -> None:
        for number in range(EACH):
            await record_metric(metric_name="m", agent_name="parser", value=0.1 + number)

    async def callers() -> None:
        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    with settings.use(on_request=events.append):
        asyncio.run(callers())
    return sum(event.units for event in events)


def pynamodb() -> float:
    cell = Metric(*KEY.values())
    for number in range(ADDS):
        cell.update(actions=[Metric.value.add(0.5 + number), Metric.sample_count.add(1)])
    return one_unit_each()


def boto(table: Any) -> float:
    from decimal import Decimal

    units = 0.0
    for number in range(ADDS):
        answer = table.update_item(
            Key=KEY,
            UpdateExpression="ADD #v :v, #c :c",
            ExpressionAttributeNames={"#v": "value", "#c": "count"},
            ExpressionAttributeValues={":v": Decimal("0.5") + number, ":c": 1},
            ReturnConsumedCapacity="TOTAL",
        )
        units += answer["ConsumedCapacity"]["CapacityUnits"]
    return units


def pydynox(client: Any, table: str) -> float:
    async def caller(left: Iterator[int]) -> None:
        for number in left:
            await client.update_item(
                table,
                KEY,
                update_expression="ADD #v :v, #c :c",
                expression_attribute_names={"#v": "value", "#c": "count"},
                expression_attribute_values={":v": 0.5 + number, ":c": 1},
            )

    async def callers() -> None:
        left = iter(range(ADDS))
        await asyncio.gather(*(caller(left) for _ in range(AT_ONCE)))

    asyncio.run(callers())
    return one_unit_each()


def one_unit_each() -> float:
    """An update of an item below 1 KB; these two do not hand on what DynamoDB reports."""
    return float(ADDS)


def main() -> None:
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_REGION="us-east-1")
    with Engine.start() as engine:
        store = Settings(environment="bench", region="us-east-1", endpoint=engine.endpoint)
        configure(store)
        for model in TABLES:
            model.create_table()
        table = store.table_name("metrics")
        resource = boto3.resource("dynamodb", endpoint_url=engine.endpoint, region_name="us-east-1")
        ways: dict[str, tuple[int, Callable[[], float]]] = {
            f"tdev_models, {CALLERS:,} callers": (CALLERS * EACH, ours),
            "PynamoDB add, one caller": (ADDS, pynamodb),
            "boto3 ADD, one caller": (ADDS, lambda: boto(resource.Table(table))),
        }
        try:
            from pydynox import DynamoDBClient
        except ModuleNotFoundError:
            print("pydynox is not installed: pip install '.[bench]'")
        else:
            rust = DynamoDBClient(
                region="us-east-1", access_key="x", secret_key="x", endpoint_url=engine.endpoint
            )
            ways[f"pydynox ADD, {AT_ONCE} at once"] = (ADDS, lambda: pydynox(rust, table))
        rounds: dict[str, list[Round]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (samples, work) in ways.items():
                rounds[name].append(measured(samples, work))
    rates = {
        name: statistics.median(one.samples / one.cpu for one in found)
        for name, found in rounds.items()
    }
    base = rates["PynamoDB add, one caller"]
    print(
        f"{'way':28} {'samples/CPU s':>14} {'of PynamoDB':>12} {'samples/s':>10} {'WCU/1,000':>10}"
    )
    for name, found in rounds.items():
        wall = statistics.median(one.samples / one.wall for one in found)
        units = statistics.median(1000 * one.units / one.samples for one in found)
        ratio = rates[name] / base
        print(f"{name:28} {rates[name]:14,.0f} {ratio:11.1f} {wall:10,.0f} {units:10,.1f}")


if __name__ == "__main__":
    main()
