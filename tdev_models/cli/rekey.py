"""`tdev rekey`: encrypt what is stored under the key in force."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

from tdev_models import settings
from tdev_models.cli.codes import DONE, FAILED, REFUSED
from tdev_models.cli.screen import READS, Screen, agreed, cost, place
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.errors import PayloadDamaged, TdevError, plain
from tdev_models.migrations import declared
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.declared import CAPACITY
from tdev_models.migrations.environments import Environment
from tdev_models.migrations.live import Live, read
from tdev_models.migrations.row_checks import Row, parts, scan
from tdev_models.models import AgentExecution, BaseModel
from tdev_models.results import RequestEvent
from tdev_models.services.reencryption import MODELS, Reencryption

_SAMPLES = 3


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
    events: list[RequestEvent] = []
    screen.print(place())
    with settings.use(on_request=events.append):
        run = _Run(screen, events)
        passes = run.encrypt_all()
        if options.delete_old:
            # One that finds nothing to do proves that no row points at what is deleted.
            while any(one.encrypted for one in passes) and not any(one.failed for one in passes):
                passes = run.encrypt_all()
            if not any(one.failed for one in passes):
                run.delete_old_chunks()
    for sample in (sample for one in passes for sample in one.samples):
        screen.print(f"left as it is: {plain(sample)}")
    screen.print(cost(events))
    return FAILED if any(one.failed for one in passes) else DONE


class _Run:
    def __init__(self, screen: Screen, events: list[RequestEvent]) -> None:
        self._screen, self._events = screen, events
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
        _, writes = live.state.get(CAPACITY, (0, 0))
        total = parts(live)
        for part in range(total):
            written = self._written()
            for rows, pause in scan(calls, table, live, (part, total)):
                for row in rows:
                    done.read += 1
                    yield row
                used = self._written() - written
                time.sleep(max(pause, 2 * used / writes if writes else 0.0))
                written = self._written()

    def _written(self) -> float:
        return sum(event.units for event in self._events if event.operation not in READS)


def _result(work: Callable[[], Awaitable[int]], done: Pass) -> int:
    """Do the work on one row, and return its result; 0 where the row is damaged."""
    try:
        return int(drive(work()))
    except PayloadDamaged as damaged:
        done.failed += 1
        done.sample(str(damaged))
        return 0
