"""What is to be changed: every table as declared, as it is, and the changes between the two."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from tdev_models.errors import AccessDenied, TdevError
from tdev_models.migrations.calls import Calls, Unsupported
from tdev_models.migrations.declared import TTL, Property, Table
from tdev_models.migrations.diff import Change, diff
from tdev_models.migrations.live import Live, read
from tdev_models.migrations.row_checks import RowCheck


class Refused(TdevError):
    """A change needs `--allow`, or is impossible; no call was sent for it."""


@dataclass(slots=True)
class Planned:
    """One table: its declaration, its live state, and the changes between them."""

    table: Table
    live: Live
    changes: list[Change]


def plan(
    calls: Calls, tables: Sequence[Table], allowed: Collection[str] = (), rows: bool = True
) -> list[Planned]:
    """Read every table and return what to change; changes nothing.

    Args:
        calls: sends the calls.
        tables: the declared tables.
        allowed: destructive changes that are allowed by name.
        rows: read one page of rows where there is a new index or a new TTL.

    Raises:
        TdevError: a table could not be read. A part that the role may not read raises nothing: it
            is unknown, and named in the plan.
    """
    planned = [Planned(table, read(calls, table, Live()), []) for table in tables]
    for each in planned:
        table, live = each.table, each.live
        if live.vanished:  # unless another run has made it since
            read(calls, table, live)
        each.changes = diff(table, live, allowed)
        if rows and (checked := that_rows_may_forbid(live, each.changes, allowed)):
            check = RowCheck(calls, table, live, checked)
            next(check.read())
            each.changes = check.judge(each.changes)
    return planned


def undeclared(calls: Calls, tables: Sequence[Table]) -> list[Change]:
    """Return a line for each table of this environment that no model declares."""
    prefix = tables[0].name.removesuffix(tables[0].short)
    try:
        listed = calls.every("ListTables", "TableNames")
    except (AccessDenied, Unsupported) as error:
        note = f"tables that are not declared are not looked for: {error}"
        return [Change("=", "*", Property("table"), note=note)]
    names = [name.removeprefix(prefix) for name in listed if name.startswith(prefix)]
    known = {table.short for table in tables}
    # `t-developer-prod-eu-metrics` belongs to the environment `prod-eu`, not to `prod`.
    others = tuple(
        name.removesuffix(short)
        for name in names
        for short in known
        if name.endswith(f"-{short}") and name not in known
    )
    return [
        Change("=", name, Property("table"), note="not declared, left alone")
        for name in names
        if name not in known and not name.startswith(others)
    ]


def that_rows_may_forbid(
    live: Live, changes: Iterable[Change], allowed: Collection[str]
) -> list[Change]:
    """Return the changes that stored rows may forbid; none as long as no rows can be read."""
    return [
        change
        for change in changes
        if change.pending
        and live.description
        and not live.made_or_deleted
        and change.after is not None
        and change.target.kind in ("index", "ttl")
        and not (change.target == TTL and f"enable-ttl:{change.table}" in allowed)
    ]


def stop_if_refused(live: Live, changes: Sequence[Change]) -> None:
    """Raise what keeps a plan from being applied."""
    if live.denied:
        raise AccessDenied("; ".join(live.denied))
    refused = [change for change in changes if change.symbol == "!"]
    text = "; ".join(f"{c.table} {c.target}: {c.note}" for c in refused)
    if live.dead:
        raise TdevError(text or live.dead)
    if refused:
        raise Refused(text)
