"""`tdev rekey`: encrypt what is stored under the key in force."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from math import inf

from tdev_models import settings
from tdev_models.cli.codes import DONE, FAILED, REFUSED
from tdev_models.cli.screen import Cost, Screen, agreed, place
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.errors import PayloadDamaged, TdevError, plain
from tdev_models.migrations import declared
from tdev_models.migrations.backfill import PAUSE_SECONDS
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import CAPACITY
from tdev_models.migrations.environments import Environment
from tdev_models.migrations.live import Live, read
from tdev_models.migrations.row_checks import Row, parts, scan
from tdev_models.models import AgentExecution, BaseModel
from tdev_models.security.fields import UnknownKey
from tdev_models.services.reencryption import MODELS, Reencryption

_SAMPLES = 3
# While some worker lacks the key each pass finds something.
_MORE_PASSES = 5


@dataclass
class Pass:
    """One pass over the rows of one table, and what it did."""

    table: str
    read: int = 0
    encrypted: int = 0
    deleted: int = 0
    failed: int = 0
    samples: list[str] = field(default_factory=list)

    def sample(self, text: str) -> None:
        """Keep one of what is left as it is, as an example."""
        if len(self.samples) < _SAMPLES and text not in self.samples:
            self.samples.append(text)

    def __str__(self) -> str:
        names = ("read", "encrypted", "deleted", "failed")
        return f"{self.table}: {', '.join(f'{getattr(self, name)} {name}' for name in names)}"


def rekey(options: argparse.Namespace) -> int:
    """Encrypt every row; with `--delete-old` then delete what no row points at any more."""
    screen, chosen = Screen(options.json), settings.current()
    Reencryption.of(chosen)  # raises, before anything is asked
    question = f"Encrypt every row of {chosen.table_name('*')} under {chosen.kms_key}"
    if options.delete_old:
        question += (
            ", and delete the chunks that are not; every worker must have this key and these fields"
        )
    if not agreed(f"{question}?", options.yes):
        sys.stderr.write("Nothing was done.\n")
        return REFUSED
    cost = Cost()
    screen.print(place())
    with settings.use(on_request=cost):
        run = _Run(screen, cost)
        passes = run.encrypt_all()
        if options.delete_old:
            # One that finds nothing to do proves that no row points at what is deleted.
            more = _MORE_PASSES
            while more and _have(passes, "encrypted") and not _have(passes, "failed"):
                passes, more = run.encrypt_all(), more - 1
            if not _have(passes, "failed"):
                if _have(passes, "encrypted"):
                    raise TdevError(
                        "nothing was deleted, since rows are still written in clear or under "
                        "another key; give every worker this key and these fields, and run it again"
                    )
                run.delete_old_chunks()
    for sample in (sample for one in passes for sample in one.samples):
        screen.print(f"left as it is: {plain(sample)}")
    screen.print(str(cost))
    return FAILED if _have(passes, "failed") else DONE


def _have(passes: list[Pass], what: str) -> bool:
    return any(getattr(one, what) for one in passes)


class _Run:
    def __init__(self, screen: Screen, cost: Cost) -> None:
        self._screen, self._cost = screen, cost
        self._work = Reencryption.of(settings.current())

    def encrypt_all(self) -> list[Pass]:
        return [self._encrypt(model) for model in MODELS]

    def _encrypt(self, model: type[BaseModel]) -> Pass:
        done = Pass(str(model.Meta.table))  # type: ignore[attr-defined]
        for row in self._rows(done):
            work = partial(self._work.encrypt_row, model, row, done.sample)
            done.encrypted += _result(work, done)
        return self._said(done)

    def delete_old_chunks(self) -> None:
        done = Pass(AgentExecution.Meta.table)
        for row in self._rows(done):
            done.deleted += _result(partial(self._work.delete_old_chunks, row), done)
        self._said(done)

    def _said(self, done: Pass) -> Pass:
        self._screen.line(asdict(done))
        self._screen.print(str(done))
        return done

    def _rows(self, done: Pass) -> Iterator[Row]:
        """Yield the rows of a table, at no more than half of its units."""
        chosen = settings.current()
        calls = Calls(chosen)
        table = next(
            one for one in declared.tables(chosen, Environment()) if one.short == done.table
        )
        live = read(calls, table, Live(), ("table",))
        if not live.description:
            raise TdevError(f"table {table.name} is not there, or may not be described")
        total = parts(live)
        for part in range(total):
            for rows, pause in scan(calls, table, live, (part, total)):
                seconds, paused = self._seconds_used(live), 0.0
                for row in rows:
                    done.read += 1
                    yield row
                    owed = pause + seconds() - paused
                    if owed > PAUSE_SECONDS:
                        time.sleep(owed)
                        paused += owed
                time.sleep(max(0.0, pause + seconds() - paused))

    def _seconds_used(self, live: Live) -> Callable[[], float]:
        """Return what tells how long half of a table's units make what is used from now on."""
        reads, writes = live.state.get(CAPACITY, (inf, inf))
        cost, read, written = self._cost, self._cost.reads, self._cost.writes
        return lambda: 2 * max((cost.reads - read) / reads, (cost.writes - written) / writes)


def _result(work: Callable[[], Awaitable[int]], done: Pass) -> int:
    """Do the work on one row, and return its result; 0 where the row cannot be read."""
    try:
        return int(drive(work()))
    except (PayloadDamaged, UnknownKey) as error:
        done.failed += 1
        done.sample(str(error))
        return 0
