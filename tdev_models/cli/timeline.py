"""The one drawing of a session's attempts against time, for `show`, `watch` and the demo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from tdev_models.cli.tables import STYLES, Column, Table, status
from tdev_models.results import Execution, Session
from tdev_models.views.attempts import Axis, Row, rows, worker
from tdev_models.views.moments import duration
from tdev_models.views.numbers import short

_BARS = {"COMPLETED": "█", "FAILED": "▓", "RUNNING": "▒", "CANCELLED": "░", "LOST": "?"}
_ASCII_BARS = {"COMPLETED": "=", "FAILED": "x", "RUNNING": ">", "CANCELLED": "-", "LOST": "?"}
_PAUSE = 4  # columns for a time in which no agent ran


@dataclass(frozen=True)
class Timeline:
    """The attempts of a session as bars, with what each took and cost, and by whom.

    Attributes:
        rows: the attempts, in the order in which they began.
    """

    rows: Sequence[Row]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the console is."""
        if not self.rows:
            yield Text("No agent has begun.")
            return
        bars = _ASCII_BARS if options.ascii_only else _BARS

        def bar(row: Row, width: int) -> Text:
            axis = Axis(self.rows, width, _PAUSE)
            start, end = (min(width - 1, int(axis.place(at))) for at in (row.start, row.end))
            mark = bars.get(row.attempt.status, "?") * (end - start + 1)
            text = [" "] * width
            for pause in axis.pauses:
                text[min(width - 1, int(axis.place(pause[0])) + 2)] = ":"
            text[start : end + 1] = mark
            return Text("".join(text[:width]), STYLES.get(row.attempt.status, ""))

        whole = Axis(self.rows, 100, _PAUSE)
        several = any(row.attempt.number > 1 for row in self.rows)
        columns: list[Column[Row]] = [
            Column(head="agent", cell=lambda row: row.execution.agent_name, kind="name"),
            Column(
                head="#",
                cell=lambda row: str(row.attempt.number) if several else "",
                kind="number",
                drop=2,
            ),
            Column(head="status", cell=lambda row: status(row.attempt.status), drop=1),
            Column(head=f"{short(whole.end - whole.begin)} s", cell=bar, kind="drawn"),
            Column(head="took s", cell=lambda row: short(row.seconds), kind="number"),
            Column(head="tokens", cell=lambda row: str(row.tokens or ""), kind="number", drop=4),
            Column(head="cost $", cell=lambda row: short(row.cost_usd), kind="number", drop=3),
            Column(head="worker", cell=lambda row: worker(row.attempt.worker), drop=5),
        ]
        yield Table("", columns, self.rows)
        lost = any(row.attempt.status == "LOST" for row in self.rows)
        notes = ["LOST (?): its worker died or lost the session, nobody knows when"] * lost
        if whole.pauses:
            lengths = ", ".join(duration(end - start) for start, end in whole.pauses)
            notes.append(f"No agent ran for {lengths} (:)")
        for note in notes:
            yield Text(f"{note}.", style="dim")


def of(session: Session, executions: Sequence[Execution], now: float | None = None) -> Timeline:
    """Return the drawing of a session as it is now."""
    return Timeline(rows(session, executions, time.time() if now is None else now))
