"""Who owns a session: claims, leased writes, heartbeats.

Two workers and one lease in time::

    A  claim(fence 1, token a) .. heartbeat .. frozen ...................... write: refused
    B                                      lease runs out   claim(fence 2, token b) .. write

The clock only says when B may try. What decides is the condition of each write: a claim requires
the session as it was read, every write of an owner requires its own fence and token.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.errors import (
    ConditionFailed,
    Conflict,
    LeaseLost,
    TdevError,
    Throttled,
    Unavailable,
)
from tdev_models.models import PipelineSession
from tdev_models.services.automatic import session_claimed, session_ended
from tdev_models.services.changes import is_still, put, put_all, put_once
from tdev_models.store.client import Client, Interrupter
from tdev_models.store.colours import BlockingClient, drive
from tdev_models.types import SessionStatus

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Lease:
    """One claim of one session by this process.

    Attributes:
        fence: the number of this claim; it only rises.
        token: the secret of this claim.
        ended_agents: the agents that have ended, which `progress` counts.
        over: the session was ended under this lease; no more heartbeats.
    """

    session_id: str
    fence: int
    token: str
    renewed: float
    last_updated: float
    ended_agents: set[str] = field(default_factory=set)
    failed_agent: str | None = None
    over: bool = False
    turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def condition(self) -> Condition:
        """That the session is still this claim's."""
        mine: Condition = is_still(PipelineSession.fence, self.fence)
        mine &= is_still(PipelineSession.lease_token, self.token)
        return mine

    @property
    def progress(self) -> int:
        """How many agents have ended, at most 9."""
        return min(9, len(self.ended_agents))


def worker_name() -> str:
    """Return the name of this process, as leases and attempts show it."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_stalled(session: PipelineSession, now: float, stalled_after: float) -> bool:
    """Return whether an ACTIVE session's owner seems gone: its lease ran out, or it is too old."""
    if session.status != SessionStatus.ACTIVE:
        return False
    if session.lease_token is not None:
        return (session.lease_expires or 0) < now
    return (session.last_updated or 0) < now - stalled_after


async def claim(
    client: Client, seen: PipelineSession, values: Mapping[str, Any], *, resumed: bool
) -> Lease | PipelineSession:
    """Claim a session as it was read; return the lease, or the session that was in the way.

    A session that was not there is made, with the checked fields.

    Raises:
        TdevError: the request failed; the claim may have happened and will run out.
    """
    token, now = uuid.uuid4().hex, client.now()
    fence = int(seen.fence or 0) + 1
    actions = [
        put(PipelineSession.status, SessionStatus.ACTIVE),
        put(PipelineSession.fence, fence),
        put(PipelineSession.lease_token, token),
        put(PipelineSession.lease_owner, worker_name()),
        put(PipelineSession.lease_expires, now + client.settings.lease_seconds),
        put(PipelineSession.last_updated, now),
        put_once(PipelineSession.created_at, now),
        put_once(PipelineSession.progress, 0),
        *put_all(PipelineSession, values),
        PipelineSession.next_retry_at.remove(),
    ]
    if resumed:
        actions.append(put(PipelineSession.resume_count, int(seen.resume_count or 0) + 1))
    try:
        await client.sessions.update(seen.session_id, actions=actions, condition=unchanged(seen))
    except ConditionFailed as refused:
        found = client.sessions.load(refused.item)
        if found is None or found.lease_token != token:
            return found or seen
        # This very claim, whose first reply was lost.
    session_claimed(client, seen, values.get("pipeline_type"), resumed=resumed)
    return Lease(seen.session_id, fence, token, time.monotonic(), now)


def unchanged(seen: PipelineSession) -> Condition:
    """Return the condition that nobody claimed, ended or refreshed a session since it was read."""
    same: Condition = is_still(PipelineSession.status, seen.status)
    same &= is_still(PipelineSession.fence, seen.fence)
    if seen.status != SessionStatus.ACTIVE:
        return same
    if seen.lease_token is not None:  # a heartbeat may have come in between
        same &= is_still(PipelineSession.lease_expires, seen.lease_expires)
    else:
        same &= is_still(PipelineSession.last_updated, seen.last_updated)
    return same


def renewal(client: Client, lease: Lease, *, touched: bool) -> list[Action]:
    """Return the actions that extend a lease; `touched` says that the session itself changed."""
    now = client.now()
    actions = [put(PipelineSession.lease_expires, now + client.settings.lease_seconds)]
    if touched or lease.last_updated < now - client.settings.stalled_after_seconds / 2:
        actions.append(put(PipelineSession.last_updated, now))
        lease.last_updated = now
    return actions


