"""What rows of earlier releases lack, for `tdev migrate backfill TABLE module:function`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdev_models.migrations.row_checks import Row

_STALLED_AFTER_SECONDS = 3600


def session_due_at(row: Row) -> Mapping[str, Any] | None:
    """Return the `due_at` by which `status-index` finds a session: of `pipeline-sessions`.

    That of an ACTIVE session is when its owner's lease ends, or an hour after its last write; of
    any other, its last write.
    """
    status = row.get("status", {}).get("S")
    if status is None or "due_at" in row or row["session_id"]["S"].startswith("#"):
        return None  # what begins with '#' is a worker
    if status == "ACTIVE" and "lease_expires" in row:
        return {"due_at": row["lease_expires"]}
    if "last_updated" not in row:
        return None
    at = float(row["last_updated"]["N"]) + (_STALLED_AFTER_SECONDS if status == "ACTIVE" else 0)
    return {"due_at": {"N": f"{at:.6f}".rstrip("0").rstrip(".")}}


def execution_failed_at(row: Row) -> Mapping[str, Any] | None:
    """Return the `failed_at` by which `failure-index` finds a failure: of `agent-executions`."""
    failed = row.get("status", {}).get("S") == "FAILED"
    if not failed or "failed_at" in row or "end_time" not in row:
        return None
    return {"failed_at": row["end_time"]}
