"""Applying a plan: one step, wait, describe again, go on. The live tables are the only memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tdev_models.errors import StoreError, TdevError
from tdev_models.migrations import environments, spec
from tdev_models.migrations.calls import Busy, Calls
from tdev_models.migrations.live import Live, read
from tdev_models.migrations.plan import Change, diff
from tdev_models.migrations.spec import Table
from tdev_models.migrations.steps import Step, next_step
from tdev_models.settings import Settings


class Refused(TdevError):
    """A change needs `--allow`, or is impossible; nothing was sent for it."""


class InProgress(TdevError):
    """DynamoDB is still at work, or the time is over; the next run goes on from there."""


@dataclass(slots=True)
class Planned:
    """One table: what is declared, what is, and what to change."""

    table: Table
    live: Live
    changes: list[Change]


def plan(calls: Calls, tables: Sequence[Table], allowed: Collection[str] = ()) -> list[Planned]:
    """Read every table and return what to change; sends no mutation."""
    snapshots = [(table, read(calls, table, Live())) for table in tables]
    return [Planned(table, live, diff(table, live, allowed)) for table, live in snapshots]


def apply_all(settings: Settings) -> None:
    """Create or update the tables of the settings: for tests and demonstrations.

    An environment that is not declared gets the settings of `dev`. Prints and asks nothing; what
    the engine does not know (auto scaling, alarms, backups on most) is left out.

    Raises:
        Refused: a change would destroy something.
        TdevError: a call failed.
    """
    name = settings.environment
    like = {} if name in environments.BUILT_IN else {"like": "dev"}
    tables = spec.declared(settings, environments.load(name, None, like))
    calls = Calls(settings)
    Run(calls).apply(plan(calls, tables))


@dataclass(slots=True)
class Run:
    """One run of apply.

    Attributes:
        calls: sends the calls.
        allowed: destructive changes that are allowed by name.
        timeout_seconds: how long the whole run may take.
        on_step: called with a change before its call is sent.
        on_wait: called with what is waited for, each time it is looked at.
    """

    calls: Calls
    allowed: Collection[str] = ()
    timeout_seconds: float = 3600.0
    on_step: Callable[[Table, Change, Step], None] = lambda table, change, step: None
    on_wait: Callable[[Table, Live, str], None] = lambda table, live, what: None
    _started: float = field(default_factory=time.monotonic)

    def apply(self, planned: Sequence[Planned]) -> int:
        """Bring every table to its declared state and return the number of calls sent.

        Safe to run again and at the same time as others: what to do next is always told by the live
        table. Nothing is sent when any table's plan is refused.

        Raises:
            Refused: a change is destructive and not allowed by name, or impossible.
            InProgress: the time is over.
            TdevError: a call failed; a refusal names the action and the resource.
        """
        for of in planned:
            self._refuse(of.changes)
        return sum(self._converge(of.table, of.live) for of in planned)

    def _converge(self, table: Table, live: Live) -> int:
        sent: dict[str, float] = {}
        refused: set[str] = set()
        while True:
            self._settle(table, live)
            changes = diff(table, live, self.allowed)
            self._refuse(changes)
            change = next((change for change in changes if change.pending), None)
            if change is None:
                return len(sent)
            step = next_step(table, live, change)
            name = repr(step)
            if name in sent:
                # Not yet to be seen, or undone by somebody else: who does not give way in time.
                if time.monotonic() - sent[name] > (2.0 if self.calls.local else 120.0):
                    raise TdevError(
                        f"{table.name}: {' '.join(change.target)} was set to {change.after!r} but"
                        f" reads {change.before!r}: another run, or someone, changes it too"
                    )
                self._pause(table, live, f"{' '.join(change.target)} to be seen")
            else:
                try:
                    self.on_step(table, change, step)
                    self.calls(step.operation, **step.request)
                    sent[name] = time.monotonic()
                except Busy as error:
                    self._pause(table, live, str(error))
                except StoreError:
                    # Perhaps another run did it a moment ago: the live table decides, once.
                    if name in refused:
                        raise
                    refused.add(name)
            read(self.calls, table, live, step.touches)

    def _settle(self, table: Table, live: Live) -> None:
        waited = 0
        while live.busy:
            self._pause(table, live, ", ".join(live.busy), waited)
            waited += 1
            read(self.calls, table, live, ("table",))

    def _pause(self, table: Table, live: Live, what: str, waited: int = 0) -> None:
        if time.monotonic() - self._started > self.timeout_seconds:
            raise InProgress(f"{table.name}: still waiting for {what}; run again to go on")
        self.on_wait(table, live, what)
        least, most = (0.01, 0.1) if self.calls.local else (1.0, 10.0)
        time.sleep(min(most, least * 2 ** min(waited, 10)) * random.uniform(0.5, 1.0))

    def _refuse(self, changes: Sequence[Change]) -> None:
        bad = [change for change in changes if change.symbol == "!"]
        if bad:
            lines = [f"{c.table} {' '.join(c.target)}: {c.note}" for c in bad]
            raise Refused("; ".join(lines))
