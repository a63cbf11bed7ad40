"""Whether somebody runs a session, and who says so for good: who is declared dead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import set_to
from tdev_models.errors import ConditionFailed, TdevError
from tdev_models.models import PipelineSession, WorkerItem
from tdev_models.models.worker import WORKER
from tdev_models.results import SessionStatus
from tdev_models.retry import Backoff, retry
from tdev_models.workers.lease import is_hung, was_handed_back


async def is_stalled(
    client: Client, session: PipelineSession, known: dict[str, bool] | None = None
) -> bool:
    """Return whether nobody seems to run an ACTIVE session, or one of its agents hangs.

    Its worker's lease ran out, its owner handed it back, nobody entered the claim in time, it has
    no lease and is too old, or a deadline has passed. One GetItem of its worker, where it has one;
    `known` are those that were read before.
    """
    if session.status != SessionStatus.ACTIVE:
        return False
    now, stalled_after = client.now(), client.settings.stalled_after_seconds
    if session.lease_token is None:
        if was_handed_back(session):
            return True
        if session.due_at is not None:
            return bool(session.due_at <= now)
        # Not written since there is a `due_at`.
        return (session.last_updated or 0) < now - stalled_after
    if is_hung(session.deadline, now):
        return True
    if session.lease_expires is not None or session.worker_id is None:
        return not _is_to_come(session.lease_expires, now, stalled_after)
    known = {} if known is None else known
    if session.worker_id not in known:
        worker = await client.workers.get(session.worker_id)
        known[session.worker_id] = worker is not None and seems_alive(client, worker)
    return not known[session.worker_id]


def seems_alive(client: Client, worker: WorkerItem) -> bool:
    """Return whether a worker's lease goes on."""
    now, longest = client.now(), client.settings.stalled_after_seconds
    beats = worker.status == WORKER and worker.died_at is None
    return beats and _is_to_come(worker.due_at, now, longest)


def _is_to_come(moment: float | None, now: float, longest: float) -> bool:
    """Return whether a lease goes on.

    One that runs out later than any lease may was made by a clock that was ahead: it is none.
    """
    return now <= (moment or 0) <= now + longest


async def declare_dead(client: Client, worker_id: str, calm_seconds: Callable[[], float]) -> bool:
    """Let no further heartbeat of a worker be accepted; return False where that may not be.

    It may not while its lease goes on, or this process must be calm, which is asked before each
    try: one may have taken as long as an outage of the store. One GetItem, and one conditional
    UpdateItem where nobody has declared it dead. Safe to send twice.
    """
    worker = await client.workers.get(worker_id)
    if worker is None or worker.status != WORKER or worker.died_at is not None:
        return True
    if seems_alive(client, worker):
        return False
    # Who stops takes its `due_at` away.
    condition = worker.is_as_read(WorkerItem.due_at)
    condition &= WorkerItem.died_at.does_not_exist()
    request = client.workers.requests.update(
        worker_id, actions=[set_to(WorkerItem.died_at, client.now())], condition=condition
    )

    async def attempt() -> bool:
        if calm_seconds():
            return False
        try:
            await client.sender.send(*request, retry_seconds=0)
        except ConditionFailed as refused:
            stored = client.workers.load(refused.item)
            return stored is None or stored.status != WORKER or stored.died_at is not None
        return True

    return await retry(attempt, client.sleep, Backoff(client.settings.retry_seconds))


async def revoke(client: Client, worker_id: str | None, session_id: str, fence: float) -> None:
    """Let a worker that may live learn, with its next heartbeat, that it has lost a session.

    One UpdateItem, of which a late copy does nothing.
    """
    if worker_id is None:
        return
    entry = {f"{int(fence)} {session_id}"}
    request = client.workers.requests.update(
        worker_id,
        actions=[WorkerItem.revoked.add(entry)],
        condition=WorkerItem.status == WORKER,
    )
    with suppress(TdevError):  # it learns of it at its next write of the session
        await client.sender.send(*request)
