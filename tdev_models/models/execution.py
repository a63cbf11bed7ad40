"""The table of agent executions."""

from __future__ import annotations

from pynamodb.attributes import BinaryAttribute, BooleanAttribute, UnicodeAttribute
from pynamodb.indexes import GlobalSecondaryIndex

from tdev_models.models.attributes import (
    AttemptsAttribute,
    InstantAttribute,
    JSONTextAttribute,
    NumberAttribute,
)
from tdev_models.models.base import BaseModel, TableMeta, projecting

# What lists show: all but payloads, attempts and the write token.
_LISTED = (
    "project_id",
    "status",
    "start_time",
    "end_time",
    "error_message",
    "retry_count",
    "variant",
    "critical",
    "fence",
    "expires_at",
)


class ProjectIndex(GlobalSecondaryIndex["AgentExecution"]):
    """Executions of one project by `start_time`."""

    class Meta:
        """How the index is stored."""

        index_name = "project-index"
        projection = projecting(_LISTED, "project_id", "start_time")

    project_id = UnicodeAttribute(hash_key=True)
    start_time = InstantAttribute(range_key=True)


class StatusIndex(GlobalSecondaryIndex["AgentExecution"]):
    """Ended executions of one status by `end_time`."""

    class Meta:
        """How the index is stored."""

        index_name = "status-index"
        projection = projecting(_LISTED, "status", "end_time")

    status = UnicodeAttribute(hash_key=True)
    end_time = InstantAttribute(range_key=True)


class AgentExecution(BaseModel):
    """One agent's work in one run."""

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "agent-executions"
        ttl_attribute = "expires_at"

    execution_id = UnicodeAttribute(hash_key=True)
    agent_name = UnicodeAttribute(range_key=True)
    project_id = UnicodeAttribute(null=True)
    status = UnicodeAttribute(null=True)
    start_time = InstantAttribute(null=True)
    end_time = InstantAttribute(null=True)
    input_data = JSONTextAttribute(null=True)
    output_data = JSONTextAttribute(null=True)
    error_message = UnicodeAttribute(null=True)
    retry_count = NumberAttribute(null=True)

    fence = NumberAttribute(null=True)
    variant = UnicodeAttribute(null=True)
    # False where the session went on after this agent failed.
    critical = BooleanAttribute(null=True)
    attempts = AttemptsAttribute(null=True)
    write_token = UnicodeAttribute(null=True)
    # Where a payload is too large to stand in the item: the envelope of its chunks.
    input_ref = UnicodeAttribute(null=True)
    output_ref = UnicodeAttribute(null=True)
    # Of a chunk item alone.
    chunk = BinaryAttribute(legacy_encoding=False, null=True)
    expires_at = NumberAttribute(null=True)

    project_index = ProjectIndex()
    status_index = StatusIndex()

    _lease_attributes = frozenset({"fence", "write_token"})
