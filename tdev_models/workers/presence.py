"""The worker that this process is: one heartbeat says that it lives, however many sessions it runs.

An item of its own says when its lease ends. Whoever wants one of its sessions must first declare it
dead, by a write that requires the lease as it was read; a heartbeat that comes later is refused.
The worker then registers under a new id, and keeps those of its sessions that nobody has taken.
Fences protect what is stored in any case; presence only says whom recovery may take over.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import ClassVar, TypeVar

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import set_if_absent, set_or_remove, set_to
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.errors import ConditionFailed, LeaseLost, TdevError, logged
from tdev_models.forks import after_fork_in_child
from tdev_models.models import PipelineSession, WorkerItem
from tdev_models.models.worker import STOPPED, WORKER, WORKER_IDS
from tdev_models.results import SessionStatus
from tdev_models.retry import DICE, Backoff, retry
from tdev_models.settings import Settings
from tdev_models.workers.lease import Lease, lease_lost_error, worker_name

T = TypeVar("T")

_log = logging.getLogger(__name__)

# So many settings have a worker each before those that have ended are forgotten.
_MOST_KEPT = 256

KEPT_SECONDS = 3600.0
"""How long the item of a dead worker stays, and its sessions are looked for."""
CALM_LEASES = 1.0
"""How long after it registered, or could not renew its lease, a worker declares nobody dead."""


class _DeclaredDead(Exception):
    pass


class Presence:
    """One worker, and what it runs; made by `of`.

    Attributes:
        worker_id: the key of its item; changes when it was declared dead.
        draining: of the whole process: it begins no further agent, and claims nothing.
    """

    draining: ClassVar[bool] = False
    _all: ClassVar[dict[Settings, Presence]] = {}
    _stopping: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._interval = settings.heartbeat_seconds
        self.worker_id = self._new_id = ""
        self._registration: SharedFuture | None = None
        self._registering_thread = 0
        self._state = threading.Lock()  # never held while waiting
        self._beats, self._users = False, 0
        self._leases: dict[tuple[str, int], Lease] = {}
        self._detached = deque[Lease]()
        self._unsettled = deque[Callable[[Client], Awaitable[None]]]()
        self._checks = list[Callable[[], None]]()
        self._handled: set[str] = set()
        self._due_at = self._calm_until = 0.0
        self._started = self._renewed = self._last_used = -math.inf  # monotonic

    @classmethod
    def of(cls, settings: Settings) -> Presence:
        """Return the process's worker under some settings."""
        presence = cls._all.get(settings)
        if presence is None:
            if len(cls._all) >= _MOST_KEPT:
                for key, one in [*cls._all.items()]:
                    if not (one._beats or one._users):
                        cls._all.pop(key, None)
            presence = cls._all.setdefault(settings, cls(settings))
        return presence

    @classmethod
    def all_held(cls) -> list[Lease]:
        """Return the leases that this process keeps alive."""
        return [
            lease
            for presence in [*cls._all.values()]
            for lease in [*presence._leases.values()]
            if not (lease.over or lease.lost or lease.lease_expires)
        ]

    @classmethod
    def all_busy(cls) -> list[Presence]:
        """Return the workers that beat, and run or look for something."""
        return [one for one in [*cls._all.values()] if one._beats and not one.is_idle]

    @property
    def name(self) -> str:
        """What leases show as their owner: host, process and a random part."""
        return self.worker_id.removeprefix(WORKER_IDS)

    def calm_seconds(self, client: Client, *, from_start: bool) -> float:
        """Return how long it must not declare a worker dead yet, by what a client sees, too.

        A store that was out of reach, or a freeze of this process, makes every lease seem over. Who
        looks for the dead `from_start` counts a process that has just begun among those that cannot
        know; who asks for one session does not.
        """
        now, calm_seconds = time.monotonic(), CALM_LEASES * self._settings.lease_seconds
        until = client.sender.long_silence_ended + calm_seconds
        if not self._beats:
            return calm_seconds if from_start else max(0.0, until - now)
        if self._is_long(now - self._renewed):
            return calm_seconds
        if from_start:
            until = max(until, self._started + calm_seconds)
        return max(0.0, until - now, self._calm_until - now)

    def _is_long(self, seconds: float) -> bool:
        return seconds > self._settings.long_silence_seconds

    @property
    def is_idle(self) -> bool:
        """Whether it beats, and runs nothing."""
        with self._state:
            runs = any(not (lease.over or lease.lost) for lease in self._leases.values())
            return self._beats and not (self._users or runs or self._unsettled)

    async def join(self, client: Client) -> None:
        """Register the worker, if it is not; it stays until `leave`, or while it runs sessions.

        Raises:
            TdevError: it could not be registered.
        """
        with self._state:
            self._users += 1
        try:
            if not self._beats:
                await self._begin(client)
        except BaseException:
            self.leave()
            raise

    async def _begin(self, client: Client) -> None:
        if not client.in_event_loop and self._registering_thread == threading.get_ident():
            # Of a task in this thread's event loop, which cannot go on before this call returns.
            raise RuntimeError(
                "a blocking call met an awaitable one that makes this process a worker; "
                "use the awaitable functions in an event loop"
            )
        deadline = time.monotonic() + self._settings.retry_seconds
        while not self._beats:
            with self._state:
                others, mine = self._registration, SharedFuture()
                if others is None:
                    self._registration = mine
            if others is not None:
                try:
                    left = (
                        max(0.0, deadline - time.monotonic()) + self._settings.longest_try_seconds
                    )
                    if not await client.wait_for(others, left):
                        self._forget(others)  # its event loop is blocked, or was stopped
                except TdevError:
                    if time.monotonic() >= deadline:  # else this call may be luckier
                        raise
                await client.turn()  # a thousand may have been woken at once
                continue
            error: TdevError | None = None
            try:
                await self._register_and_beat(client, deadline - time.monotonic())
            except TdevError as refused:
                error = refused
                raise
            except _DeclaredDead:
                continue  # of an earlier call without an answer; the next try has another id
            finally:
                self._forget(mine)
                mine.settle(error)

    def _forget(self, registration: SharedFuture) -> None:
        with self._state:
            if self._registration is registration:
                self._registration = None

    async def _register_and_beat(self, client: Client, retry_seconds: float) -> None:
        self._registering_thread = threading.get_ident()
        try:
            await self._register(client, retry_seconds)
        finally:
            self._registering_thread = 0
        with self._state:
            if self._beats:  # another call has done it meanwhile
                return
            self._started, self._beats = time.monotonic(), True
        try:
            self._start()
        except BaseException:  # too many threads, say
            self._beats = False
            raise

    def leave(self) -> None:
        """End what `join` began."""
        with self._state:
            self._users -= 1
            self._last_used = time.monotonic()

    def hold(self, lease: Lease, worker_id: str) -> None:
        """Keep a session's lease alive, which names this worker by an id, until it is over."""
        with self._state:
            self._leases[lease.session_id, lease.fence] = lease
            if worker_id != self.worker_id:
                self._detached.append(lease)

    def settle(self, finish: Callable[[Client], Awaitable[None]]) -> None:
        """Let the heartbeat's thread do what must become of a claim, each beat until it is done."""
        with self._state:
            self._unsettled.append(finish)

    @contextmanager
    def calling_each_beat(self, check: Callable[[], None]) -> Iterator[None]:
        """Let the heartbeat's thread call something at each beat, as long as the block goes on."""
        self._checks.append(check)
        try:
            yield
        finally:
            self._checks.remove(check)

    # ------------------------------------------------------------------ the thread

    def _start(self) -> None:
        # A thread: agent code may block its own.
        client = BlockingClient.for_settings(self._settings)
        work = lambda: drive(self.beat(client))  # noqa: E731
        threading.Thread(target=work, name="tdev-worker", daemon=True).start()

    async def beat(self, client: Client) -> None:
        """Renew the worker's lease again and again, until it has had nothing to run for a lease."""
        pause = self._pause()
        while True:
            await client.sleep(pause)
            pause = self._pause()
            worker_id = self.worker_id
            if not self._beats:
                return
            try:
                if self._has_ended(client.now()):
                    break
                await self._renew(client)
                # What named a former id is to be this worker's again.
                await self._work_off(self._detached, partial(self._attach, client))
                await self._work_off(self._unsettled, lambda finish: finish(client))
                if self._detached:  # there were too many for the time of a beat
                    pause = 0.0
            except Exception as error:  # of a hook, say: the lease must not run out for it
                _log.warning("heartbeat of %s failed: %s", self.name, logged(error))
            self._check_touch()
            for check in [*self._checks]:
                check()
        await _stop(client, worker_id)

    def _pause(self) -> float:
        return self._interval * DICE.uniform(0.9, 1.1)

    def _has_ended(self, now: float) -> bool:
        with self._state:
            self._leases = {key: lease for key, lease in self._leases.items() if lease.lives(now)}
            idle = time.monotonic() - self._last_used > self._settings.lease_seconds
            is_used = self._users or self._leases or self._unsettled or not idle
            self._beats = self._beats and bool(is_used)
            return not self._beats

    async def _renew(self, client: Client) -> None:
        try:
            if self._due_at - client.now() > 2 * self._settings.lease_seconds:
                raise _DeclaredDead  # the clock was set back; others would take the lease for wrong
            await self._beat(client, self.worker_id, self._interval)
        except _DeclaredDead:
            if not self._beats:
                return  # this process has stopped it meanwhile
            _log.warning("worker %s was declared dead, or its clock was set back", self.name)
            await self._register(client, self._interval)

    async def _register(self, client: Client, retry_seconds: float) -> None:
        """Store the worker under a new id.

        Claims name the former one until it is stored: of a worker that nobody knows, nobody would
        look for the sessions before they are due.
        """
        worker_id = self._new_id = self._new_id or _new_id()
        self._due_at, self._handled = 0.0, set()
        try:
            await self._beat(client, worker_id, retry_seconds)
        except _DeclaredDead:  # it had been stored, and its reply was lost
            self._new_id = ""
            raise
        with self._state:
            self.worker_id, self._new_id = worker_id, ""
            self._detached = deque(self._leases.values())

    async def _beat(self, client: Client, worker_id: str, retry_seconds: float) -> None:
        now, sent = client.now(), time.monotonic()
        due_at = max(round(now + self._settings.lease_seconds, 6), round(self._due_at + 1e-6, 6))
        handled, held = set(self._handled), len(self._leases)
        actions = [
            set_to(WorkerItem.status, WORKER),
            set_to(WorkerItem.due_at, due_at),
            set_if_absent(WorkerItem.created_at, now),
            set_to(WorkerItem.expires_at, int(due_at + KEPT_SECONDS)),
            set_to(WorkerItem.sessions, held),
            set_to(WorkerItem.draining, self.draining),
            set_or_remove(WorkerItem.release, self._settings.release),
            *([WorkerItem.revoked.delete(handled)] if handled else []),
        ]
        # A late copy of an earlier one never lowers it.
        later: Condition = WorkerItem.due_at.does_not_exist() | (WorkerItem.due_at < due_at)
        if self._due_at:  # it was there: what has expired since may have been declared dead
            later &= WorkerItem.status == WORKER
        update = partial(
            client.workers.update,
            worker_id,
            actions=actions,
            condition=_beats_still() & later,
            retry_seconds=0,
        )
        try:
            stored = await retry(update, client.sleep, Backoff(retry_seconds))
        except ConditionFailed as refused:
            found = client.workers.load(refused.item)
            if found is None or found.died_at is not None or found.status != WORKER:
                raise _DeclaredDead from None
            stored = found  # by this very beat, whose first reply was lost
        self._due_at = stored.due_at or due_at
        if self._is_long(sent - self._renewed):
            calm = CALM_LEASES * self._settings.lease_seconds + self._interval
            self._calm_until = time.monotonic() + calm if self._beats else 0.0
        self._renewed = sent  # others see a lease that began then
        self._handled = set(stored.revoked or ())
        for entry in self._handled:
            fence, _, session_id = entry.partition(" ")
            self._lose_up_to(session_id, int(fence))

    def _lose_up_to(self, session_id: str, fence: int) -> None:
        with self._state:
            lost = [
                lease
                for (held, number), lease in self._leases.items()
                if held == session_id and number <= fence
            ]
        for lease in lost:
            lease.lose(lease_lost_error(lease))

    async def _attach(self, client: Client, lease: Lease) -> None:
        if not lease.lives(client.now()):
            return
        request = client.sessions.requests.update(
            lease.session_id, actions=owned_by(self.worker_id), condition=lease.condition
        )
        try:
            await client.sender.send(*request, retry_seconds=0)
        except ConditionFailed as refused:
            stored = client.sessions.load(refused.item)
            # It may have ended under this very claim, at this moment.
            if (
                stored is None
                or stored.fence != lease.fence
                or stored.status == SessionStatus.ABANDONED
            ):
                lease.lose(lease_lost_error(lease))

    async def _work_off(self, queue: deque[T], do: Callable[[T], Awaitable[None]]) -> None:
        """Do one after the other, until it is time for the next beat."""
        while queue:
            try:
                await do(queue[0])
            except BaseException:
                queue.rotate(-1)  # the others may fare better
                raise
            queue.popleft()
            if time.monotonic() - self._renewed > self._interval:
                return

    def _check_touch(self) -> None:
        silent = time.monotonic() - self._renewed
        if not self._settings.cancel_when_out_of_touch or silent < self._settings.lease_seconds:
            return
        with self._state:
            leases = list(self._leases.values())
        for lease in leases:
            lease.lose(
                LeaseLost(
                    f"session {lease.session_id}: this worker could not renew its lease for "
                    f"{silent:.0f} s, and the setting cancel_when_out_of_touch is on"
                )
            )


