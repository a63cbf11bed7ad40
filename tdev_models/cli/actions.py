"""`tdev resume`, `tdev release`, `tdev abandon`: what changes one session, after a question."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import sys
from traceback import walk_tb

import tdev_models
from tdev_models import sync
from tdev_models.cli.codes import DONE, FAILED, REFUSED
from tdev_models.cli.recover import load
from tdev_models.cli.screen import Screen, agreed
from tdev_models.errors import InvalidTransition, LeaseLost, TdevError, plain
from tdev_models.results import Session, SessionStatus
from tdev_models.services.resume import IS_COMPLETED, run

_FORCED = "from whoever runs it now: that worker stops at its next write"


def abandon(options: argparse.Namespace) -> int:
    """End a session for good, whoever owns it."""
    session = sync.get_pipeline_session(options.session)
    if session.status == SessionStatus.COMPLETED:
        raise InvalidTransition(f"session {options.session}", session.status, "ABANDONED")
    if not agreed(f"End {_described(session)} for good?", options.yes):
        return _said_no()
    ended = sync.abandon_session(options.session, options.reason)
    sync.flush_metrics()
    return _done(options, ended, "is ABANDONED")


def release(options: argparse.Namespace) -> int:
    """Hand a session to the next worker that looks: claim it, and give the claim back."""
    if not _agreed(options, "Release"):
        return _said_no()
    resume = sync.resume_pipeline(
        options.session, from_agent=options.from_agent, force=options.force
    )
    if not resume:
        return _refused(resume.reason, options.force)
    with resume:
        resume.release()
    sync.flush_metrics()
    session = sync.get_pipeline_session(options.session)
    return _done(options, session, f"waits for a worker, to go on at {resume.start_agent}")


def resume(options: argparse.Namespace) -> int:
    """Run what is left of a session here, with the user's runner."""
    runner = load(options.runner)
    if not _agreed(options, "Resume"):
        return _said_no()
    chosen = {"from_agent": options.from_agent, "force": options.force}
    failure: BaseException | None = None
    reason: str | None = None
    try:
        if inspect.iscoroutinefunction(runner):
            reason = asyncio.run(
                tdev_models.resume_pipeline(options.session, runner, **chosen)
            ).reason
        else:
            reason = sync.resume_pipeline(options.session, runner, **chosen).reason
    except (Exception, SystemExit) as error:  # whatever the runner raises is shown below
        if isinstance(error, TdevError) and not _is_of_runner(error):
            raise
        failure = error
    if reason is not None:
        return _refused(reason, options.force)
    sync.flush_metrics()
    session = sync.get_pipeline_session(options.session)
    if isinstance(failure, TdevError) and session.status != SessionStatus.FAILED:
        raise failure  # no failure of the session, such as a permission that is missing here
    raised = f"{type(failure).__name__}: {failure}" if failure else ""
    # Of a group the error that counts; and the failure of an agent whose error was caught.
    why = session.error_message if session.status == SessionStatus.FAILED else raised
    _done(options, session, f"is {session.status}{plain(f': {why}' if why else '')}")
    return DONE if session.status == SessionStatus.COMPLETED else FAILED


def _is_of_runner(error: TdevError) -> bool:
    """Return whether an error was raised once the runner had begun; a lost lease is none of his."""
    began = any(frame.f_code is run.__code__ for frame, _ in walk_tb(error.__traceback__))
    return began and not isinstance(error, LeaseLost)


def _agreed(options: argparse.Namespace, verb: str) -> bool:
    """Ask, where it takes something away: work from its owner, or finished outputs."""
    again = f"run {options.from_agent} and what follows again" if options.from_agent else ""
    takes = [_FORCED] * options.force + [again] * bool(again)
    if not takes:
        return True
    session = sync.get_pipeline_session(options.session)
    return agreed(f"{verb} {_described(session)}, {', and '.join(takes)}?", options.yes)


def _described(session: Session) -> str:
    at = session.failed_agent or session.current_agent
    runs = session.lease_owner and session.status == SessionStatus.ACTIVE
    owner = f", run by {session.lease_owner}" if runs else ""
    where = f" at {at}" if at else ""
    of = f" of user {session.user_id}" if session.user_id else ""
    return plain(
        f"session {session.session_id}{of} "
        f"({session.status}{where}, {int(session.progress or 0)} agents done{owner})"
    )


def _done(options: argparse.Namespace, session: Session, what: str) -> int:
    screen = Screen(options.json)
    screen.line(session.to_dict())
    screen.print(f"Session {plain(session.session_id)} {what}.")
    return DONE


def _refused(reason: str | None, force: bool) -> int:
    remedy = "" if force or reason == IS_COMPLETED else "; --force takes it over"
    sys.stderr.write(f"refused: {plain(reason or '')}{remedy}\n")
    return REFUSED


def _said_no() -> int:
    sys.stderr.write("Nothing was done.\n")
    return REFUSED
