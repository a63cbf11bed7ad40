"""Let a worker of this process die, as far as the store can see."""

from __future__ import annotations

from tdev_models import settings
from tdev_models.settings import Settings
from tdev_models.workers.presence import Presence
from tests import raw


def kill_worker(chosen: Settings | None = None) -> None:
    """Stop the heartbeat of the settings' worker for good; later claims are a new worker's."""
    dead = Presence._all.pop(chosen or settings.current(), None)
    if dead is not None:
        dead._beats = False


def worker_of(store: Settings, session_id: str) -> str:
    """Return the key of the worker that runs a session."""
    session = raw.item(store, "pipeline-sessions", session_id)
    assert session is not None
    worker_id: str = session["worker_id"]["S"]
    return worker_id
