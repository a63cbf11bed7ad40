"""Who works: the processes that run sessions."""

from __future__ import annotations

from tdev_models import validation
from tdev_models.dynamodb import cursors
from tdev_models.dynamodb.client import Client
from tdev_models.models import PipelineSession, WorkerItem
from tdev_models.models.worker import WORKER, WORKER_IDS
from tdev_models.results import Page, Worker as Worker, WorkerState
from tdev_models.workers.liveness import seems_alive

_PAGE = validation.whole(1, 100)


async def list_workers(
    client: Client, *, limit: int = 100, cursor: str | None = None
) -> Page[Worker]:
    """Return a page of the workers, those that beat last first, and of those that died in the hour.

    One Query on status-index, which lags a moment, and one TransactGetItems, so each is as it was
    at one moment. Workers that have ended by themselves are not among them.

    Args:
        limit: 1..100 workers.
        cursor: of the page before.

    Raises:
        InvalidRequest: limit out of range, or a cursor of another query.
    """
    _PAGE("limit", limit)
    query = ("list_workers", client.sessions.name)
    index = PipelineSession.status_index
    found, last = await client.sessions.page(
        WORKER,
        index=index,
        limit=limit,
        newest_first=True,
        start=cursors.decode(query, cursor, client.sessions.is_start(WORKER, index)),
        unreadable=[],
    )
    keys = [(one.session_id,) for one in found]
    stored = await client.workers.get_many(keys, unreadable=[])
    return Page(
        (_result(client, one) for one in stored if one is not None and one.status == WORKER),
        cursors.encode(query, last) if last else None,
    )


def _result(client: Client, worker: WorkerItem) -> Worker:
    state = WorkerState.DRAINING if worker.draining else WorkerState.ALIVE
    if worker.died_at is not None:
        state = WorkerState.DEAD
    elif not seems_alive(client, worker):
        state = WorkerState.SILENT
    name = worker.worker_id.removeprefix(WORKER_IDS)
    return Worker(
        name=name,
        host=name.rsplit(":", 2)[0],
        state=state,
        started_at=worker.created_at,
        lease_expires=worker.due_at,
        died_at=worker.died_at,
        release=worker.release,
        sessions=int(worker.sessions or 0),
    )
