"""Failure budgets: how often in a row a session was resumed in vain, and how many workers died.

A claim counts itself; an agent that ends under it takes both counts away. A deploy spends nothing:
it hands sessions back, and their next claims count for no resume. A worker that dies takes all of
its sessions with it, and one of them may be why: a death counts only against a session that two
workers in a row died of before, since that is run alone.
"""

from __future__ import annotations

from pynamodb.expressions.update import Action

from tdev_models.dynamodb.expressions import set_to
from tdev_models.models import PipelineSession
from tdev_models.results import SessionStatus

_SUSPECT_AFTER_DEATHS = 2


def is_suspect(seen: PipelineSession) -> bool:
    """Return whether a session that is to be claimed may kill its worker."""
    return _worker_deaths(seen) >= _SUSPECT_AFTER_DEATHS


def resumes_in_vain(seen: PipelineSession) -> int:
    """Return how often in a row a session, as it was read, was resumed and no agent ended."""
    counted = int(seen.resumes_without_progress or 0)
    ran_alone = int(seen.worker_deaths or 0) >= _SUSPECT_AFTER_DEATHS
    if seen.status == SessionStatus.FAILED or (_died(seen) and ran_alone):
        return counted
    return max(0, counted - 1)  # the last one does not count


def resume_counted(seen: PipelineSession, *, afresh: bool) -> list[Action]:
    """Return the actions of a claim that counts as a resume; `afresh` forgets the ones before."""
    count = 0 if afresh else resumes_in_vain(seen)
    deaths = 0 if afresh else _worker_deaths(seen)
    return [
        set_to(PipelineSession.resume_count, int(seen.resume_count or 0) + 1),
        set_to(PipelineSession.resumes_without_progress, count + 1),
        set_to(PipelineSession.worker_deaths, deaths),
    ]


def progress_made() -> list[Action]:
    """Return the actions that go with the end of an agent."""
    return [*tried_anew(), PipelineSession.worker_deaths.remove()]


def tried_anew() -> list[Action]:
    """Return the actions that go with more money: what was in vain without it is forgotten."""
    return [PipelineSession.resumes_without_progress.remove()]


def _worker_deaths(seen: PipelineSession) -> int:
    """Return how many workers in a row have died while they ran a session."""
    return 0 if seen.status == SessionStatus.FAILED else int(seen.worker_deaths or 0) + _died(seen)


def _died(seen: PipelineSession) -> bool:
    return seen.status == SessionStatus.ACTIVE and seen.lease_token is not None
