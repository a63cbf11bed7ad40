"""The one place that makes tables: they fit the terminal, and no number is ever broken.

Where the terminal is narrow, texts are shortened and whole columns left out, the least needed ones
first, which a line below names. Names of things to copy are folded instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from tdev_models.errors import plain

R = TypeVar("R")

Cells: TypeAlias = Mapping[str, Sequence[Text]]
"""What columns show, by head, but for what is drawn."""

_GAP = 2
_LEAST_NAME, _LEAST_DRAWN = 40, 20
_NARROWEST = 12
STYLES = {
    "ACTIVE": "cyan",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "ALIVE": "green",
    "ok": "green",
    "FAILED": "red",
    "DEAD": "red",
    "wrong": "bold red",
    "ABANDONED": "magenta",
    "LOST": "yellow",
    "SILENT": "yellow",
    "DRAINING": "yellow",
    "CANCELLED": "yellow",
    "unknown": "yellow",
}
"""How a status is coloured; the words say it without colours."""


@dataclass(frozen=True, kw_only=True)
class Column(Generic[R]):
    """One column.

    Attributes:
        head: its head, with the unit of its numbers.
        cell: what it shows of a row; texts of others are made harmless.
        kind: `number`: right, never broken. `name`: folded where it must be. `text`: shortened.
            `drawn`: `cell` is called with the width that is left, too.
        drop: 0 stays; of the others the largest number is left out first.
        least: how wide a text stays as long as others can be left out for it.
    """

    head: str
    cell: Callable[..., str | Text]
    kind: Literal["number", "name", "text", "drawn"] = "text"
    drop: int = 0
    least: int = 16


@dataclass(frozen=True)
class Table(Generic[R]):
    """A table, laid out when it is printed."""

    title: str
    columns: Sequence[Column[R]]
    rows: Sequence[R]
    empty: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the table out for the width of the console."""
        if not self.rows and self.empty:
            yield Text(plain(self.empty))
            return
        cells = {
            column.head: [_text(column.cell(row)) for row in self.rows]
            for column in self.columns
            if column.kind != "drawn"
        }
        known = [column for column in self.columns if self._is_known(column, cells)]
        widths = _widths(known, cells, options.max_width)
        shown = [column for column in known if column.head in widths]
        yield self._laid_out(shown, cells, widths)
        if left_out := [column.head for column in known if column not in shown]:
            yield Text(f"Left out at this width: {', '.join(left_out)}", style="dim")

    def _is_known(self, column: Column[R], cells: Cells) -> bool:
        """Return whether there is anything to show in a column."""
        return not self.rows or any(one.plain for one in cells.get(column.head, [Text("drawn")]))

    def _laid_out(
        self, columns: Sequence[Column[R]], cells: Cells, widths: Mapping[str, int]
    ) -> RichTable:
        table = RichTable(
            title=plain(self.title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for column in columns:
            table.add_column(
                column.head,
                width=widths[column.head],
                justify="right" if column.kind == "number" else "left",
                overflow="fold" if column.kind == "name" else "ellipsis",
                no_wrap=column.kind != "name",
            )
        for number, row in enumerate(self.rows):
            table.add_row(
                *(
                    cells[column.head][number]
                    if column.head in cells
                    else _text(column.cell(row, widths[column.head]))
                    for column in columns
                )
            )
        return table


def _widths(columns: Sequence[Column[Any]], cells: Cells, width: int) -> dict[str, int]:
    """Return the width of each column that has room."""
    natural = {column.head: _natural(column, cells, width) for column in columns}
    widths = {column.head: _least(column, natural[column.head]) for column in columns}
    for column in sorted(columns, key=lambda one: one.drop, reverse=True):
        if column.drop and _needed(widths) > width:
            del widths[column.head]
    kept = [column for column in columns if column.head in widths]
    # What is drawn takes what the others leave.
    for kind in ("name", "text", "drawn"):
        for column in kept:
            if column.kind == kind:
                left = width - _needed(widths)
                more = min(left, natural[column.head] - widths[column.head])
                widths[column.head] += max(0, more)
    for column in reversed(kept):  # still too wide: all is folded or shortened but numbers
        if column.kind != "number":
            less = min(_needed(widths) - width, widths[column.head] - _NARROWEST)
            widths[column.head] -= max(0, less)
    return widths


def _natural(column: Column[Any], cells: Cells, width: int) -> int:
    """Return how wide a column is where there is room."""
    if column.kind == "drawn":
        return width
    return max(cell_len(column.head), *(one.cell_len for one in cells[column.head]), 0)


def _least(column: Column[Any], natural: int) -> int:
    """Return how wide a column stays as long as others can be left out for it."""
    if column.kind == "drawn":
        return _LEAST_DRAWN
    most = {"text": column.least, "name": _LEAST_NAME}.get(column.kind, natural)
    return min(natural, max(most, cell_len(column.head)))


def _needed(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def status(value: str | None) -> Text:
    """Return a status in its colour; an item that others have made may be without one."""
    return Text(plain(str(value)), STYLES.get(value or "", ""))


def _text(value: str | Text) -> Text:
    return value if isinstance(value, Text) else Text(plain(value))