def owned_by(worker_id: str) -> list[Action]:
    """Return the actions that make a session a worker's."""
    return [
        set_to(PipelineSession.worker_id, worker_id),
        set_to(PipelineSession.lease_owner, worker_id.removeprefix(WORKER_IDS)),
    ]


def _new_id() -> str:
    return f"{WORKER_IDS}{worker_name()}:{uuid.uuid4().hex[:8]}"


def _beats_still() -> Condition:
    """Return the condition that a worker is new, or was neither stopped nor declared dead."""
    beats: Condition = WorkerItem.died_at.does_not_exist()
    beats &= WorkerItem.status.does_not_exist() | (WorkerItem.status == WORKER)
    return beats


async def _stop(client: Client, worker_id: str) -> None:
    """Say that a worker has ended by itself, so that nobody looks for its sessions."""
    actions = [set_to(WorkerItem.status, STOPPED), WorkerItem.due_at.remove()]
    request = client.workers.requests.update(worker_id, actions=actions, condition=_beats_still())
    with suppress(TdevError):  # then its lease runs out
        await client.sender.send(*request, retry_seconds=0)


def stop_idle() -> None:
    """Say that this process's workers have ended, but those that run something.

    At the end of the process it waits for what a drain is saying, which would else be cut off.
    """
    with Presence._stopping:
        for settings, presence in [*Presence._all.items()]:
            if presence.is_idle:
                presence._beats = False
                drive(_stop(BlockingClient.for_settings(settings), presence.worker_id))


atexit.register(stop_idle)


def _after_fork() -> None:
    Presence._all.clear()
    Presence.draining, Presence._stopping = False, threading.Lock()


after_fork_in_child(_after_fork)
