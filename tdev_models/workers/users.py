"""Whose a session is: its user is set once, and no call for another user gets it."""

from __future__ import annotations

from pynamodb.expressions.condition import Condition

from tdev_models.errors import NotFound, WrongUser
from tdev_models.models import PipelineSession


def is_of_user(user_id: str) -> Condition:
    """Return the condition that a session belongs to a user, or to nobody yet."""
    user = PipelineSession.user_id
    free_or_same: Condition = user.does_not_exist() | (user == user_id)
    return free_or_same


def check_user(session: PipelineSession | None, user_id: str | None) -> None:
    """Raise WrongUser if a session belongs to another user than the given one."""
    if session is not None and user_id is not None and session.user_id not in (None, user_id):
        raise WrongUser(
            f"session {session.session_id} belongs to another user; nothing was changed, "
            "check the id, or take another one for a new session"
        )


def visible_to(
    session: PipelineSession | None, session_id: str, user_id: str | None
) -> PipelineSession:
    """Return a session as it was read; None stands for any user.

    Raises:
        NotFound: there is none, or it is not this user's: who may not see it learns no more.
    """
    if session is None or user_id not in (None, session.user_id):
        raise NotFound(f"there is no session {session_id}")
    return session
