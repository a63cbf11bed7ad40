"""Metrics on their way into the table: cells with one writer each, absolute totals, batches.

A cell is one item that this process alone writes, with the totals of all its samples so far::

    samples  1 2 3 4 5 6 7 8        calls made during a write share the next one
    write    [1]  seq 1, count 1
                [2 3 4 5]  seq 2, count 5
                        [6 7 8]  seq 3, count 8

Each write requires a smaller `seq`, so it may arrive twice, or late, and counts once. A write
without an answer may have arrived or not: its calls fail, its cell is written no more (what was
acknowledged is in it either way), and the samples that were not part of it go to a fresh cell.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections import OrderedDict
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import ClassVar, NamedTuple

from pynamodb.expressions.condition import Condition

from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.expressions import set_fields
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.errors import ConditionFailed, Conflict, TdevError, Throttled, logged
from tdev_models.forks import after_fork_in_child
from tdev_models.metrics.totals import Totals, to_item
from tdev_models.models import Metric
from tdev_models.settings import Settings

_log = logging.getLogger(__name__)

_THREADS = 8
_IDLE_SECONDS = 1.0
_MOST_CELLS_TRIED = 3
_MOST_CELLS = 10_000
_MOST_QUIET = 10_000
_MOST_RECORDERS = 64
_HOURS_KEPT = 3  # a cell is kept for its own hour and for two more
_EXIT_SECONDS = 5.0

_writing: ContextVar[bool] = ContextVar("tdev_writes_metrics", default=False)


class CellKey(NamedTuple):
    """What the samples of a cell have in common; `hour` counts from the epoch, UTC."""

    hour: int
    metric_name: str
    agent_name: str
    dimension: str


class _Batch:
    """Samples that one write adds to a cell."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.errors = self.dropped = 0
        self.awaited = False
        self.future = SharedFuture()


class _WriterCell:
    """One item that this process writes; `totals` are those of its last acknowledged write."""

    def __init__(self, key: CellKey) -> None:
        moment = datetime.fromtimestamp(key.hour * 3600, UTC)
        self.key, self.date = key, moment.date().isoformat()
        name, agent, dimension = key.metric_name, key.agent_name, key.dimension
        self.name = f"{name}#{agent}#{moment:%H}#{dimension}#{uuid.uuid4().hex}"
        self.seq, self.totals = 0, Totals()
        self.pending: _Batch | None = None
        self.busy = False  # in the queue, or being written


