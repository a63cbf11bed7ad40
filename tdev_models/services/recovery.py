"""Resume every session that failed or stalled, or give it up."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import decrypted_result, shown_field
from tdev_models.errors import (
    ConditionFailed,
    ConfigurationError,
    Conflict,
    InvalidRequest,
    PayloadDamaged,
    TdevError,
    Throttled,
    Unavailable,
    logged,
    shown,
)
from tdev_models.models import PipelineSession
from tdev_models.results import Session, SessionStatus, Undecrypted
from tdev_models.retry import DICE
from tdev_models.services.due import Bounds, is_due
from tdev_models.services.due_queue import DueQueue, Turn
from tdev_models.services.resume import Resume, Runner, check_runner, run, try_to_resume
from tdev_models.services.sessions import abandon, real_error, shortened
from tdev_models.services.signal_handlers import handlers_code, was_raised_by
from tdev_models.services.signs_of_life import shows_life
from tdev_models.services.usage import is_spent
from tdev_models.workers.budget import is_suspect, resumes_in_vain
from tdev_models.workers.claims import may_take_over, unchanged
from tdev_models.workers.leased_writes import leased_update
from tdev_models.workers.presence import Presence
from tdev_models.workers.releases import why_too_old

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 3600.0
_IDS_KEPT = 10_000
# The store's trouble, or this worker's: no failure of the session.
_NOT_THE_SESSIONS = (ConfigurationError, Conflict, Throttled, Unavailable)


class Event(Protocol):
    """What tells a worker to stop: `threading.Event`, `asyncio.Event` and the like."""

    def is_set(self) -> bool:
        """Return whether to stop."""


@dataclass
class Recovery:
    """What a worker did: ids of sessions by how they ended, the last 10,000 of each.

    Lost: another worker was quicker or took it over, or the store failed while it was read, run or
    ended: it was left or handed back, and will be found again. Unreadable (all of them, each once):
    the session, or an output that it needs, is not what this release writes; it is left as it is.
    """

    completed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


async def recover_sessions(
    client: Client,
    runner: Runner,
    *,
    older_than: Any = None,
    max_attempts: int = 12,
    backoff_seconds: float = 30.0,
    concurrency: int = 1,
    stop: Event | None = None,
    poll_seconds: float | None = None,
    accepts: Callable[[Session], bool] | None = None,
) -> Recovery:
    """Resume every failed or stalled session, longest due first, and return what came of them.

    Any number of workers may do so at once; each takes a page of 100 in random order. A session
    whose runner raises is FAILED and waits `backoff_seconds`, doubled with each resume in vain (at
    most an hour), of which up to half is left out at random. One that was resumed `max_attempts`
    times in a row without an agent ending is ABANDONED, with the last error as the reason: by
    default after three hours of backoff at least. One whose budget is spent stays FAILED then. What
    the store or this worker causes counts for nothing: throttling, outages, missing permissions,
    sessions handed back, and the death of a worker with its other sessions. A session that two
    workers in a row died of runs alone.

    End a worker by `stop`, Ctrl-C, cancellation or a signal handler that raises SystemExit: but for
    `stop`, what it runs is handed back (blocking with concurrency, in other threads than the main
    one: run to its end). A `sys.exit` in the code of a runner fails its session, and no more.

    Args:
        runner: called with a `Resume` inside its block, as by `resume_pipeline`.
        older_than: as for `get_failed_sessions`.
        max_attempts: how often in a row one session may be resumed without an agent ending.
        backoff_seconds: the longest wait after the first failure.
        concurrency: how many sessions at once; blocking, each in a thread.
        stop: an event; once set, no further session is begun.
        poll_seconds: look again after so many seconds, until stopped; None looks once.
        accepts: asked before a session is claimed; one for which it returns something false is left
            to other workers, and asked for again after ten minutes or when it was written.

    Raises:
        InvalidRequest: a wrong value.
        TdevError: sessions could not be found; with `poll_seconds` that is logged, and tried again
            unless the first look ends in a ConfigurationError.
    """
    check_runner(client, runner)
    if stop is not None and not callable(getattr(stop, "is_set", None)):
        raise InvalidRequest("stop", f"must be an event, which has is_set(), not {shown(stop)}")
    if accepts is not None and (not callable(accepts) or inspect.iscoroutinefunction(accepts)):
        raise InvalidRequest(
            "accepts", f"must be a plain function of a Session, not {shown(accepts)}"
        )
    backoff_seconds = validation.above_zero("backoff_seconds", backoff_seconds)
    if poll_seconds is not None:
        poll_seconds = validation.above_zero("poll_seconds", poll_seconds)
    validation.whole(1, 1000)("max_attempts", max_attempts)
    validation.whole(1, 1000)("concurrency", concurrency)
    Bounds.at(client.now(), older_than)
    result, presence = Recovery(), Presence.of(client.settings)

    def stopped() -> bool:
        return presence.draining or (stop is not None and stop.is_set())

    await presence.join(client)
    try:
        queue = DueQueue(
            client, presence, older_than, poll_seconds, stopped, result.unreadable, concurrency
        )
        worker = _Worker(client, runner, accepts, max_attempts, backoff_seconds, queue, result)
        with presence.calling_each_beat(queue.check_slots):
            await client.gather([worker.slot] * concurrency, concurrency, queue.close)
    except _Exit as ended:
        raise ended.error from None
    finally:
        presence.leave()
    if queue.error is not None:
        raise queue.error
    return result


class _Exit(BaseException):
    """The SystemExit of a signal handler, until all sessions are handed back.

    An event loop stops wherever a task raises SystemExit, and leaves the other tasks as they are.
    """

    def __init__(self, error: SystemExit) -> None:
        super().__init__(error)
        self.error = error


class _Worker:
    def __init__(
        self,
        client: Client,
        runner: Runner,
        accepts: Callable[[Session], bool] | None,
        max_attempts: int,
        backoff_seconds: float,
        queue: DueQueue,
        result: Recovery,
    ) -> None:
        self._client, self._runner, self._accepts = client, runner, accepts
        self._max_attempts, self._backoff = max_attempts, backoff_seconds
        self._queue, self._result = queue, result
        self._handlers = handlers_code()  # one may take itself away before it exits

    async def slot(self) -> None:
        """Recover one session after the other, until there are no more."""
        while (turn := await self._queue.take()) is not None:
            try:
                # As a job of its own: what a runner leaves in its context ends with it.
                await self._client.gather([partial(self._recover, turn)], 1)
            except BaseException as error:
                if not (Presence.draining and self._is_interruption(error)):
                    raise  # else the runner was stopped before its next agent
            finally:
                self._queue.done(turn)

    def _is_interruption(self, error: BaseException) -> bool:
        ends = isinstance(error, (_Exit, SystemExit))
        return ends or self._client.is_stray_cancellation(error)

    async def _recover(self, turn: Turn) -> None:
        try:
            session = await self._client.sessions.get(turn.session_id)
            if session is None:
                return
            if not await is_due(self._client, session, turn.bounds):
                if session.worker_id is not None:
                    self._queue.leave_alone(session, lives=True)
                return  # or another worker was quicker
            if session.worker_id and not await may_take_over(
                self._client, session, from_start=True
            ):
                return
            if await shows_life(self._client, session):
                return
            await self._resume_or_give_up(session, turn)
        except PayloadDamaged as damaged:
            if turn.session_id not in self._result.unreadable:
                _log.warning("session %s left as it is: %s", turn.session_id, damaged)
                self._result.unreadable.append(turn.session_id)
        except SystemExit as error:
            raise _Exit(error) from None
        except Exception as error:
            # A lease that it left runs out, and the session is found again; the others go on.
            _log.warning("session %s not recovered: %s", turn.session_id, logged(error))
            self._add_to_result(None, turn.session_id)

    async def _resume_or_give_up(self, session: PipelineSession, turn: Turn) -> None:
        if not await self._accepted(session) or why_too_old(self._client, session):
            self._queue.leave_alone(session)
            return
        in_vain = resumes_in_vain(session)
        waits = is_spent(session.cost_usd, session.budget_usd)  # for whoever gives it more
        if in_vain >= self._max_attempts and not waits:
            await self._give_up(session, in_vain)
        elif in_vain >= self._max_attempts and session.status == SessionStatus.FAILED:
            self._queue.leave_alone(session)
        elif is_suspect(session) and not turn.alone:
            self._queue.put_off(session.session_id)
        else:
            turn.alone = is_suspect(session)  # or another worker has got on with it
            await self._resume(session, in_vain, turn)

    async def _accepted(self, session: PipelineSession) -> bool:
        if self._accepts is None:
            return True
        result = await decrypted_result(self._client, Session, session)
        for value in result.values():
            if isinstance(value, Undecrypted) and value.error is not None:
                raise value.error  # it cannot judge what it does not see
        return self._accepts(result)

    async def _resume(self, session: PipelineSession, in_vain: int, turn: Turn) -> None:
        longest = min(_LONGEST_BACKOFF_SECONDS, self._backoff * 2**in_vain)
        # At least half of it: so many attempts then last so long.
        backoff = DICE.uniform(longest / 2, longest)
        try:
            resume = await try_to_resume(self._client, session, None, backoff)
        except PayloadDamaged:
            self._queue.leave_alone(session)
            raise
        if not resume:
            self._add_to_result(None, session.session_id)
            return
        turn.lease = resume.owned
        try:
            await run(resume, self._guarded)
        except Exception as error:
            if not resume.owned.over:  # lost, or its end could not be written
                raise
            is_back = resume.owned.ended == SessionStatus.ACTIVE
            how = "handed back" if is_back else "failed"
            _log.warning("session %s %s: %s", session.session_id, how, logged(error))
        except BaseException:
            if resume.owned.ended == SessionStatus.ACTIVE:
                self._add_to_result(SessionStatus.ACTIVE, session.session_id)
            raise
        else:
            if resume.owned.ended == SessionStatus.FAILED:
                what = ", ".join({**resume.owned.failed_before, **resume.owned.failures})
                message = "session %s failed: its runner returned, and left failed: %s"
                _log.warning(message, session.session_id, what or "the session itself")
        self._add_to_result(resume.owned.ended, session.session_id)

    async def _guarded(self, resume: Resume) -> None:
        """Call the runner inside the session's block, so that nothing of it ends the worker."""
        try:
            result = self._runner(resume)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            # What tasks in a group raise comes as a group.
            if isinstance(real_error(error), _NOT_THE_SESSIONS) and not resume.owned.over:
                with suppress(TdevError):  # then the block records the error, or the lease runs out
                    await leased_update(self._client, resume.owned, [], ends=SessionStatus.ACTIVE)
            raise
        except BaseException as error:
            # What the runner awaited was cancelled, say, or it called sys.exit.
            if Presence.draining:
                raise
            if isinstance(error, SystemExit):
                is_its_own = not was_raised_by(error, self._handlers | handlers_code())
            else:
                is_its_own = self._client.is_stray_cancellation(error)
            if is_its_own:
                what = f"{type(error).__name__}: {error}"
                raise RuntimeError(f"the runner ended with {what}") from error
            raise

    async def _give_up(self, session: PipelineSession, in_vain: int) -> None:
        message = await shown_field(self._client, session, "error_message")
        last = message or "its workers died"
        if session.lease_token is not None and message:
            last = f"its workers died; before that: {message}"
        reason = shortened(f"gave up after {in_vain} resumes without progress; last: {last}")
        try:
            await abandon(self._client, session.session_id, reason, unchanged(session))
        except ConditionFailed:
            self._add_to_result(None, session.session_id)
        else:
            self._add_to_result(SessionStatus.ABANDONED, session.session_id)

    def _add_to_result(self, ended: SessionStatus | None, session_id: str) -> None:
        how = "lost" if ended in (None, SessionStatus.ACTIVE) else ended.lower()
        _log.info("session %s: %s", session_id, how)
        ids: list[str] = getattr(self._result, how)
        ids.append(session_id)
        del ids[:-_IDS_KEPT]
