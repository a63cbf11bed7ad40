"""What each screen of `tdev` costs beside a month of sessions: requests and units.

Argument: how many sessions the month has.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time

from benchmarks.seeded_month import seed
from benchmarks.tables import fresh_tables
from tdev_models import cli, sync


def screens() -> list[list[str]]:
    """Return the commands whose cost is printed: of sessions that the month has."""
    (failed,) = sync.list_pipeline_sessions(status="FAILED", limit=1)
    session_id = failed.session_id
    return [
        ["sessions"],
        ["sessions", "--all"],
        ["sessions", "--status", "ACTIVE", "--older-than", "10m"],
        ["sessions", "--user", "u001"],
        ["sessions", "--due"],
        ["show", session_id],
        ["show", session_id, "--tracebacks", "--payloads", "nl_input"],
        ["failures"],
        ["failures", "--since", "2 hours ago", "--each"],
        ["failures", "--agent", "generation", "--since", "7d"],
        ["failures", "--open"],
        ["workers"],
        ["projects", "u001"],
        ["usage"],
        ["agents"],
        ["metrics", "agent_execution_time", "--by", "agent"],
        ["ab", "search", "old", "new"],
        ["doctor"],
    ]


def main() -> None:
    with fresh_tables():
        begun = time.time()
        fates = seed(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
        print(f"{fates} in {time.time() - begun:.0f} s")
        for command in screens():
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                code = cli.main(command)
            said = re.findall(r"^\d+ requests?.*$", printed.getvalue(), re.M)
            print(f"{code}  {' '.join(command):75} {said[-1] if said else ''}", flush=True)


if __name__ == "__main__":
    main()
