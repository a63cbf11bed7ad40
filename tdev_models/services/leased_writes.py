"""Writes under a lease: each renews it, and changes nothing once it is lost."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pynamodb.expressions.update import Action

from tdev_models.errors import (
    ConditionFailed,
    Conflict,
    LeaseLost,
    Throttled,
    Unavailable,
)
from tdev_models.models import PipelineSession
from tdev_models.services.automatic import session_ended
from tdev_models.services.changes import put
from tdev_models.services.leases import Lease, lost
from tdev_models.store.client import Client, Interrupter
from tdev_models.store.colours import BlockingClient, drive
from tdev_models.types import AGENTS, SessionStatus

_log = logging.getLogger(__name__)

T = TypeVar("T")


def _renewal(client: Client) -> Action:
    return put(PipelineSession.lease_expires, client.now() + client.settings.lease_seconds)


def _touch(client: Client) -> Action:
    return put(PipelineSession.last_updated, client.now())


async def leased_update(
    client: Client, lease: Lease, actions: Sequence[Action], *, ends: SessionStatus | None = None
) -> PipelineSession:
    """Change the session that a lease owns, and with `ends` end it.

    Raises:
        LeaseLost: the session is no longer this claim's; nothing was changed.
    """
    return await client.uninterrupted(_update(client, lease, actions, ends))


async def _update(
    client: Client, lease: Lease, actions: Sequence[Action], ends: SessionStatus | None
) -> PipelineSession:
    async with turn(client, lease):
        if lease.over:
            raise lost(lease)
        now = client.now()
        changes = [put(PipelineSession.last_updated, now), *actions]
        if ends is None:
            changes.append(_renewal(client))
        else:
            changes += [
                put(PipelineSession.status, ends),
                PipelineSession.lease_token.remove(),
                PipelineSession.lease_expires.remove(),
            ]
        if ends == SessionStatus.FAILED and lease.retry_after_seconds:
            retry_at = client.now() + lease.retry_after_seconds
            changes.append(put(PipelineSession.next_retry_at, retry_at))

        async def write() -> PipelineSession:
            try:
                return await client.sessions.update(
                    lease.session_id, actions=changes, condition=lease.condition
                )
            except ConditionFailed as refused:
                found = client.sessions.load(refused.item)
                if (
                    found
                    and (found.status, found.fence) == (ends, lease.fence)
                    # Anyone may have abandoned it.
                    and (ends != SessionStatus.ABANDONED or found.last_updated == now)
                ):
                    return found  # by this very write, whose reply was lost
                raise lost(lease) from None

        session = await _while_leased(client, lease, write)
        lease.ended = ends
    if ends is not None:
        session_ended(client, session, ends)
    return session


async def leased_execution(
    client: Client, lease: Lease, agent_name: str, part: Mapping[str, Any], *, ended: bool | None
) -> None:
    """Change an agent's execution, and with it the session that a lease owns, both or none.

    `current_agent` becomes the agent; `progress` counts it once it has ended, and no more once it
    begins again.

    Raises:
        LeaseLost: the session is no longer this claim's; nothing was changed.
        ConditionFailed: the execution's condition was not met; nothing was changed.
    """
    await client.uninterrupted(_execution(client, lease, agent_name, part, ended))


async def _execution(
    client: Client, lease: Lease, agent_name: str, part: Mapping[str, Any], ended: bool | None
) -> None:
    async with turn(client, lease):
        if lease.over:
            raise lost(lease)
        agents = lease.ended_after(agent_name, ended)
        session = client.sessions.plan.update_part(
            lease.session_id,
            actions=[
                _renewal(client),
                _touch(client),
                put(PipelineSession.current_agent, agent_name),
                put(PipelineSession.progress, min(len(AGENTS), len(agents))),
            ],
            condition=lease.condition,
        )
        token = uuid.uuid4().hex

        async def write() -> None:
            try:
                await client.transact_write([session, part], token)
            except ConditionFailed as refused:
                if refused.position == 0:
                    raise lost(lease) from None
                raise

        await _while_leased(client, lease, write)
        lease.ended_agents = agents


@asynccontextmanager
async def turn(client: Client, lease: Lease | None) -> AsyncIterator[None]:
    """Keep heartbeats and the other writes of this process out: they would conflict."""
    if lease is None:
        yield
        return
    if isinstance(client, BlockingClient) and lease.turn_of == threading.get_ident():
        # Of a task in this thread's event loop, which cannot go on before this call returns.
        raise RuntimeError(
            "a blocking call met an awaitable one of the same session; "
            "use the awaitable functions in an event loop"
        )
    await client.acquire(lease.turn)
    lease.turn_of = threading.get_ident()
    try:
        yield
    finally:
        lease.turn_of = 0
        lease.turn.release()


async def _while_leased(client: Client, lease: Lease, write: Callable[[], Awaitable[T]]) -> T:
    """Write, and again until the lease would have run out.

    Only a failed condition means that the lease is lost: what was throttled, in conflict or
    without an answer is sent again, and may be.
    """
    pause = 0.05
    while True:
        try:
            result = await write()
        except (Conflict, Throttled, Unavailable):
            left = lease.renewed + client.settings.lease_seconds - time.monotonic()
            if left <= pause:
                raise
        else:
            lease.renewed, lease.last_updated = time.monotonic(), client.now()
            return result
        await client.sleep(pause)
        pause = min(2 * pause, 1.0)


class Heartbeat(threading.Thread):
    """Renews a lease every third of it, from a thread: agent code may block its own."""

    def __init__(
        self, client: Client, lease: Lease, interrupter: Interrupter | None = None
    ) -> None:
        super().__init__(name=f"tdev-heartbeat-{lease.session_id}", daemon=True)
        self._client, self._lease = BlockingClient.of(client.settings), lease
        self._interrupter, self._stopped = interrupter, threading.Event()
        self.lost: LeaseLost | None = None

    def run(self) -> None:
        """Beat until stopped, or until the lease is lost."""
        while not self._stopped.wait(self._client.settings.lease_seconds / 3):
            try:
                drive(self._beat())
            except LeaseLost as refused:
                self.lost = refused
                if self._interrupter:
                    self._interrupter.fire()
                return
            except Exception as error:  # of a hook, say: the lease must not run out for it
                _log.warning("heartbeat of %s failed: %s", self._lease.session_id, error)

    async def _beat(self) -> None:
        client, lease = self._client, self._lease
        with lease.turn:
            if lease.over or self._stopped.is_set():
                return
            now, actions = client.now(), [_renewal(client)]
            touched = lease.last_updated < now - client.settings.stalled_after_seconds / 2
            if touched:
                actions.append(_touch(client))
            request = client.sessions.plan.update(
                lease.session_id, actions=actions, condition=lease.condition
            )
            try:
                await client.send(*request)
            except ConditionFailed:
                raise lost(lease) from None
            lease.renewed = time.monotonic()
            if touched:
                lease.last_updated = now

    def stop(self) -> None:
        """Beat no more; does not wait for a beat under way."""
        self._stopped.set()
