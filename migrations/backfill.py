"""Gives stored rows attributes that they lack, beside live writers; run again, it goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from tdev_models.errors import (
    ConditionFailed,
    ConfigurationError,
    InvalidRequest,
    TdevError,
    plain,
)
from tdev_models.migrations.calls import Absent, Busy, Calls, InProgress, Unsupported
from tdev_models.migrations.declared import KEYS, Table
from tdev_models.migrations.live import Live
from tdev_models.migrations.row_checks import Row, pace, parts, scan, shown

Function: TypeAlias = Callable[[Row], Mapping[str, Any] | None]
"""Given a row with typed values, `{"status": {"S": "FAILED"}}`, returns what to set, or None."""


class _Seen(Mapping[str, Mapping[str, Any]]):
    """A row that notes which attributes the function looked at, absent ones too."""

    def __init__(self, row: Row) -> None:
        self._row, self.names = row, set[str]()

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        self.names.add(name)
        return self._row[name]

    def __iter__(self) -> Iterator[str]:
        self.names.update(self._row)
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


def load(name: str) -> Function:
    """Return the function that `module:function` names; modules of this folder count."""
    module, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        loaded: Function = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is loaded
        problem = f"{name!r} is no module:function: {type(error).__name__}: {error}"
        raise InvalidRequest("backfill", problem) from error
    return loaded


PAUSE_SECONDS = 1.0
"""What rows have used is paused once it is more than this: units are taken as evenly as that."""


@dataclass(slots=True)
class Backfill:
    """One run over the rows of a table.

    Attributes:
        calls: sends the calls.
        table: the declared table.
        live: its live state; its `table` part is enough.
        function: says what a row lacks.
        deadline: on the monotonic clock.
        dry_run: count only.
        on_wait: called before each pause, with the table and what was done.
        begun: how many parts of the rows another run has done, and of how many.
        goes_on: the `--rows` with which another run goes on; empty at the end.
        read: how many rows were read.
        filled: how many were changed, or would be.
        failed: how many the function, or DynamoDB, refused.
        samples: some of those, and why some failed.
    """

    calls: Calls
    table: Table
    live: Live
    function: Function
    deadline: float
    dry_run: bool = False
    on_wait: Callable[[Table, Live, str], None] = lambda table, live, reason: None
    begun: tuple[int, int] | None = None
    goes_on: str = ""
    read: int = 0
    filled: int = 0
    failed: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def done(self) -> str:
        """What was done so far, in words."""
        verb = "would be" if self.dry_run else "were"
        return f"{self.read} rows read, {self.filled} {verb} changed, {self.failed} failed"

    def run(self) -> None:
        """Read every row and set what it lacks, at the units that `pace` allows.

        A row is written only if what the function looked at is still as it was; else the function
        is asked again, with the row as it is now. So no live write is lost, and a row that was
        deleted stays deleted. What is filled already is left: after a kill, run it again.

        Raises:
            InProgress: the time is over; the message says how to go on.
            AccessDenied, ConfigurationError, Absent: the rows cannot be read or written.
            TdevError: rows failed, with their number and the keys of some; the others are done.
        """
        first, total = self.begun or (0, parts(self.live))
        for part in range(first, total):
            self.goes_on = f"{self.table.short}:{part}/{total}"
            self._fill_part(part, total)
        self.goes_on = ""
        if self.failed:
            raise TdevError(f"{self.failed} rows failed, such as {'; '.join(self.samples)}")

    def _fill_part(self, part: int, total: int) -> None:
        _, writes = pace(self.calls, self.live)
        for rows, pause in scan(self.calls, self.table, self.live, (part, total)):
            paused = owed = 0.0
            for row in rows:
                self.read += 1
                units = self._fill(row)
                owed += units / writes if writes else 0.0
                if owed > PAUSE_SECONDS:
                    self._pause(owed)
                    paused, owed = paused + owed, 0.0
            self._pause(max(pause - paused, owed))

    def _fill(self, row: Row | None) -> float:
        """Set what a row lacks and return the write units that it took."""
        backoff = self.calls.backoff()
        while row is not None:
            # Of its own, since it may change what it is given: `row` says what DynamoDB holds.
            seen = _Seen(deepcopy(row))
            try:  # the function may raise and return anything; the other rows go on
                sets = {k: v for k, v in (self.function(seen) or {}).items() if row.get(k) != v}
                self._check(sets)
            except Exception as error:
                return self._failed(row, error)
            try:
                return self._write(row, seen.names, sets) if sets else 0.0
            except ConditionFailed as error:
                row = error.item
            except Busy as error:  # perhaps carried out: then the next try has nothing to set
                self._pause(backoff.pause_after(error) or 0.0)
            except (Absent, ConfigurationError, InProgress, Unsupported):
                raise
            except TdevError as error:
                return self._failed(row, error)
        return 0.0

    def _failed(self, row: Row, error: Exception) -> float:
        self.failed += 1
        self._sample(row, f"{type(error).__name__}: {error}")
        return 0.0

    def _check(self, sets: Mapping[str, Any]) -> None:
        """Raise if an attribute cannot be set so: to send that would look like no answer."""
        if wrong := sets.keys() & {key.name for key in self.live.state[KEYS]}:
            raise ValueError(f"a key cannot be set: {', '.join(wrong)}")
        for name, value in sets.items():
            if not isinstance(value, dict) or len(value) != 1:
                raise ValueError(f"{name} is to be a typed value such as {{'S': 'x'}}: {value!r}")
            json.dumps(value, default=_of_bytes)

    def _write(self, row: Row, seen: set[str], sets: Mapping[str, Any]) -> float:
        keys = [key.name for key in self.live.state[KEYS]]
        if self.dry_run:
            self.filled += 1
            self._sample(row, json.dumps(sets, default=str))
            return 0.0
        names = {name: f"#{n}" for n, name in enumerate(sorted({*keys, *seen, *sets}))}
        conditions, values = [], {}
        for name, placeholder in names.items():
            if name in row:
                values[f":{placeholder[1:]}"] = row[name]
                conditions.append(f"{placeholder} = :{placeholder[1:]}")
            else:
                conditions.append(f"attribute_not_exists({placeholder})")
        values |= {f":new{names[name][1:]}": value for name, value in sets.items()}
        answer = self.calls(
            "UpdateItem",
            TableName=self.table.name,
            Key={key: row[key] for key in keys},
            UpdateExpression="SET "
            + ", ".join(f"{names[name]} = :new{names[name][1:]}" for name in sets),
            ConditionExpression=" AND ".join(conditions),
            ExpressionAttributeNames={value: name for name, value in names.items()},
            ExpressionAttributeValues=values,
            ReturnConsumedCapacity="TOTAL",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        self.filled += 1
        return float(answer.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0))

    def _sample(self, row: Row, text: str) -> None:
        if len(self.samples) < 3:
            keys = [key.name for key in self.live.state[KEYS]]
            self.samples.append(f"{shown(row, keys)}: {plain(text)}")

    def _pause(self, seconds: float) -> None:
        if time.monotonic() + seconds >= self.deadline:
            done = "; ".join([self.done, *self.samples])
            way = f"run again with --rows {self.goes_on} to go on there"
            raise InProgress(f"the time is over: {done}; {way}")
        self.on_wait(self.table, self.live, self.done)
        time.sleep(seconds)


def _of_bytes(value: object) -> str:
    """Stand for bytes, of which botocore makes text; refuse what has no form at all."""
    if isinstance(value, bytes | bytearray):
        return ""
    raise TypeError(f"{value!r} has no form in DynamoDB")
