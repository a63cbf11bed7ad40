"""How long each page takes beside a month of sessions, and what it reads.

Argument: how many sessions the month has. The first of each page is printed, and the best of five.
"""

from __future__ import annotations

import sys
import time

from starlette.testclient import TestClient

from benchmarks.seeded_month import seed
from benchmarks.tables import fresh_tables
from tdev_models import sync, web


def main() -> None:
    with fresh_tables() as events:
        seed(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
        (failed,) = sync.list_pipeline_sessions(status="FAILED", limit=1)
        paths = [
            *("/", "/?show=all", "/?user_id=u001", f"/session?session_id={failed.session_id}"),
            *("/failures", "/agents", "/usage", "/workers", "/projects?user_id=u001"),
            "/comparison?agent_name=search&a=old&b=new",
        ]
        with TestClient(web.app(), base_url="http://localhost") as client:
            print(f"{'':45} first ms  best ms  requests  read units     kB")
            for path in paths:
                events.clear()
                times, size = [], 0
                for _ in range(5):
                    begun = time.perf_counter()
                    answer = client.get(path)
                    times.append(1000 * (time.perf_counter() - begun))
                    assert answer.status_code == 200, answer.text
                    size = len(answer.content)
                requests, units = len(events) / 5, sum(event.units for event in events) / 5
                figures = f"{times[0]:9.0f}{min(times):9.0f}{requests:10.0f}{units:12.1f}"
                print(f"{path:45}{figures}{size / 1000:7.0f}")


if __name__ == "__main__":
    main()
