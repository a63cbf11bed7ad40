"""Rows filled beside live writers, by a command that is killed and run again.

`python -m tests.chaos.backfill [ROWS [KILLS]]` (100000 10): `tdev migrate backfill` gives sessions
of an earlier release their `due_at` on an engine in memory, while 4 writers end such sessions. In
the end every row must have its `due_at`, and what its last writer wrote.

The exit status is 1 where something was wrong.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tdev_models import aws, settings
from tdev_models.cli.engine import Engine
from tdev_models.migrations import declared, environments
from tdev_models.migrations.apply import apply_all
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.live import Live, read
from tdev_models.migrations.row_checks import parts, scan
from tdev_models.settings import Settings
from tests import raw

SESSIONS, WRITERS = "pipeline-sessions", 4
CREATED, WRITTEN = 1_700_000_000, 1_800_000_000


class Outcome(NamedTuple):
    """What `killed_beside_writers` did: kills, live writes, and the seconds it took."""

    kills: int
    writes: int
    seconds: float


def make_rows(store: Settings, rows: int) -> None:
    """Make sessions that an earlier release left FAILED."""
    at = {"N": str(CREATED)}
    values = {"status": {"S": "FAILED"}, "created_at": at, "last_updated": at}
    for first in range(0, rows, 25):
        numbers = range(first, min(first + 25, rows))
        items = [{"session_id": {"S": f"s{number}"}, **values} for number in numbers]
        requests = [{"PutRequest": {"Item": item}} for item in items]
        aws.call(store, "BatchWriteItem", {"RequestItems": {store.table_name(SESSIONS): requests}})


class Writers:
    """Threads that end sessions, each its own; the last write of each is in `written`."""

    def __init__(self, store: Settings, rows: int, pause: float) -> None:
        self._store, self._rows, self._pause = store, rows, pause
        self._stop, self.written, self.writes = threading.Event(), dict[str, int](), count()
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(WRITERS)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int) -> None:
        for at in count(WRITTEN):
            if self._stop.wait(self._pause):
                return
            session = f"s{random.randrange(number, self._rows, WRITERS)}"
            values: dict[str, Any] = {"status": {"S": "COMPLETED"}, "last_updated": {"N": str(at)}}
            raw.put_attribute(self._store, SESSIONS, session, **values)
            self.written[session] = at
            next(self.writes)


def unfilled(store: Settings) -> list[str]:
    """Return the rows without what the command sets, and the writers never do, in its order."""
    table = next(
        one for one in declared.tables(store, environments.load("dev")) if one.short == SESSIONS
    )
    calls = Calls(store)
    live = read(calls, table, Live(), ("table",))
    total = parts(live)
    return [
        row["session_id"]["S"]
        for part in range(total)
        for rows, _ in scan(calls, table, live, (part, total))
        for row in rows
        if "due_at" not in row
    ]


def is_filled(store: Settings, session: str) -> bool:
    """Return whether the command has filled a row: one read, however many rows there are."""
    return "due_at" in (raw.item(store, SESSIONS, session) or {})


def killed_beside_writers(store: Settings, rows: int, kills: int, pause: float = 0.01) -> Outcome:
    """Fill rows beside 4 writers, kill the command, run it again; check every row in the end.

    Each kill is of a run that has filled some rows; together these fill at most about half.
    """
    make_rows(store, rows)
    command = [sys.executable, "-m", "migrations", "backfill", SESSIONS]
    command += ["tdev_models.migrations.backfills:session_due_at", "--yes"]
    command += ["--env", store.environment, "--set", "like=dev"]
    environment = {**os.environ, "AWS_ENDPOINT_URL": str(store.endpoint)}
    begun, killed = time.monotonic(), 0
    with Writers(store, rows, pause) as writers:
        while True:
            kills_more = killed < kills
            # The run is killed when it has come so far: its writes up to this row are stored.
            far = unfilled(store)[random.randrange(1, rows // (2 * kills))] if kills_more else ""
            process = subprocess.Popen(
                command, cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.PIPE
            )
            while kills_more and process.poll() is None and not is_filled(store, far):
                time.sleep(0.05)
            if kills_more and process.poll() is None:
                process.kill()
                process.communicate()
                killed += 1
                continue
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            break
    seconds = time.monotonic() - begun
    found = {row["session_id"]["S"]: row for row in raw.everything(store, SESSIONS)}
    assert len(found) == rows
    for session, row in found.items():
        last = writers.written.get(session)
        assert row["status"]["S"] == ("COMPLETED" if last else "FAILED"), row
        assert float(row["last_updated"]["N"]) == (last or CREATED), row
        assert float(row["due_at"]["N"]) >= CREATED, row
    return Outcome(killed, next(writers.writes), seconds)


def main(rows: int = 100_000, kills: int = 10) -> None:
    """Run it on an engine of its own and print what was seen."""
    with Engine.start() as engine:
        os.environ.update(engine.environ)
        store = settings.current()
        apply_all(store)
        outcome = killed_beside_writers(store, rows, kills)
    print(
        f"{rows} rows filled in {outcome.seconds:.0f} s on {engine.name}, killed {outcome.kills}"
        f" times, beside {WRITERS} writers: every row has its due_at, and none of"
        f" {outcome.writes} live writes is lost"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
