"""The sessions of workers whose lease has ended: of those that died, or cannot reach the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.models import PipelineSession
from tdev_models.models.worker import WORKER

_WORKERS_A_PAGE = 25


async def is_any_gone(client: Client) -> bool:
    """Return whether the lease of any worker has ended. One Query."""
    workers, _ = await _gone(client, None, 1)
    return bool(workers)


async def of_gone_workers(
    client: Client, limit: int, start: Mapping[str, Any] | None, unreadable: list[str]
) -> tuple[list[PipelineSession], Mapping[str, Any] | None]:
    """Return sessions of such workers, keys only, and where the next page begins.

    Those that died longest ago first, each one's sessions by `created_at`. One Query for each 25
    workers, and one for each worker. Index reads: whoever uses them decides by the items.
    """
    after, within = (start or {}).get("after"), (start or {}).get("within")
    found: list[PipelineSession] = []
    workers, last = await _gone(client, after, _WORKERS_A_PAGE)
    for worker in workers:
        if within and within["worker_id"]["S"] != worker.session_id:
            within = None  # that one has come back, or another one has gone
        sessions, within = await client.sessions.page(
            worker.session_id,
            index=PipelineSession.worker_index,
            limit=limit - len(found),
            start=within,
            unreadable=unreadable,
        )
        found += sessions
        if within is not None:
            return found, {"after": after, "within": within}
        after = client.sessions.position(worker, PipelineSession.status_index)
        if len(found) >= limit:
            return found, {"after": after}
    return found, None if last is None else {"after": last}


def is_start_of_gone(client: Client, value: Any) -> bool:
    """Return whether a value of a cursor says where `of_gone_workers` can go on."""
    after = client.sessions.is_start(WORKER, PipelineSession.status_index)
    within = client.sessions.is_start(None, PipelineSession.worker_index)
    shape = {"after": lambda one: one is None or after(one), "within": within}
    return any(
        cursors.has_shape(value, {name: shape[name] for name in names})
        for names in (("after",), ("after", "within"))
    )


async def _gone(
    client: Client, start: Mapping[str, Any] | None, limit: int
) -> tuple[list[PipelineSession], Mapping[str, Any] | None]:
    return await client.sessions.page(
        WORKER,
        index=PipelineSession.status_index,
        range_condition=PipelineSession.due_at <= client.now(),
        limit=limit,
        start=start,
        unreadable=[],
    )
