"""Applies a plan: one step, wait, read the live state, next step. Nothing else is remembered."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tdev_models.errors import StoreError, TdevError
from tdev_models.migrations import declared, environments, report
from tdev_models.migrations.calls import (
    RUN_SECONDS,
    Absent,
    Busy,
    Calls,
    InProgress,
    NotYet,
)
from tdev_models.migrations.declared import KEYS, Property, Table
from tdev_models.migrations.diff import Change, diff
from tdev_models.migrations.live import PARTS, Live, read
from tdev_models.migrations.plan import (
    Planned,
    Refused,
    plan,
    stop_if_refused,
    that_rows_may_forbid,
)
from tdev_models.migrations.row_checks import RowCheck, parts
from tdev_models.migrations.steps import Step, next_step
from tdev_models.retry import Backoff
from tdev_models.settings import Settings

Pauses: TypeAlias = Generator[float, None, None]
"""Work that says how long it waits instead of waiting, so that others work meanwhile."""


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
    return Run(calls).apply(plan(calls, tables))


@dataclass(slots=True)
class Run:
    """One run of apply, or of the check of rows.

    Attributes:
        calls: sends the calls.
        allowed: destructive changes that are allowed by name.
        timeout_seconds: how long the whole run may take.
        rows: `all`, or `TABLE:DONE/PARTS` to go on with the check of rows where an earlier run
            stopped; `sample` and `none` read no more rows than the plan did.
        on_step: called with the change before each call that makes it.
        on_wait: called before each pause, with the table and what is waited for.
        goes_on: the `--rows` with which another run goes on with the check of rows; empty when
            none is under way, or when rows forbid a change.
    """

    calls: Calls
    allowed: Collection[str] = ()
    timeout_seconds: float = RUN_SECONDS
    rows: str = "all"
    on_step: Callable[[Change], None] = lambda change: None
    on_wait: Callable[[Table, Live, str], None] = lambda table, live, reason: None
    deadline: float = field(init=False)
    goes_on: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout_seconds

    def apply(self, planned: Sequence[Planned]) -> int:
        """Bring every table to its declared state and return the number of calls sent.

        Safe to run again and at the same time as other runs: every next step is chosen by the live
        state. Nothing is changed when any table has a refused change or a part that the role may
        not read. While one table waits, the others go on.

        Raises:
            Refused: a change is destructive and not allowed by name, or impossible.
            InProgress: the time is over, or DynamoDB accepts a change only later.
            AccessDenied: with the action and the resource.
            TdevError: a call failed, or another run sets a property to another value; notes have
                what failed of other tables.
        """
        self.check_rows(planned)
        refused = []
        for each in planned:
            try:
                stop_if_refused(each.live, each.changes)
            except Refused as error:  # by rows, perhaps after hours: those of all tables are said
                refused.append(str(error))
        if refused:
            raise Refused("; ".join(refused))
        runs = [_Convergence(self, each) for each in planned]
        failed = _together([(each.table.name, each.converge()) for each in runs])
        final = [error for error in failed if not isinstance(error, InProgress)]
        if final:
            for other in final[1:]:
                final[0].add_note(str(other))
            raise final[0]
        if failed:
            raise InProgress("; ".join(map(str, failed)))
        return sum(each.sent for each in runs)

    def check_rows(self, planned: Sequence[Planned]) -> None:
        """Check every row against new indexes and new TTLs; what rows forbid becomes refused.

        Raises:
            InProgress: the time is over; the message says how to go on.
        """
        if any(change.symbol == "!" for each in planned for change in each.changes):
            return
        begins, _, done = self.rows.partition(":")
        begun = begins == "all"  # `sample` and `none` begin nowhere
        for each in planned:
            first, total = 0, parts(each.live)
            if each.table.short == begins:
                first, total, begun = *map(int, done.split("/")), True
            checked = that_rows_may_forbid(each.live, each.changes, self.allowed)
            if begun and checked:
                check = RowCheck(self.calls, each.table, each.live, checked)
                for part in range(first, total):
                    # A run that goes on does not read again what the parts before this one hold.
                    self.goes_on = "" if check.forbids else f"{each.table.short}:{part}/{total}"
                    self._check_part(each, check, part, total)
                self.goes_on = ""
                each.changes = check.judge(each.changes)

    def _check_part(self, each: Planned, check: RowCheck, part: int, total: int) -> None:
        for pause in check.read((part, total)):
            if time.monotonic() + pause >= self.deadline:
                stop_if_refused(each.live, check.judge(each.changes))
                raise InProgress(
                    f"{each.table.name}: the time is over with {part} of {total} parts of its rows"
                    f" checked: run again with --rows {self.goes_on} to go on there"
                )
            text = f"the check of its rows: {part} of {total} parts, {check.count:,} rows"
            self.on_wait(each.table, each.live, text)
            time.sleep(pause)


def _together(works: Iterable[tuple[str, Pauses]]) -> list[TdevError]:
    """Do several works, each while the others wait; return the errors of those that failed."""
    failed = []
    waiting = [(0.0, name, work) for name, work in works]
    while waiting:
        due, name, work = heapq.heappop(waiting)
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            heapq.heappush(waiting, (time.monotonic() + next(work), name, work))
        except StopIteration:
            pass
        except TdevError as error:
            failed.append(error)
    return failed


class _Convergence:
    """One table on its way to its declared state, until the run's deadline.

    Attributes:
        table: the declared table.
    """

    def __init__(self, run: Run, planned: Planned) -> None:
        self.table = planned.table
        self._run, self._calls, self._live = run, run.calls, planned.live
        # What was checked against the rows; a table that this run creates has none.
        checked = [] if planned.live.made_or_deleted else planned.changes
        self._checked = {change.target for change in checked}
        # What was read again; None stands for everything, before the run ends.
        self._fresh: set[Property | None] = set()
        # Steps that were accepted; those of them that did not show once DynamoDB was done, and
        # those that were rejected, each with what is left of its time.
        self._accepted: set[str] = set()
        self._not_visible: dict[str, Backoff] = {}
        self._rejected: dict[str, Backoff] = {}
        self._retries = run.calls.backoff()

    @property
    def sent(self) -> int:
        """How many calls that change something were accepted."""
        return len(self._accepted)

    def converge(self) -> Pauses:
        """Make one change after the other, until the live state is the declared one."""
        while True:
            yield from self._settle()
            change = self._next_change()
            if change and not self._checked & {change.target, KEYS}:
                yield from self._check_rows(change)
            if self._may_be_stale(change):
                self._refresh(change)
                continue
            if change is None:
                return
            step = next_step(self.table, self._live, change, self._calls.backfill_units)
            if repr(step) in self._accepted:
                yield from self._wait_for_effect(step, change)
            else:
                yield from self._send(step, change)
            read(self._calls, self.table, self._live, step.touches)

    def _next_change(self) -> Change | None:
        """Return the next change, or None when the live state is as declared."""
        changes = diff(self.table, self._live, self._run.allowed)
        stop_if_refused(self._live, changes)
        return next((change for change in changes if change.pending), None)

    def _may_be_stale(self, change: Change | None) -> bool:
        """Return whether what a change would remove or overwrite has to be read again, once.

        The live state may be hours old, and another run may have changed what would be removed,
        overwritten or reported as done.
        """
        target = change.target if change else None
        return target not in self._fresh and not (change and change.before is None)

    def _refresh(self, change: Change | None) -> None:
        self._fresh.add(change.target if change else None)
        # The table is read last, so that it shows the index of every alarm that was read.
        needed = ("table", change.target.kind) if change else PARTS
        read(self._calls, self.table, self._live, [p for p in reversed(PARTS) if p in needed])

    def _check_rows(self, change: Change) -> Pauses:
        """Check the rows for a change that the plan did not have."""
        self._checked.add(change.target)
        checked = that_rows_may_forbid(self._live, [change], self._run.allowed)
        if not checked or self._run.rows == "none":
            return
        check = RowCheck(self._calls, self.table, self._live, checked)
        for seconds in check.read():
            if time.monotonic() + seconds >= self._run.deadline:
                raise InProgress(f"{self.table.name}: the time is over; run again to go on")
            self._run.on_wait(self.table, self._live, f"the check of its rows: {check.count} read")
            yield seconds
        stop_if_refused(self._live, check.judge(checked))

    def _send(self, step: Step, change: Change) -> Pauses:
        self._run.on_step(change)
        try:
            self._calls(step.operation, **step.request)
            self._accepted.add(repr(step))
            self._retries = self._calls.backoff()
        except (Busy, Absent) as error:
            yield from self._pause(self._retries, error)
        except StoreError as error:
            # Another run may have made the change; the live state may show it late.
            backoff = self._calls.backoff(self._calls.limits.rejected)
            yield from self._pause(self._rejected.setdefault(repr(step), backoff), error, error)

    def _wait_for_effect(self, step: Step, change: Change) -> Pauses:
        backoff = self._calls.backoff(self._calls.limits.visible)
        backoff = self._not_visible.setdefault(repr(step), backoff)
        effect = Busy(f"{change.target} to take effect")
        ignored = TdevError(
            f"{report.line(change)}: the change was accepted but does not show: another run undoes"
            " it, or the engine ignores it"
        )
        yield from self._pause(backoff, effect, ignored)

    def _settle(self) -> Pauses:
        """Wait until DynamoDB has finished what it is doing, and reports every part."""
        live, backoff = self._live, self._calls.backoff()
        while live.busy:
            yield from self._pause(backoff, Busy(", ".join(live.busy)))
            read(self._calls, self.table, live, ("table",))
        while unread := live.not_yet_readable:
            read(self._calls, self.table, live, unread)
            if unread := live.not_yet_readable:
                yield from self._pause(backoff, NotYet(f"DynamoDB to report {', '.join(unread)}"))

    def _pause(self, backoff: Backoff, reason: TdevError, spent: TdevError | None = None) -> Pauses:
        """Wait before the live state is read again; raise `spent` when the budget is."""
        seconds = backoff.pause_after(reason)
        if time.monotonic() + (seconds or 0) >= self._run.deadline:
            raise InProgress(f"{self.table.name}: still waiting for {reason}; run again to go on")
        if seconds is None:
            if spent:
                raise spent
            return
        self._run.on_wait(self.table, self._live, str(reason))
        yield seconds
