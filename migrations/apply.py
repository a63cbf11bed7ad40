"""Plans and applies: one step, wait, read the live state, next step. Nothing else is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from tdev_models.errors import AccessDenied, StoreError, TdevError
from tdev_models.migrations import declared, environments, row_checks
from tdev_models.migrations.calls import (
    RUN_SECONDS,
    Absent,
    Busy,
    Calls,
    InProgress,
    NotYet,
)
from tdev_models.migrations.declared import KEYS, TTL, Property, Table
from tdev_models.migrations.diff import Change, diff
from tdev_models.migrations.live import PARTS, Live, read
from tdev_models.migrations.steps import Step, next_step
from tdev_models.retry import Backoff
from tdev_models.settings import Settings


class Refused(TdevError):
    """A change needs `--allow`, or is impossible; no call was sent for it."""


@dataclass(slots=True)
class Planned:
    """One table: its declaration, its live state, and the changes between them."""

    table: Table
    live: Live
    changes: list[Change]


def plan(
    calls: Calls, tables: Sequence[Table], allowed: Collection[str] = (), whole: bool = False
) -> list[Planned]:
    """Read every table and return what to change; changes nothing.

    Args:
        calls: sends the calls.
        tables: the declared tables.
        allowed: destructive changes that are allowed by name.
        whole: check every row against new indexes and a new TTL, not the first megabyte only.

    Raises:
        TdevError: a table could not be read. A part that the role may not read raises nothing: it
            is unknown, and named in the plan.
    """
    snapshots = [(table, read(calls, table, Live())) for table in tables]
    return [
        Planned(
            table,
            live,
            [
                _checked_against_rows(calls, table, live, change, allowed, whole)
                for change in diff(table, live, allowed)
            ],
        )
        for table, live in snapshots
    ]


def undeclared(calls: Calls, tables: Sequence[Table]) -> list[Change]:
    """Return a line for each table of this environment that no model declares."""
    prefix = tables[0].name.removesuffix(tables[0].short)
    names: list[str] = []
    more: dict[str, str] = {}
    while True:
        answer = calls("ListTables", **more)
        names += [name for name in answer["TableNames"] if name.startswith(prefix)]
        if "LastEvaluatedTableName" not in answer:
            break
        more = {"ExclusiveStartTableName": answer["LastEvaluatedTableName"]}
    known = {table.name for table in tables}
    return [
        Change("=", name.removeprefix(prefix), Property("table"), note="not declared, left alone")
        for name in names
        if name not in known
    ]


def apply_all(settings: Settings) -> int:
    """Create or update the tables of the settings: for tests and demonstrations.

    An environment that is not built in is like `dev`. Nothing is printed or asked, and what the
    engine does not know (most know no auto scaling, alarms and backups) is left out.

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
        on_step: called with the change before each call that makes it.
        on_wait: called before each pause, with the table and what is waited for.
    """

    calls: Calls
    allowed: Collection[str] = ()
    timeout_seconds: float = RUN_SECONDS
    on_step: Callable[[Change], None] = lambda change: None
    on_wait: Callable[[Table, Live, str], None] = lambda table, live, reason: None
    _started: float = field(default_factory=time.monotonic)

    def apply(self, planned: Sequence[Planned]) -> int:
        """Bring every table to its declared state and return the number of calls sent.

        Safe to run again and at the same time as other runs: every next step is chosen by the live
        state. Nothing is changed when any table has a refused change or a part that the role may
        not read.

        Raises:
            Refused: a change is destructive and not allowed by name, or impossible.
            InProgress: the time is over, or DynamoDB accepts a change only later.
            AccessDenied: with the action and the resource.
            TdevError: a call failed, or another run sets a property to another value.
        """
        for plan_of_table in planned:
            _stop_if_refused(plan_of_table.live, plan_of_table.changes)
        deadline = self._started + self.timeout_seconds
        sent, unfinished = 0, []
        for plan_of_table in planned:
            try:
                sent += _Convergence(self, plan_of_table, deadline).finish()
            except InProgress as error:  # the other tables do not wait for this one
                unfinished.append(str(error))
        if unfinished:
            raise InProgress("; ".join(unfinished))
        return sent


class _Convergence:
    """The way of one table to its declared state, until the run's deadline."""

    def __init__(self, run: Run, planned: Planned, deadline: float) -> None:
        self._run, self._calls, self._deadline = run, run.calls, deadline
        self._table, self._live = planned.table, planned.live
        # The plan checked these against the rows; and a table that this run creates has no rows.
        self._checked = {change.target for change in planned.changes}
        self._confirmed: set[Property | None] = set()
        self._sent: set[str] = set()
        self._not_visible: dict[str, Backoff] = {}
        self._rejected: dict[str, Backoff] = {}
        self._retries = run.calls.backoff()

    def finish(self) -> int:
        """Make every change and return the number of calls sent."""
        while change := self._next_change():
            step = next_step(self._table, self._live, change)
            if repr(step) in self._sent:
                self._wait_for_effect(step, change)
            else:
                self._send(step, change)
            read(self._calls, self._table, self._live, step.touches)
        return len(self._sent)

    def _next_change(self) -> Change | None:
        """Return the next change, or None when the live state is as declared."""
        table, live, allowed = self._table, self._live, self._run.allowed
        while True:
            self._settle()
            changes = diff(table, live, allowed)
            change = next((change for change in changes if change.pending), None)
            if change and not self._checked & {change.target, KEYS}:
                self._checked.add(change.target)
                changes.append(
                    _checked_against_rows(self._calls, table, live, change, allowed, True)
                )
            _stop_if_refused(live, changes)
            target = change.target if change else None
            if target in self._confirmed or (change and change.before is None):
                return change
            # The live state may be hours old, and another run may have changed what would be
            # removed, overwritten or reported as done. The table is read last, so that it shows
            # the index of every alarm that was read.
            self._confirmed.add(target)
            parts = ("table", target.kind) if target else PARTS
            read(self._calls, table, live, [part for part in reversed(PARTS) if part in parts])

    def _send(self, step: Step, change: Change) -> None:
        self._run.on_step(change)
        try:
            self._calls(step.operation, **step.request)
            self._sent.add(repr(step))
            self._retries = self._calls.backoff()
        except (Busy, Absent) as error:
            self._pause(self._retries, error)
        except StoreError as error:
            # Another run may have made the change; the live state may show it late.
            backoff = self._calls.backoff(self._calls.limits.rejected)
            if not self._pause(self._rejected.setdefault(repr(step), backoff), error):
                raise

    def _wait_for_effect(self, step: Step, change: Change) -> None:
        backoff = self._calls.backoff(self._calls.limits.visible)
        effect = Busy(f"{change.target} to take effect")
        if not self._pause(self._not_visible.setdefault(repr(step), backoff), effect):
            raise TdevError(
                f"{self._table.name}: {change.target} was set to {change.after!r} but reads"
                f" {change.before!r}: another run changes it too, or the engine ignores it"
            )

    def _settle(self) -> None:
        """Wait until DynamoDB has finished what it is doing, and reports every part."""
        live, backoff = self._live, self._calls.backoff()
        while live.busy:
            self._pause(backoff, Busy(", ".join(live.busy)))
            read(self._calls, self._table, live, ("table",))
        while parts := live.not_yet_readable:
            read(self._calls, self._table, live, parts)
            if parts := live.not_yet_readable:
                self._pause(backoff, NotYet(f"DynamoDB to report {', '.join(parts)}"))

    def _pause(self, backoff: Backoff, reason: TdevError) -> bool:
        """Wait before the live state is read again; return False when the budget is spent."""
        seconds = backoff.pause_after(reason)
        if time.monotonic() + (seconds or 0) >= self._deadline:
            raise InProgress(f"{self._table.name}: still waiting for {reason}; run again to go on")
        if seconds is None:
            return False
        self._run.on_wait(self._table, self._live, str(reason))
        time.sleep(seconds)
        return True


def _checked_against_rows(
    calls: Calls, table: Table, live: Live, change: Change, allowed: Collection[str], whole: bool
) -> Change:
    """Return the change, refused if stored rows forbid it."""
    allowance = f"enable-ttl:{table.short}" if change.target == TTL else ""
    if not change.pending or allowance in allowed:
        return change
    problem = row_checks.problem(calls, table, live, change, whole)
    if not problem:
        return change
    remedy = f"--allow {allowance}" if allowance else "correct or remove these attributes first"
    return replace(change, symbol="!", note=f"{problem}; {remedy}")


def _stop_if_refused(live: Live, changes: Sequence[Change]) -> None:
    if live.denied:
        raise AccessDenied("; ".join(live.denied))
    refused = [change for change in changes if change.symbol == "!"]
    if refused:
        raise Refused("; ".join(f"{c.table} {c.target}: {c.note}" for c in refused))
