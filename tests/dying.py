"""Let a worker of this process die, as far as the store can see."""

from __future__ import annotations

from tdev_models import settings
from tdev_models.settings import Settings
from tdev_models.workers.presence import Presence


def kill_worker(chosen: Settings | None = None) -> None:
    """Stop the heartbeat of the settings' worker for good; later claims are a new worker's."""
    dead = Presence._all.pop(chosen or settings.current(), None)
    if dead is not None:
        dead._beats = False
