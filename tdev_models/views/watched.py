"""A session that is watched: each poll is one read, of the session or of its executions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tdev_models.results import Execution, Session, SessionStatus


@dataclass
class Watched:
    """What the polls of one session have read so far.

    Attributes:
        session: as it was read last.
        executions: as they were read last: by an index, which shows a change a moment later.
        is_behind: the session has changed since its executions were read, so they come next.
    """

    session: Session
    executions: Sequence[Execution] = ()
    is_behind: bool = True

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self.session.status != SessionStatus.ACTIVE and not self.is_behind

    def saw_session(self, session: Session) -> None:
        """Take what a poll has read of the session."""
        seen, self.session = self.session, session
        self.is_behind = (session.status, session.last_updated) != (seen.status, seen.last_updated)

    def saw_executions(self, executions: Sequence[Execution]) -> None:
        """Take what a poll has read of the executions."""
        self.executions, self.is_behind = executions, False
