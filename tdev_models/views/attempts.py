"""The attempts of a session against time: what `tdev show` and the page draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from tdev_models.results import Attempt, Execution, Session

_SHORTEST_PAUSE = 0.3  # of the time in which agents ran; shorter ones are drawn as they are
_MOST_PAUSES = 5


class Row(NamedTuple):
    """One attempt of one execution; tokens and cost of all attempts stand at the last."""

    execution: Execution
    attempt: Attempt
    is_last: bool
    start: float
    end: float

    @property
    def seconds(self) -> float | None:
        """How long the attempt took; None while it runs, or where nobody knows."""
        start, end = self.attempt.start_time, self.attempt.end_time
        return None if start is None or end is None else end - start

    @property
    def tokens(self) -> int:
        """The tokens of the execution, at its last attempt."""
        used = (self.execution.input_tokens or 0) + (self.execution.output_tokens or 0)
        return int(used) if self.is_last else 0

    @property
    def cost_usd(self) -> float | None:
        """What the execution has cost, at its last attempt; None where that is not known."""
        return (self.execution.cost_usd or None) if self.is_last else None


class Axis:
    """Maps moments to places from 0 to `width`; long pauses, in which no agent ran, are cut out.

    Attributes:
        begin: when the first attempt began.
        end: when the last one ended.
        pauses: the pauses that are cut out: start and end.
        pause_width: how wide each of them is drawn.
    """

    def __init__(self, rows: Sequence[Row], width: float, pause_width: float) -> None:
        busy = _merged((row.start, row.end) for row in rows)
        between = [(one[1], other[0]) for one, other in pairwise(busy)]
        least = _SHORTEST_PAUSE * sum(end - start for start, end in busy)
        longest = sorted(between, key=lambda pause: pause[0] - pause[1])[:_MOST_PAUSES]
        self.pauses = sorted(pause for pause in longest if pause[1] - pause[0] > max(least, 1.0))
        self.begin, self.end, self.pause_width = busy[0][0], busy[-1][1], pause_width
        edges = [self.begin, *(moment for pause in self.pauses for moment in pause), self.end]
        self._pieces = list(zip(edges[::2], edges[1::2], strict=True))
        drawn = max(1, width - pause_width * len(self.pauses))
        self._scale = drawn / (sum(end - start for start, end in self._pieces) or 1)

    def place(self, moment: float) -> float:
        """Return where a moment lies."""
        place = 0.0
        for start, end in self._pieces:
            if moment <= end:
                place += max(0.0, moment - start) * self._scale
                break
            place += (end - start) * self._scale + self.pause_width
        return place


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def rows(session: Session, executions: Iterable[Execution], now: float) -> list[Row]:
    """Return the attempts of a session, in the order in which they began.

    Executions that were read without attempts show as one. What runs is drawn until `now`.
    """
    found = []
    for execution in executions:
        attempts = execution.attempts or (_only_attempt(execution),)
        for attempt in attempts:
            if attempt.start_time is not None:
                end = _end(session, attempt, now)
                last = attempt is attempts[-1]
                found.append(Row(execution, attempt, last, attempt.start_time, end))
    return sorted(found, key=lambda row: row.start)


def _end(session: Session, attempt: Attempt, now: float) -> float:
    """Return until when an attempt is drawn."""
    start = attempt.start_time or 0
    if attempt.end_time is not None:
        return max(start, attempt.end_time)
    runs = attempt.status == "RUNNING" and session.status == "ACTIVE"
    return max(start, now) if runs else start


def _only_attempt(execution: Execution) -> Attempt:
    """Return the last attempt of an execution that was read without them."""
    return Attempt(
        number=int(execution.retry_count or 0) + 1,
        status=str(execution.status),
        start_time=execution.start_time,
        end_time=execution.end_time,
        error_message=execution.error_message,
    )


def lack_texts(executions: Iterable[Execution]) -> bool:
    """Return whether only failed attempts have an error's text: it is encrypted there, or whole."""
    attempts = (attempt for execution in executions for attempt in execution.attempts)
    return any(
        one.status == "FAILED" and (not one.error_message or one.error_message.endswith("…"))
        for one in attempts
    )


def worker(name: str | None) -> str:
    """Return host and process of a worker's name, without what is random."""
    return ":".join((name or "").split(":")[:2])
