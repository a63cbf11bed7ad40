"""Take over a session that failed or stalled, exactly once."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Self

from tdev_models import validation
from tdev_models.dynamodb.blocking_client import BlockingClient
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.client_context import C
from tdev_models.errors import InvalidRequest, LeaseLost, shown
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.services.progress import Outcome, work_so_far
from tdev_models.services.sessions import read_session
from tdev_models.services.signs_of_life import shows_life
from tdev_models.services.tracking import Tracker
from tdev_models.workers.claims import is_expired, may_take_over
from tdev_models.workers.lease import was_handed_back
from tdev_models.workers.liveness import is_stalled
from tdev_models.workers.releases import why_too_old

_log = logging.getLogger(__name__)

_FORCED_CLAIMS = 5

IS_COMPLETED = f"it is {SessionStatus.COMPLETED}"
"""Why a session is not resumed, where `force` changes nothing."""


class Resume(Tracker[C]):
    """A try to take over a session: true when it was claimed, else `reason` says why not.

    Inside `async with resume` it is a tracker: `.agent(...)` tracks, calls on the session carry the
    lease, and the end of the block ends the session. A claim that is not entered runs out after
    `lease_seconds`; where nothing refers to it any more, that is logged as a warning.

    Attributes:
        reason: why the session was not claimed; None when it was.
    """

    def __init__(self, client: C, session_id: str) -> None:
        super().__init__(client, session_id, {})
        self.reason: str | None = None
        self._was_entered = False

    def __del__(self) -> None:
        if self and not self._was_entered and not self.owned.over:
            _log.warning(
                "session %s was claimed, and nobody runs it; give resume_pipeline a runner, or "
                "enter what it returns: 'async with await resume_pipeline(...)'",
                self.session_id,
            )

    def __aenter__(self) -> Coroutine[Any, Any, Self]:
        self._was_entered = True
        return super().__aenter__()

    def __repr__(self) -> str:
        return (
            super().__repr__() if self else f"Resume({self.session_id!r}, reason={self.reason!r})"
        )

    def __bool__(self) -> bool:
        return self.lease is not None and self.reason is None

    async def _create_or_claim(self) -> None:
        self.owned  # noqa: B018 (raises: what was not claimed cannot be entered)


Runner = Callable[[Resume[Any]], Any]
"""Runs what is left of a pipeline; its result is awaited where it can be."""


async def resume_pipeline(
    client: C,
    session_id: str,
    runner: Runner | None = None,
    from_agent: str | None = None,
    *,
    force: bool = False,
) -> Resume[C]:
    """Claim a failed or stalled session, and run the rest of it where a runner is given.

    Exactly one of any number of callers gets it: one GetItem, the executions (one TransactGetItems,
    Queries on project-index), then one conditional UpdateItem. Who cannot read all of it claims and
    changes nothing. Losing is no error: the result is falsy and says why. Safe to call again: a
    claim whose reply was lost is recognised.

    Args:
        session_id: the session.
        runner: called with the `Resume` inside its block; what it raises ends the session as
            FAILED and is raised; AccessDenied hands it back.
        from_agent: one of the pipeline's agents to begin again at, even if it had ended. It, those
            after it in the pipeline, each with all keys, and every agent of your own that began
            since it last did, are outdated and run again, now or in a later resume; the others keep
            their outputs.
        force: take it over from a live or hung owner, whose next write or heartbeat raises
            LeaseLost, from a newer release, or though it is ABANDONED. Its resumes count from the
            start.

    Raises:
        NotFound: there is no such session.
        InvalidRequest: from_agent is none of them, runner can never run, or force is no bool.
        LeaseLost: the runner's session was taken over.
        PayloadDamaged: the session or an output cannot be read; `from_agent` begins before that.
        Conflict, Throttled, Unavailable: after all retries; a claim may have happened and will run
            out.
    """
    agents = client.settings.agents
    if from_agent is not None and not (isinstance(from_agent, str) and from_agent in agents):
        raise InvalidRequest("from_agent", f"{shown(from_agent)} is not one of {', '.join(agents)}")
    validation.flag("force", force)
    if runner is not None:
        check_runner(client, runner)
    seen = await read_session(client, session_id)
    resume = await try_to_resume(
        client, seen, from_agent, force=force, to_be_entered=runner is None
    )
    if resume and runner is not None:
        await run(resume, runner)
    return resume


def check_runner(client: Client, runner: Runner) -> None:
    """Raise InvalidRequest, before anything is claimed, if a runner could never run."""
    if not callable(runner):
        problem = f"must be a function that takes a Resume, not {shown(runner)}"
        raise InvalidRequest("runner", problem)
    called = runner if inspect.isroutine(runner) else getattr(runner, "__call__", runner)  # noqa: B004
    for function in (runner, called):
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidRequest(
                "runner", "is a generator: calling it runs nothing; take out yield"
            )
        if isinstance(client, BlockingClient) and inspect.iscoroutinefunction(function):
            raise InvalidRequest("runner", "is async; use the awaitable function, of tdev_models")
    try:
        inspect.signature(runner).bind(None)
    except TypeError as error:
        raise InvalidRequest(
            "runner", f"must be a function that takes a Resume ({error})"
        ) from None
    except ValueError:  # of a builtin, which has no signature
        pass


async def try_to_resume(
    client: C,
    seen: PipelineSession,
    from_agent: str | None,
    retry_after_seconds: float = 0.0,
    *,
    force: bool = False,
    to_be_entered: bool = False,
) -> Resume[C]:
    """Take over a session as it was read, if it can be and nobody else is quicker.

    Args:
        client: the client.
        seen: the session as it was read.
        from_agent: one of the pipeline's agents to begin again at; None goes on where it was.
        retry_after_seconds: how long `recover_sessions` leaves it alone if it fails again.
        force: whatever its owner does, and be it ABANDONED.
        to_be_entered: whether the claim runs out by itself, until its block is entered.

    Returns:
        The Resume; false, with its `reason`, where the session was not taken over.

    Raises:
        PayloadDamaged: an output cannot be read; nothing was changed.
        TdevError: a request failed; a claim may have happened and will run out.
    """
    resume = Resume(client, seen.session_id)
    for _ in range(_FORCED_CLAIMS if force else 1):  # a live owner writes in between
        resume.reason = await _why_not_resumable(client, seen, force)
        if resume.reason is not None:
            return resume
        work = await work_so_far(client, seen, from_agent)
        values = {} if from_agent is None else _beginning_again(work[0])
        resumed = force or not was_handed_back(seen)
        refused = await resume.claim(
            seen, values, resumed=resumed, afresh=force, to_be_entered=to_be_entered
        )
        if refused is None:
            resume.owned.retry_after_seconds = retry_after_seconds
            try:
                await resume.take_over(seen, work, from_agent)
            except BaseException as error:
                await resume.hand_back(error)
                if not isinstance(error, LeaseLost):
                    raise
                resume.reason = "it was taken over while its work was adopted"
            return resume
        seen = refused
    # Who was quicker lives, even where its lease seems to be over.
    resume.reason = await _why_not_resumable(client, seen, force, is_free=is_stalled)
    resume.reason = resume.reason or "another worker changed it at the same time"
    return resume


def _beginning_again(outcome: Outcome) -> dict[str, Any]:
    """Return what a claim writes so that whoever resumes next begins there, too."""
    return {
        "restarts": json.dumps(outcome.restarts),
        "progress": len(set(outcome.ended).intersection(outcome.agents)),
        "current_agent": outcome.start_agent,
    }


async def _why_not_resumable(
    client: Client,
    session: PipelineSession,
    force: bool,
    is_free: Callable[[Client, PipelineSession], Coroutine[Any, Any, bool]] = may_take_over,
) -> str | None:
    """Return why a session cannot be resumed, or None if it can: then its worker is dead."""
    if is_expired(client, session):
        return "it has expired"
    if not force and (reason := why_too_old(client, session)):
        return reason
    if session.status == SessionStatus.FAILED:
        return None
    if force and session.status in (SessionStatus.ACTIVE, SessionStatus.ABANDONED):
        return None
    if session.status != SessionStatus.ACTIVE:
        return f"it is {session.status}"
    if session.lease_token is not None:
        if await is_free(client, session):
            return None
        return f"{session.lease_owner} owns it (claim {int(session.fence or 0)})"
    if not await is_stalled(client, session):
        return "it is ACTIVE, and was updated too recently to be stalled"
    if await shows_life(client, session):
        return "it is ACTIVE, and its agents were at work too recently to be stalled"
    return None


async def run(resume: Resume[Any], runner: Runner) -> None:
    """Run what is left of a session inside its block."""
    async with resume:
        result = runner(resume)
        if inspect.isawaitable(result):
            await result
