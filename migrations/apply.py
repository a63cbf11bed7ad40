"""Applying a plan: one step, wait, describe again, go on. The live tables are the only memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from tdev_models.errors import AccessDenied, StoreError, TdevError
from tdev_models.migrations import declared, environments, row_checks
from tdev_models.migrations.calls import Absent, Busy, Calls, InProgress
from tdev_models.migrations.declared import Table
from tdev_models.migrations.diff import Change, diff
from tdev_models.migrations.live import PARTS, Live, read
from tdev_models.migrations.steps import next_step
from tdev_models.settings import Settings

_FAILURES = 3


class Refused(TdevError):
    """A change needs `--allow`, or is impossible; nothing was sent for it."""


@dataclass(slots=True)
class Planned:
    """One table: what is declared, what is, and what to change."""

    table: Table
    live: Live
    changes: list[Change]


def plan(
    calls: Calls, tables: Sequence[Table], allowed: Collection[str] = (), whole: bool = False
) -> list[Planned]:
    """Read every table and return what to change; sends no mutation.

    Args:
        calls: sends the calls.
        tables: what is declared.
        allowed: destructive changes that are allowed by name.
        whole: check every row against new indexes and a new TTL, not the first megabyte only.

    Raises:
        TdevError: a table could not be read; a part that may not be read is only unknown.
    """
    snapshots = [(table, read(calls, table, Live())) for table in tables]
    return [
        Planned(
            table,
            live,
            [
                _checked(calls, table, live, change, allowed, whole)
                for change in diff(table, live, allowed)
            ],
        )
        for table, live in snapshots
    ]


def undeclared(calls: Calls, tables: Sequence[Table]) -> list[Change]:
    """Return a line for each table of this environment that no model declares; it is left alone."""
    prefix = tables[0].name.removesuffix(tables[0].short)
    names: list[str] = []
    more: dict[str, str] = {}
    while True:
        answer = calls("ListTables", **more)
        names += [name for name in answer["TableNames"] if name.startswith(prefix)]
        if "LastEvaluatedTableName" not in answer:
            break
        more = {"ExclusiveStartTableName": answer["LastEvaluatedTableName"]}
    declared = {table.name for table in tables}
    return [
        Change("=", name.removeprefix(prefix), ("table",), note="not declared, left alone")
        for name in names
        if name not in declared
    ]


def apply_all(settings: Settings) -> int:
    """Create or update the tables of the settings: for tests and demonstrations.

    An environment that is not declared gets the settings of `dev`. Prints and asks nothing; what
    the engine does not know (auto scaling, alarms, backups on most) is left out.

    Returns:
        The number of calls that changed something; 0 when everything was as declared.

    Raises:
        Refused: a change would destroy something.
        TdevError: a call failed.
    """
    name = settings.environment
    like = {} if name in environments.BUILT_IN else {"like": "dev"}
    tables = declared.tables(settings, environments.load(name, None, like))
    calls = Calls(settings)
    return Run(calls).apply(plan(calls, tables, whole=True))


@dataclass(slots=True)
class Run:
    """One run of apply.

    Attributes:
        calls: sends the calls.
        allowed: destructive changes that are allowed by name.
        timeout_seconds: how long the whole run may take.
        on_step: called with a change before each call for it.
        on_wait: called with what is waited for, each time before it is looked at again.
    """

    calls: Calls
    allowed: Collection[str] = ()
    timeout_seconds: float = 3600.0
    on_step: Callable[[Change], None] = lambda change: None
    on_wait: Callable[[Table, Live, str], None] = lambda table, live, what: None
    _started: float = field(default_factory=time.monotonic)

    def apply(self, planned: Sequence[Planned]) -> int:
        """Bring every table to its declared state and return the number of calls sent.

        Safe to run again and at the same time as others: what to do next is always told by the live
        table. Nothing is sent when the plan of any table is refused or a part may not be read.

        Raises:
            Refused: a change is destructive and not allowed by name, or impossible.
            InProgress: the time is over, or DynamoDB takes such a change only later.
            AccessDenied: with the action and the resource.
            TdevError: a call failed, or another run changes the same thing differently.
        """
        for of in planned:
            _stop_if_refused(of.live, of.changes)
        sent, later = 0, []
        for of in planned:
            try:
                sent += self._converge(of)
            except InProgress as error:  # the other tables need not wait for this one's hour
                later.append(str(error))
        if later:
            raise InProgress("; ".join(later))
        return sent

    def _converge(self, planned: Planned) -> int:
        table, live = planned.table, planned.live
        # A table of this run's own making holds no rows that could speak against anything.
        checked = {change.target for change in planned.changes}
        sent: dict[str, float] = {}
        failed: Counter[str] = Counter()
        confirmed: set[declared.Target] = set()
        looked = False
        attempt = 0
        while True:
            self._settle(table, live)
            changes = diff(table, live, self.allowed)
            change = next((change for change in changes if change.pending), None)
            if change and not checked & {change.target, ("keys",)}:
                checked.add(change.target)
                changes.append(_checked(self.calls, table, live, change, self.allowed, True))
            _stop_if_refused(live, changes)
            if change is None:
                if looked:
                    return len(sent)
                # What was never touched was read long ago, and others are at work too.
                looked = True
                read(self.calls, table, live, reversed(PARTS))
                continue
            if change.before is not None and change.target not in confirmed:
                # Another run may have made what this would take away or write over. The table comes
                # last: of an alarm that was seen it then has the index.
                confirmed.add(change.target)
                parts = [part for part in reversed(PARTS) if part in ("table", change.target[0])]
                read(self.calls, table, live, parts)
                continue
            step = next_step(table, live, change)
            name = repr(step)
            attempt += 1
            if name in sent:
                # Not to be seen yet, or undone by another: the one who sees that gives way.
                if time.monotonic() - sent[name] > (1.0 if self.calls.local else 120.0):
                    raise TdevError(
                        f"{table.name}: {' '.join(change.target)} was set to {change.after!r} but"
                        f" reads {change.before!r}: another run changes it too, or the engine"
                        " ignores it"
                    )
                self._pause(table, live, f"{' '.join(change.target)} to take effect", attempt)
            else:
                self.on_step(change)
                try:
                    self.calls(step.operation, **step.request)
                    sent[name] = time.monotonic()
                    attempt = 0
                except (Busy, Absent) as error:
                    self._pause(table, live, str(error), attempt)
                except StoreError as error:
                    # Perhaps another run did it a moment ago: the live table decides, which may
                    # tell it some seconds late.
                    failed[name] += 1
                    if failed[name] > _FAILURES:
                        raise
                    self._pause(table, live, str(error), attempt)
            read(self.calls, table, live, step.touches)

    def _settle(self, table: Table, live: Live) -> None:
        attempt = 0
        while live.busy:
            self._pause(table, live, ", ".join(live.busy), attempt)
            attempt += 1
            read(self.calls, table, live, ("table",))
        while live.later:
            read(self.calls, table, live, live.later)
            if live.later:
                self._pause(table, live, f"DynamoDB to tell of {', '.join(live.later)}", attempt)
                attempt += 1

    def _pause(self, table: Table, live: Live, what: str, attempt: int) -> None:
        if time.monotonic() - self._started > self.timeout_seconds:
            raise InProgress(f"{table.name}: still waiting for {what}; run again to go on")
        self.on_wait(table, live, what)
        self.calls.pause(attempt)


def _checked(
    calls: Calls, table: Table, live: Live, change: Change, allowed: Collection[str], whole: bool
) -> Change:
    """Return the change, refused if the rows speak against it."""
    allowance = f"enable-ttl:{table.short}" if change.target[0] == "ttl" else ""
    if not change.pending or allowance in allowed:
        return change
    found = row_checks.problem(calls, table, live, change, whole)
    if not found:
        return change
    way_out = f"--allow {allowance}" if allowance else "mend or remove these attributes first"
    return replace(change, symbol="!", note=f"{found}; {way_out}")


def _stop_if_refused(live: Live, changes: Sequence[Change]) -> None:
    if live.denied:
        raise AccessDenied("; ".join(live.denied))
    refused = [c for c in changes if c.symbol == "!"]
    if refused:
        raise Refused("; ".join(f"{c.table} {' '.join(c.target)}: {c.note}" for c in refused))
