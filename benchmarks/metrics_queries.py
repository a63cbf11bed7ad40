"""What `query_metrics` over 31 days costs with 1, 10 and 50 writers: requests, units, seconds."""

import asyncio
import os
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tdev_models import AGENTS, RequestEvent, Settings, configure, query_metrics, settings
from tdev_models.cli.engine import Engine
from tdev_models.metrics.recorder import CellKey, Recorder
from tdev_models.models import TABLES

DAYS, SAMPLES = 31, 40
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) // 3600


def seed(store: Settings, writers: int) -> int:
    """One cell for each writer, agent and hour, as so many processes would leave them."""
    dice, cells = random.Random(writers), 0
    for _ in range(writers):
        recorder = Recorder(store)
        for hour in range(START, START + 24 * DAYS):
            for agent in AGENTS[:2]:
                cells += 1
                for _ in range(SAMPLES):
                    value = dice.lognormvariate(0, 1)
                    recorder.add(CellKey(hour, "m", agent, ""), value, error=False, awaited=False)
        for future in recorder.unsettled():
            future.wait()
    return cells


def main() -> None:
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_REGION="us-east-1")
    print(f"{DAYS} days of two agents, {SAMPLES} samples in each writer's cell of each hour")
    print(f"{'writers':>7} {'cells':>7} {'read':>22} {'requests':>9} {'RCU':>9} {'seconds':>8}")
    with Engine.start() as engine:
        for writers in (1, 10, 50):
            store = Settings(
                environment=f"q{writers}", region="us-east-1", endpoint=engine.endpoint
            )
            configure(store)
            for model in TABLES:
                model.create_table()
            cells = seed(store, writers)
            for what, more in (("all", {}), ("one agent", {"agent_name": AGENTS[0]})):
                events: list[RequestEvent] = []
                with settings.use(on_request=events.append):
                    begun = time.perf_counter()
                    asyncio.run(
                        query_metrics(
                            "m",
                            START * 3600,
                            START * 3600 + DAYS * 86400,
                            group_by="day",
                            percentiles=(50, 95, 99),
                            **more,
                        )
                    )
                    took = time.perf_counter() - begun
                units = sum(event.units for event in events)
                print(
                    f"{writers:7} {cells:7,} {what:>22} {len(events):9} {units:9,.0f} {took:8.2f}"
                )


if __name__ == "__main__":
    main()
