"""A worker's own item, in the table of pipeline sessions."""

from __future__ import annotations

from pynamodb.attributes import UnicodeSetAttribute

from tdev_models.models.attributes import (
    FlagAttribute,
    InstantAttribute,
    NumberAttribute,
    TextAttribute,
)
from tdev_models.models.base import BaseModel, TableMeta

WORKER_IDS = "#worker:"
"""What the ids of workers begin with, and no session's may."""
WORKER, STOPPED = "WORKER", "STOPPED"
"""The `status` of a worker that beats or has died, and of one that has ended by itself."""


class WorkerItem(BaseModel):
    """A process that runs sessions; not among the executions, whose chunks may use all capacity.

    The keys of the table's `status-index` are its `status` and `due_at`, when its lease runs out.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "pipeline-sessions"

    worker_id = TextAttribute(hash_key=True, attr_name="session_id")
    status = TextAttribute()
    due_at = InstantAttribute()
    created_at = InstantAttribute()
    # Set by whoever declares it dead: from then on no heartbeat is accepted.
    died_at = InstantAttribute()
    draining = FlagAttribute()
    release = TextAttribute()
    sessions = NumberAttribute()
    # What others took from it while it lived, as "fence session_id".
    revoked = UnicodeSetAttribute(null=True)
    expires_at = NumberAttribute()
