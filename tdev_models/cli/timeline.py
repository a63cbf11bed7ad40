"""The one drawing of a session's attempts against time, for `show`, `watch` and the demo."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from tdev_models.cli.moments import duration
from tdev_models.cli.tables import STYLES, Column, Table, short, status
from tdev_models.results import Attempt, Execution, Session

_BARS = {"COMPLETED": "█", "FAILED": "▓", "RUNNING": "▒", "CANCELLED": "░", "LOST": "?"}
_ASCII_BARS = {"COMPLETED": "=", "FAILED": "x", "RUNNING": ">", "CANCELLED": "-", "LOST": "?"}
_PAUSE = 4  # columns for a time in which no agent ran
_SHORTEST_PAUSE = 0.3  # of the time in which agents ran; shorter ones are drawn as they are
_MOST_PAUSES = 5


class Row(NamedTuple):
    """One attempt of one execution; tokens and cost of all attempts stand at the last."""

    execution: Execution
    attempt: Attempt
    is_last: bool

    @property
    def seconds(self) -> float | None:
        """How long the attempt took; None while it runs, or where nobody knows."""
        start, end = self.attempt.start_time, self.attempt.end_time
        return None if start is None or end is None else end - start


class Axis:
    """Maps moments to columns; long pauses, in which no agent ran, are cut out.

    Attributes:
        pauses: the pauses that are cut out: start and end.
    """

    def __init__(self, spans: Iterable[tuple[float, float]], width: int) -> None:
        busy = _merged(spans)
        between = [(one[1], other[0]) for one, other in pairwise(busy)]
        least = _SHORTEST_PAUSE * sum(end - start for start, end in busy)
        longest = sorted(between, key=lambda pause: pause[0] - pause[1])[:_MOST_PAUSES]
        self.pauses = sorted(pause for pause in longest if pause[1] - pause[0] > max(least, 1.0))
        edges = [busy[0][0], *(moment for pause in self.pauses for moment in pause), busy[-1][1]]
        self._pieces = list(zip(edges[::2], edges[1::2], strict=True))
        drawn = max(1, width - _PAUSE * len(self.pauses))
        self._scale = drawn / (sum(end - start for start, end in self._pieces) or 1)
        self._last = width - 1

    def column(self, moment: float) -> int:
        """Return in which column a moment lies."""
        column = 0.0
        for start, end in self._pieces:
            if moment <= end:
                column += max(0.0, moment - start) * self._scale
                break
            column += (end - start) * self._scale + _PAUSE
        return min(self._last, int(column))


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


@dataclass(frozen=True)
class Timeline:
    """The attempts of a session as bars, with what each took and cost, and by whom.

    Attributes:
        session: the session.
        executions: its executions; those without attempts show as one.
        now: until when running attempts are drawn.
    """

    session: Session
    executions: Sequence[Execution]
    now: float

    @property
    def rows(self) -> list[Row]:
        """The attempts, in the order in which they began."""
        rows = []
        for execution in self.executions:
            attempts = execution.attempts or (_only_attempt(execution),)
            rows += [
                Row(execution, attempt, attempt is attempts[-1])
                for attempt in attempts
                if attempt.start_time is not None
            ]
        return sorted(rows, key=lambda row: row.attempt.start_time or 0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the console is."""
        rows = self.rows
        if not rows:
            yield Text("No agent has begun.")
            return
        spans = [self._span(row.attempt) for row in rows]
        bars = _ASCII_BARS if options.ascii_only else _BARS
        begun = min(start for start, _ in spans)
        ended = max(end for _, end in spans)

        def bar(row: Row, width: int) -> Text:
            axis = Axis(spans, width)
            start, end = map(axis.column, self._span(row.attempt))
            mark = bars.get(row.attempt.status, "?") * (end - start + 1)
            text = [" "] * width
            for pause in axis.pauses:
                text[min(width - 1, axis.column(pause[0]) + 2)] = ":"
            text[start : end + 1] = mark
            return Text("".join(text[:width]), STYLES.get(row.attempt.status, ""))

        several = any(row.attempt.number > 1 for row in rows)
        columns: list[Column[Row]] = [
            Column(head="agent", cell=lambda row: row.execution.agent_name, kind="name"),
            Column(
                head="#",
                cell=lambda row: str(row.attempt.number) if several else "",
                kind="number",
                drop=2,
            ),
            Column(head="status", cell=lambda row: status(row.attempt.status), drop=1),
            Column(head=f"{short(ended - begun)} s", cell=bar, kind="drawn"),
            Column(head="took s", cell=lambda row: short(row.seconds), kind="number"),
            Column(head="tokens", cell=_tokens, kind="number", drop=4),
            Column(head="cost $", cell=_cost, kind="number", drop=3),
            Column(head="worker", cell=lambda row: worker(row.attempt.worker), drop=5),
        ]
        yield Table("", columns, rows)
        lost = any(row.attempt.status == "LOST" for row in rows)
        notes = ["LOST (?): its worker died, nobody knows when"] * lost
        if pauses := Axis(spans, 100).pauses:
            lengths = ", ".join(duration(end - start) for start, end in pauses)
            notes.append(f"No agent ran for {lengths} (:)")
        for note in notes:
            yield Text(f"{note}.", style="dim")

    def _span(self, attempt: Attempt) -> tuple[float, float]:
        start = attempt.start_time or 0
        if attempt.end_time is not None:
            return start, max(start, attempt.end_time)
        runs = attempt.status == "RUNNING" and self.session.status == "ACTIVE"
        return start, max(start, self.now) if runs else start


def _only_attempt(execution: Execution) -> Attempt:
    """Return the last attempt of an execution that was read without them."""
    return Attempt(
        number=int(execution.retry_count or 0) + 1,
        status=str(execution.status),
        start_time=execution.start_time,
        end_time=execution.end_time,
        error_message=execution.error_message,
    )


def _tokens(row: Row) -> str:
    used = (row.execution.input_tokens or 0) + (row.execution.output_tokens or 0)
    return f"{int(used)}" if row.is_last and used else ""


def _cost(row: Row) -> str:
    return short(row.execution.cost_usd) if row.is_last and row.execution.cost_usd else ""


def worker(name: str | None) -> str:
    """Return host and process of a worker's name, without what is random."""
    return ":".join((name or "").split(":")[:2])


def of(session: Session, executions: Sequence[Execution], now: float | None = None) -> Timeline:
    """Return the drawing of a session as it is now."""
    return Timeline(session, executions, time.time() if now is None else now)
