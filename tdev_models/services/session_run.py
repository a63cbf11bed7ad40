"""What the block of a session shares with the blocks of its agents."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Generic

from tdev_models import telemetry
from tdev_models.dynamodb.client import WAITED
from tdev_models.dynamodb.client_context import C
from tdev_models.errors import LeaseHeld
from tdev_models.results import SessionStatus
from tdev_models.retry import CANCELLED_SECONDS
from tdev_models.services.sessions import real_error
from tdev_models.workers.lease import Lease
from tdev_models.workers.presence import Presence


@dataclass(slots=True)
class SessionRun(Generic[C]):
    """What the block of a session shares with the blocks of its agents.

    Attributes:
        client: the client of both.
        session_id: the session.
        lease: the claim; None before there is one.
        left: the session's block was left; agents of other tasks may still run.
        interrupted: this process has cancelled its task, to end.
        span: how telemetry sees it.
    """

    client: C
    session_id: str
    lease: Lease | None = None
    left: bool = False
    interrupted: bool = False
    span: telemetry.Span = field(default_factory=telemetry.Span)
    _interrupted_at: float = -math.inf  # monotonic
    _rests_since: float = -math.inf  # infinite while it records what was interrupted

    @property
    def owned(self) -> Lease:
        """The lease; raises LeaseHeld where there is none."""
        if self.lease is None:
            raise LeaseHeld(f"session {self.session_id} was not claimed")
        return self.lease

    def is_interruption(self, error: BaseException | None) -> bool:
        """Return whether an error is no failure: a cancellation, Ctrl-C, `sys.exit`.

        A CancelledError of something else that was awaited is a failure like any other, but where
        this process drains, which may have cancelled it.
        """
        cause = error and real_error(error)
        return self.interrupted or not (
            cause is None
            or isinstance(cause, Exception)
            or (self.client.is_stray_cancellation(cause) and not Presence.draining)
        )

    def seconds_for(self, error: BaseException | None, *, anew: bool = False) -> float | None:
        """Return for how long an end may be tried: None for as long as an owner's write is.

        Who cancels a task, or ends the process, waits two seconds for all of it: its agents' begins
        and ends, that of the session after them, and what was being written when it was cancelled.
        What the caller does in between takes none of them. They are counted `anew` for each agent
        that is left; what was cancelled before, and went on, is over.
        """
        if not self.is_interruption(error):
            return None
        now = time.monotonic()
        if anew or now > self._rests_since + 2 * CANCELLED_SECONDS:
            self._interrupted_at = now - getattr(error, WAITED, 0.0)
        else:
            self._interrupted_at += max(0.0, now - self._rests_since)
        self._rests_since = math.inf
        return max(0.0, self._interrupted_at + CANCELLED_SECONDS - now)

    def rest(self) -> None:
        """Say that such an end is recorded, or given up: what the caller does next is his time."""
        if self._rests_since == math.inf:
            self._rests_since = time.monotonic()

    def begin_span(self, pipeline_type: str | None) -> None:
        """Let telemetry see that a run begins, if it does not yet."""
        if self.span.traceparent is None:
            self.span = telemetry.active.session(self.session_id, pipeline_type)

    def end_span(self, error: BaseException | None) -> None:
        """Let telemetry see what became of the run; an interruption is no error."""
        lease, span = self.lease, self.span
        ended = None if lease is None else lease.ended
        if error is not None and not self.is_interruption(error):
            span.fail(real_error(error))
        elif lease is not None and ended == SessionStatus.FAILED:
            span.fail(lease.raised[-1][0] if lease.raised else None)
        span.end(ended)
