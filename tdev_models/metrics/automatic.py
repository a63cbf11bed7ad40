"""The metrics that the package records by itself: in the background, never in the pipeline's way.

A failure is logged. What a killed process had not written is lost; nothing is counted twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from tdev_models import telemetry
from tdev_models.dynamodb.client import Client
from tdev_models.errors import logged
from tdev_models.metrics.recorder import CellKey, Recorder
from tdev_models.models import PipelineSession, UserProject
from tdev_models.models.execution import agent_of
from tdev_models.results import SessionStatus

_log = logging.getLogger(__name__)

P = ParamSpec("P")

_PART_BYTES = 200
_MOST_TECHNOLOGIES = 20
_ENDS = {
    SessionStatus.COMPLETED: "sessions_completed",
    SessionStatus.FAILED: "sessions_failed",
    SessionStatus.ABANDONED: "sessions_abandoned",
}


def _harmless(
    record: Callable[Concatenate[Client, P], None],
) -> Callable[Concatenate[Client, P], None]:
    @wraps(record)
    def call(client: Client, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            record(client, *args, **kwargs)
        except Exception as error:
            _log.warning("%s: not recorded: %s", record.__name__, logged(error))

    return call


@_harmless
def run_ended(
    client: Client,
    agent_name: str,
    *,
    ends: bool,
    seconds: float | None,
    failed: bool,
    retried: bool,
    variant: str | None,
) -> None:
    """Record one try of one agent, its time where it is known; the dimension is its variant."""
    if seconds is not None:
        _note(client, "agent_execution_time", max(0.0, seconds), agent_name, variant, failed)
    for name, happened in (("agent_failures", failed), ("agent_retries", retried)):
        if ends and happened:
            _note(client, name, 1, agent_name, variant)


@_harmless
def agent_used(
    client: Client, agent_name: str, tokens: int, cost_usd: float, model: str | None
) -> None:
    """Record what one try of one agent used; the dimension is the model."""
    for name, value in (("agent_tokens", tokens), ("agent_cost_usd", cost_usd)):
        if value:
            _note(client, name, value, agent_name, model)


@_harmless
def session_claimed(
    client: Client, seen: PipelineSession, pipeline_type: str | None, *, resumed: bool
) -> None:
    """Record that a claim created or resumed a session; `seen` is the session before it."""
    if resumed or seen.status is None:
        name = "sessions_resumed" if resumed else "sessions_started"
        _note(client, name, dimension=seen.pipeline_type or pipeline_type)


@_harmless
def session_saved(client: Client, session: PipelineSession, status: str | None) -> None:
    """Record what a bare call that gave this status changed; `session` is what it returned."""
    if _was_created(session, session.last_updated):
        _note(client, "sessions_started", dimension=session.pipeline_type)
    if status is not None and session.previous_status != status:
        failed_before = session.previous_status == SessionStatus.FAILED
        if status in _ENDS:
            session_ended(client, session, status, failed_before=failed_before)
        elif failed_before:
            _note(client, "sessions_resumed", dimension=session.pipeline_type)


@_harmless
def session_ended(
    client: Client, session: PipelineSession, status: str, *, failed_before: bool = False
) -> None:
    """Record how a session ended and, unless it completed, at which agent it stopped.

    A session that had failed before it was abandoned has stopped already: without an agent. One
    that was active when it was abandoned may still say where it had failed before that.
    """
    completed, dimension = status == SessionStatus.COMPLETED, session.pipeline_type
    places = [session.failed_agent, session.current_agent]
    if status == SessionStatus.ABANDONED:
        places.reverse()
    place = places[0] or places[1]
    stopped = not (completed or failed_before)
    _note(client, _ENDS[SessionStatus(status)], 1, place if stopped else None, dimension)
    if completed and session.created_at is not None:
        seconds = max(0.0, session.last_updated - session.created_at)
        _note(client, "session_duration", seconds, dimension=dimension)


@_harmless
def project_saved(client: Client, project: UserProject) -> None:
    """Record the first 20 technologies of a project that this call created, a sample each."""
    if _was_created(project, project.last_accessed) and isinstance(project.tech_stack, list):
        names = dict.fromkeys(name for name in project.tech_stack if isinstance(name, str))
        for technology in [*names][:_MOST_TECHNOLOGIES]:  # each is an item of its own
            _note(client, "projects_saved", dimension=technology)


@_harmless
def project_downloaded(client: Client) -> None:
    """Record a download."""
    _note(client, "project_downloads")


def _was_created(saved: PipelineSession | UserProject, last: float) -> bool:
    """Return whether the last save made the item; more may come within one tick of a clock."""
    return saved.created_at == last and saved.former_token == "NONE"


def _note(
    client: Client,
    metric_name: str,
    value: float = 1,
    agent_name: str | None = None,
    dimension: str | None = None,
    error: bool = False,
) -> None:
    agent = agent_of(agent_name or "")  # all its keys are one agent
    telemetry.active.metric(metric_name, value, agent, dimension, error)
    if not client.settings.automatic_metrics:
        return
    key = CellKey(int(client.now() // 3600), metric_name, _part(agent), _part(dimension))
    Recorder.for_settings(client.settings).add(key, float(value), error, awaited=False)


def _part(text: str | None) -> str:
    """Return a text in the form that a key may hold: C# becomes C♯."""
    return (text or "").replace("#", "♯").encode()[:_PART_BYTES].decode(errors="ignore")
