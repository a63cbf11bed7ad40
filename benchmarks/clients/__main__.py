"""Measures all clients, in turns; `make bench` makes their environments first.

`python -m benchmarks.clients [ROUNDS SECONDS]` prints tables and writes docs/performance: JSON,
plots, and the tables of docs/performance.md. More rounds and longer ones measure better.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.clients import items, report
from benchmarks.clients.processes import (
    CLIENTS,
    OURS,
    ROOT,
    in_flight,
    interleaved,
    starts,
    stub,
    versions,
)
from benchmarks.clients.tdev_models_client import operations
from benchmarks.tables import fresh_tables
from benchmarks.tls import certificate
from tdev_models import AGENTS, settings, sync

REQUESTS = ("get", "update", "query", "transaction")
SERVICES = ("get_session", "save", "list", "update_execution", "record_metric", "track")
DOCUMENT = ROOT / "docs" / "performance.md"


def services(rounds: int, seconds: float) -> dict[str, Any]:
    """Measure the services on a local engine, and count what a run of nine agents sends."""
    own = [one for one in CLIENTS if one.module == OURS and one.variant != "botocore"]
    cases = [*product(("get", *SERVICES), (1, 32))]
    with fresh_tables() as events:
        endpoint = str(settings.current().endpoint)
        for number in range(items.SEEDS):
            sync.save_pipeline_session(session_id=f"seed-{number}", status="ACTIVE")
        found = interleaved(endpoint, own, cases, rounds, seconds)
        operations(endpoint, "blocking")
        settings.configure(on_request=events.append, automatic_metrics=False)
        events.clear()
        with sync.track_session("counted", user_id="u") as session:
            for name in AGENTS:
                with session.agent(name, input_data={"request": "y" * 200}) as run:
                    run.output = {"files": ["z" * 300]}
        writes = [one for one in events if one.operation in ("UpdateItem", "TransactWriteItems")]
        cost = {"requests": len(events), "units": sum(one.units for one in writes)}
    return {"services": found, "pipeline": cost, "agents": len(AGENTS)}


def main(rounds: int = 5, seconds: float = 0.3) -> None:
    everything: dict[str, Any] = {"versions": versions(CLIENTS), "rounds": rounds}
    with stub() as endpoint:
        cases = [*product(REQUESTS, (1, 32, 256))]
        everything["plain"] = interleaved(endpoint, CLIENTS, cases, rounds, seconds)
        everything["starts"] = starts(endpoint, CLIENTS, rounds)
    with tempfile.TemporaryDirectory() as folder:
        tls = certificate(Path(folder))
        with stub(tls=tls[1:]) as endpoint:
            cases = [*product(REQUESTS, (32,))]
            everything["tls"] = interleaved(endpoint, CLIENTS, cases, rounds, seconds, tls[0])
    with stub(0.004) as endpoint:
        cases = [("get", 32), ("get", 256)]
        everything["latency"] = interleaved(endpoint, CLIENTS, cases, rounds, seconds)
    with stub(0.5) as endpoint:
        everything["memory"] = in_flight(endpoint, CLIENTS, 1000, min(rounds, 3))
    everything |= services(rounds, seconds)
    folder_of_figures = DOCUMENT.with_suffix("")
    folder_of_figures.mkdir(exist_ok=True)
    (folder_of_figures / "figures.json").write_text(json.dumps(everything) + "\n")
    for name, text in report.sections(everything).items():
        print(f"{name}\n{text}")
    report.write(everything, DOCUMENT)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