class Recorder:
    """The cells of one process and its settings, and the threads that write them.

    Awaitable and blocking calls share it: fewer writers are fewer items to read.
    """

    _open: ClassVar[dict[Settings, Recorder]] = {}

    def __init__(self, settings: Settings) -> None:
        self._client = BlockingClient.for_settings(settings)
        self._cells: dict[CellKey, _WriterCell] = {}
        # Cells that wait to be written, in their order: those that somebody awaits, and the others.
        self._awaited: OrderedDict[_WriterCell, None] = OrderedDict()
        self._quiet: OrderedDict[_WriterCell, None] = OrderedDict()
        self._unsettled: set[SharedFuture] = set()
        self._work = threading.Condition(threading.Lock())
        self._threads = self._idle = self._swept = 0
        self._all_busy_until = 0.0

    @classmethod
    def for_settings(cls, settings: Settings) -> Recorder:
        """Return this process's recorder of these settings; never keep it, a fork makes others."""
        recorder = cls._open.get(settings)
        if recorder is None:
            if len(cls._open) >= _MOST_RECORDERS:
                for key, idle in [*cls._open.items()]:
                    if not idle.unsettled():
                        cls._open.pop(key, None)
            recorder = cls._open.setdefault(settings, cls(settings))
        return recorder

    @classmethod
    def all(cls) -> list[Recorder]:
        """Return every recorder of this process."""
        return [*cls._open.values()]

    def add(self, key: CellKey, value: float, error: bool, *, awaited: bool) -> SharedFuture:
        """Add a sample; the future is settled once the sample is durable, or was lost.

        The package's own metrics are not awaited: they are written after those that are, and when
        the table does not keep up, they are dropped while 10,000 samples of the same cell wait.

        Raises:
            Throttled: 10,000 cells wait to be written, and nobody awaits this sample.
            TdevError: called from within a write of metrics (by a hook), which would wait for
                itself.
        """
        check_not_writing("record")
        with self._work:
            cell = self._cells.get(key) or self._opened(key, awaited)
            batch = cell.pending
            if batch is None:
                batch = cell.pending = _Batch()
                self._unsettled.add(batch.future)
            if awaited or len(batch.values) < _MOST_QUIET:
                batch.values.append(value)
                batch.errors += error
            else:
                batch.dropped += 1
            batch.awaited |= awaited
            if not cell.busy:
                self._enqueue(cell)
                self._call_writer()
            elif awaited and cell in self._quiet:
                del self._quiet[cell]
                self._awaited[cell] = None
        if not self._threads:  # none can be started while the interpreter ends
            self._drain()
        return batch.future

    def unsettled(self) -> list[SharedFuture]:
        """Return the futures of what is not written yet."""
        with self._work:
            return [*self._unsettled]

    def _opened(self, key: CellKey, awaited: bool) -> _WriterCell:
        hour, now = int(self._client.now() // 3600), time.monotonic()
        full = len(self._cells) >= _MOST_CELLS
        if hour != self._swept or (full and now >= self._all_busy_until):
            self._swept = hour
            self._cells = {
                key: cell
                for key, cell in self._cells.items()
                if cell.busy or (hour < key.hour + _HOURS_KEPT and not full)
            }
            full = len(self._cells) >= _MOST_CELLS
            if full:  # for a second: looking through all cells takes long
                self._all_busy_until = now + 1
        if full and not awaited:
            raise Throttled(f"{len(self._cells)} cells wait to be written")
        self._cells[key] = cell = _WriterCell(key)
        return cell

    def _enqueue(self, cell: _WriterCell) -> None:
        assert cell.pending is not None
        cell.busy = True
        (self._awaited if cell.pending.awaited else self._quiet)[cell] = None

    def _call_writer(self) -> None:
        self._work.notify()
        waiting = len(self._awaited) + len(self._quiet)
        if waiting > self._idle and self._threads < _THREADS:
            with suppress(RuntimeError):
                threading.Thread(target=self._serve, name="tdev-metrics", daemon=True).start()
                self._threads += 1

    def _serve(self) -> None:
        while True:
            self._drain()
            with self._work:
                self._idle += 1
                has_work = self._work.wait_for(lambda: self._awaited or self._quiet, _IDLE_SECONDS)
                self._idle -= 1
                if not has_work:
                    self._threads -= 1
                    return

    def _drain(self) -> None:
        while (taken := self._take()) is not None:
            drive(self._flush(*taken))

    def _take(self) -> tuple[_WriterCell, _Batch] | None:
        """Return the next cell and what is to be added to it, or None."""
        with self._work:
            if not (cells := self._awaited or self._quiet):
                return None
            cell, _ = cells.popitem(last=False)
            batch, cell.pending = cell.pending, None
        assert batch is not None  # of a cell in the queue
        return cell, batch

    async def _flush(self, cell: _WriterCell, batch: _Batch) -> None:
        error: BaseException | None = None
        before = _writing.set(True)
        try:
            written = await self._written(cell, batch)
        except BaseException as raised:  # also an error of a hook: callers must not wait for ever
            error, written = raised, _WriterCell(cell.key)
        with self._work:
            if written is not cell:
                written.pending = cell.pending
                if self._cells.get(cell.key) is cell:
                    self._cells[cell.key] = written
            written.busy = written.pending is not None
            if written.busy:
                self._enqueue(written)  # this thread looks there next
        lost = batch.dropped + (0 if error is None or batch.awaited else len(batch.values))
        if lost:
            with suppress(BaseException):  # of a log handler: this thread goes on
                why = "late" if error is None else logged(error)
                _log.warning("%d samples of %s lost: %s", lost, cell.key.metric_name, why)
        _writing.reset(before)  # only now: a log handler that records would wait for this thread
        # Last: who waits for it (`flush_metrics`) finds the loss in the log.
        with self._work:
            self._unsettled.discard(batch.future)
        batch.future.settle(error)

    async def _written(self, cell: _WriterCell, batch: _Batch) -> _WriterCell:
        """Write a cell with a batch, and return the cell that has it now."""
        for _ in range(_MOST_CELLS_TRIED):
            totals = Totals.of(batch.values, batch.errors)
            totals.add(cell.totals)
            item = to_item(cell.date, cell.name, cell.seq + 1, totals)
            try:
                await self._send(item)
            except ConditionFailed as refused:
                stored = self._client.metrics.load(refused.item)
                if stored is None or stored.seq != item.seq:
                    # Somebody else wrote this cell, without this batch: a fresh cell takes it.
                    cell = _WriterCell(cell.key)
                    continue
            cell.seq, cell.totals = cell.seq + 1, totals
            return cell
        raise Conflict(f"cell {cell.name}: others wrote {_MOST_CELLS_TRIED} cells of this process")

    async def _send(self, item: Metric) -> None:
        values = dict(item.attribute_values)
        key = values.pop("date"), values.pop("cell")
        condition: Condition = (
            Metric.seq.does_not_exist() if item.seq == 1 else Metric.seq < item.seq
        )
        table = self._client.metrics
        await self._client.sender.send(
            *table.requests.update(*key, actions=set_fields(Metric, values), condition=condition)
        )


def check_not_writing(what: str) -> None:
    """Raise TdevError where a write of metrics calls this, by a hook: it would wait for itself."""
    if _writing.get():
        raise TdevError(f"a write of metrics cannot {what} metrics")


def _at_exit() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    for recorder in Recorder.all():
        for future in recorder.unsettled():
            if not future.wait(max(0.0, deadline - time.monotonic())):
                _log.warning("metrics not written within %s s of the exit", _EXIT_SECONDS)
                return


atexit.register(_at_exit)
# A child of a fork has cells of its own: two writers of one cell would lose samples.
after_fork_in_child(Recorder._open.clear)
