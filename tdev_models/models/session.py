"""The table of pipeline sessions."""

from __future__ import annotations

from typing import Any

from tdev_models.errors import InvalidRequest
from tdev_models.models.attributes import (
    ERROR_BYTES,
    BytesAttribute,
    FlagAttribute,
    InstantAttribute,
    JSONTextAttribute,
    NumberAttribute,
    TextAttribute,
)
from tdev_models.models.base import BaseModel, TableMeta
from tdev_models.models.indexes import KeyIndex, ListIndex
from tdev_models.results import PipelineType, SessionStatus
from tdev_models.validation import (
    PARTITION_KEY_BYTES,
    above_zero,
    choice,
    json_text,
    key,
    text,
    whole,
)

_id_of_any_item = key(PARTITION_KEY_BYTES - 256)


def _session_id(field: str, value: Any) -> str:
    """Return an id that is no worker's."""
    found: str = _id_of_any_item(field, value)
    if found.startswith("#"):
        raise InvalidRequest(field, "must not begin with '#', as the ids of workers do")
    return found


class StatusIndex(ListIndex["PipelineSession"], name="status-index"):
    """Sessions of one status by `due_at`."""

    status = TextAttribute(hash_key=True)
    due_at = InstantAttribute(range_key=True)


class UserIndex(ListIndex["PipelineSession"], name="user-index"):
    """Sessions of one user by `created_at`."""

    user_id = TextAttribute(hash_key=True)
    created_at = InstantAttribute(range_key=True)


class WorkerIndex(KeyIndex["PipelineSession"], name="worker-index"):
    """Sessions that a worker runs, by `created_at`; sparse."""

    worker_id = TextAttribute(hash_key=True)
    created_at = InstantAttribute(range_key=True)


class PipelineSession(BaseModel):
    """One pipeline run.

    What callers give:
        session_id: at most 1,792 bytes, so that an agent's name fits behind it in a key.
        user_id: at most 2,048 bytes; once set, a call that names another is refused.
        project_name: at most 1,024 bytes.
        pipeline_type: SIMPLE or PRODUCTION.
        status: ACTIVE, COMPLETED, FAILED or ABANDONED.
        current_agent: at most 255 bytes.
        progress: how many of the pipeline's agents have ended.
        metadata: JSON, at most 16 KB.
        failed_agent: at most 255 bytes.
        error_message: at most 4 KB.
        budget_usd: above 0; what the agents may cost before the next one is refused.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "pipeline-sessions"
        ttl_attribute = "expires_at"

    session_id = TextAttribute(_session_id, hash_key=True)
    user_id = TextAttribute(key(), listed=True)
    project_name = TextAttribute(text(1024), listed=True)
    pipeline_type = TextAttribute(choice(PipelineType), listed=True)
    status = TextAttribute(choice(SessionStatus), listed=True)
    # What every agent changes is never listed: each write would be billed for each index too.
    current_agent = TextAttribute(text(255), listed=False)
    progress = NumberAttribute(whole(0, 99), listed=False)
    created_at = InstantAttribute(listed=True)
    last_updated = InstantAttribute(listed=False)
    # When somebody should look: at the end of a FAILED session's backoff; at an ACTIVE one once its
    # owner would have moved this, at the deadline of a running agent where that comes first, or at
    # once where it was handed back. Final ones: their end.
    due_at = InstantAttribute(listed=False)
    metadata = JSONTextAttribute(
        json_text(16 * 1024, "keep large data in executions or files"), listed=False
    )

    # Never listed: each claim, and each write under it, would be billed for each index too.
    fence = NumberAttribute(listed=False, lease=True)
    lease_owner = TextAttribute(listed=False, lease=True)
    lease_token = TextAttribute(returned=False, lease=True)
    # The owner's last write under its claim, which refuses late copies of those before.
    lease_write = TextAttribute(returned=False, lease=True)
    # Of a claim that nobody has entered yet; later its worker's lease counts.
    lease_expires = InstantAttribute(listed=False, lease=True)
    # While somebody runs it.
    worker_id = TextAttribute(returned=False, lease=True)
    # From the first claim on, until what was done without one before it is adopted.
    adopts = FlagAttribute(returned=False, lease=True)
    # Of the worker that made the last claim.
    release = TextAttribute(listed=False, lease=True)
    # Where it began again at an agent (`from_agent`): what is outdated by that.
    restarts = JSONTextAttribute(returned=False, lease=True)
    resume_count = NumberAttribute(listed=True)
    # In a row; an agent that ends takes both away, a budget that is raised the first.
    resumes_without_progress = NumberAttribute(listed=False, lease=True)
    worker_deaths = NumberAttribute(listed=False, lease=True)
    failed_agent = TextAttribute(text(255), listed=True)
    error_message = TextAttribute(text(ERROR_BYTES), listed=True)
    # The trace of the last claim's run, to which the run that resumes it is linked.
    traceparent = TextAttribute(returned=False, lease=True)
    # Instead of those, where they are encrypted.
    metadata_encrypted = BytesAttribute(returned=False)
    error_message_encrypted = BytesAttribute(returned=False)
    # The sums of the session's executions.
    input_tokens = NumberAttribute(listed=False, lease=True)
    output_tokens = NumberAttribute(listed=False, lease=True)
    cost_usd = NumberAttribute(listed=False, lease=True)
    budget_usd = NumberAttribute(above_zero, listed=False)
    # From when on the session can be taken over because an agent hangs: its timeout and a lease.
    deadline = InstantAttribute(listed=False, lease=True)
    # Of the saves without a lease: the tokens of the last two, and when the last one was made. That
    # moment never goes back, so a late copy of an earlier save changes nothing.
    previous_status = TextAttribute(returned=False)
    write_token = TextAttribute(returned=False, lease=True)
    former_token = TextAttribute(returned=False, lease=True)
    saved_at = InstantAttribute(returned=False, lease=True)
    expires_at = NumberAttribute(listed=True, returned=False)

    status_index = StatusIndex()
    user_index = UserIndex()
    worker_index = WorkerIndex()