async def leased_update(
    client: Client, lease: Lease, actions: Sequence[Action], *, ends: SessionStatus | None = None
) -> PipelineSession:
    """Change the session that a lease owns, and with `ends` end it.

    Raises:
        LeaseLost: the session is no longer this claim's; nothing was changed.
    """
    if ends is None:
        changes = [*renewal(client, lease, touched=True), *actions]
    else:
        changes = [
            put(PipelineSession.status, ends),
            put(PipelineSession.last_updated, client.now()),
            PipelineSession.lease_token.remove(),
            PipelineSession.lease_expires.remove(),
            *actions,
        ]

    async def write() -> PipelineSession:
        try:
            return await client.sessions.update(
                lease.session_id, actions=changes, condition=lease.condition
            )
        except ConditionFailed as refused:
            found = client.sessions.load(refused.item)
            if found and ends and found.status == ends and found.fence == lease.fence:
                return found  # this claim's own end, whose reply was lost
            raise lost(lease) from None

    session: PipelineSession = await in_turn(client, lease, write)
    lease.over = lease.over or ends is not None
    if ends is not None:
        session_ended(client, session)
    return session


async def leased_transaction(
    client: Client, lease: Lease, actions: Sequence[Action], part: Mapping[str, Any]
) -> None:
    """Change the session that a lease owns and one other item, both or none.

    Raises:
        LeaseLost: the session is no longer this claim's; nothing was changed.
        ConditionFailed: the other item's condition was not met; nothing was changed.
    """
    session = client.sessions.plan.update_part(
        lease.session_id,
        actions=[*renewal(client, lease, touched=True), *actions],
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

    await in_turn(client, lease, write)


async def in_turn(client: Client, lease: Lease, write: Callable[[], Any]) -> Any:
    """Write while no heartbeat is under way, and again until the lease would have run out.

    Only a failed condition means that the lease is lost: what was throttled, in conflict or
    without an answer is sent again, and may be.
    """
    await client.acquire(lease.turn)
    try:
        pause = 0.05
        while True:
            try:
                result = await write()
                lease.renewed = time.monotonic()
                return result
            except (Conflict, Throttled, Unavailable):
                left = lease.renewed + client.settings.lease_seconds - time.monotonic()
                if left <= pause:
                    raise
            await client.sleep(pause)
            pause = min(2 * pause, 1.0)
    finally:
        lease.turn.release()


def lost(lease: Lease) -> LeaseLost:
    """Return the error of a write under a lease that is no more."""
    return LeaseLost(
        f"session {lease.session_id}: claim {lease.fence} was taken over or ended; "
        "nothing was changed, stop working on it"
    )


class Heartbeat(threading.Thread):
    """Renews a lease every third of it, from a thread: agent code may block its own."""

    def __init__(self, client: Client, lease: Lease, interrupter: Interrupter) -> None:
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
                self._interrupter.fire()
                return
            except TdevError as error:
                _log.warning("heartbeat of %s failed: %s", self._lease.session_id, error)

    async def _beat(self) -> None:
        with self._lease.turn:
            if self._lease.over or self._stopped.is_set():
                return
            try:
                await self._client.sessions.update(
                    self._lease.session_id,
                    actions=renewal(self._client, self._lease, touched=False),
                    condition=self._lease.condition,
                )
            except ConditionFailed:
                raise lost(self._lease) from None
            self._lease.renewed = time.monotonic()

    def stop(self) -> None:
        """Beat no more; does not wait for a beat under way."""
        self._stopped.set()


_NONE: Mapping[str, Lease] = MappingProxyType({})
_carried: ContextVar[Mapping[str, Lease]] = ContextVar("tdev_leases", default=_NONE)


def carried(session_id: str | None) -> Lease | None:
    """Return the lease that calls on a session carry here, in this task or thread."""
    lease = _carried.get().get(session_id or "")
    return None if lease is None or lease.over else lease


def carry(lease: Lease) -> None:
    """Let calls on the lease's session carry it from here on."""
    _carried.set({**_carried.get(), lease.session_id: lease})


def carry_no_more(lease: Lease) -> None:
    """Let calls on the lease's session carry it no more."""
    _carried.set({key: one for key, one in _carried.get().items() if one is not lease})
