"""The table of pipeline sessions."""

from __future__ import annotations

from pynamodb.attributes import UnicodeAttribute
from pynamodb.indexes import GlobalSecondaryIndex

from tdev_models.models.attributes import InstantAttribute, JSONTextAttribute, NumberAttribute
from tdev_models.models.base import BaseModel, TableMeta, projecting

# What lists show. Never a lease attribute: a heartbeat would then be billed for each index too.
_LISTED = (
    "user_id",
    "project_name",
    "pipeline_type",
    "status",
    "current_agent",
    "progress",
    "created_at",
    "last_updated",
    "resume_count",
    "failed_agent",
    "error_message",
    "expires_at",
)


class StatusIndex(GlobalSecondaryIndex["PipelineSession"]):
    """Sessions of one status by `last_updated`."""

    class Meta:
        """How the index is stored."""

        index_name = "status-index"
        projection = projecting(_LISTED, "status", "last_updated")

    status = UnicodeAttribute(hash_key=True)
    last_updated = InstantAttribute(range_key=True)


class UserIndex(GlobalSecondaryIndex["PipelineSession"]):
    """Sessions of one user by `created_at`."""

    class Meta:
        """How the index is stored."""

        index_name = "user-index"
        projection = projecting(_LISTED, "user_id", "created_at")

    user_id = UnicodeAttribute(hash_key=True)
    created_at = InstantAttribute(range_key=True)


class PipelineSession(BaseModel):
    """One pipeline run."""

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "pipeline-sessions"
        ttl_attribute = "expires_at"

    session_id = UnicodeAttribute(hash_key=True)
    user_id = UnicodeAttribute(null=True)
    project_name = UnicodeAttribute(null=True)
    pipeline_type = UnicodeAttribute(null=True)
    status = UnicodeAttribute(null=True)
    current_agent = UnicodeAttribute(null=True)
    progress = NumberAttribute(null=True)
    created_at = InstantAttribute(null=True)
    last_updated = InstantAttribute(null=True)
    metadata = JSONTextAttribute(null=True)

    fence = NumberAttribute(null=True)
    lease_owner = UnicodeAttribute(null=True)
    lease_token = UnicodeAttribute(null=True)
    lease_expires = InstantAttribute(null=True)
    resume_count = NumberAttribute(null=True)
    next_retry_at = InstantAttribute(null=True)
    failed_agent = UnicodeAttribute(null=True)
    error_message = UnicodeAttribute(null=True)
    previous_status = UnicodeAttribute(null=True)
    write_token = UnicodeAttribute(null=True)
    expires_at = NumberAttribute(null=True)

    status_index = StatusIndex()
    user_index = UserIndex()

    _lease_attributes = frozenset(
        {"fence", "lease_owner", "lease_token", "lease_expires", "write_token"}
    )
