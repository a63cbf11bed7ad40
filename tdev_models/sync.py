"""The same functions as `tdev_models`, blocking: for programs without an event loop.

They drive the same coroutines on a transport that never suspends.
"""

from typing import TypeAlias

from tdev_models.binding import blocking, context
from tdev_models.dynamodb.blocking_client import BlockingClient as _BlockingClient
from tdev_models.metrics import (
    experiments as _experiments,
    reports as _reports,
    samples as _samples,
)
from tdev_models.metrics.experiments import assign_variant
from tdev_models.services import (
    agent_runs as _agent_runs,
    executions as _executions,
    failures as _failures,
    projects as _projects,
    recovery as _recovery,
    resume as _resume,
    sessions as _sessions,
    tracking as _tracking,
    workers as _workers,
)
from tdev_models.services.draining import handle_sigterm

AgentRun: TypeAlias = _agent_runs.AgentRun[_BlockingClient]
Resume: TypeAlias = _resume.Resume[_BlockingClient]
Tracker: TypeAlias = _tracking.Tracker[_BlockingClient]

save_pipeline_session = blocking(_sessions.save_pipeline_session)
get_pipeline_session = blocking(_sessions.get_pipeline_session)
list_pipeline_sessions = blocking(_sessions.list_pipeline_sessions)
abandon_session = blocking(_sessions.abandon_session)
track_session = context(_BlockingClient, _tracking.track_session)

update_agent_execution = blocking(_executions.update_agent_execution)
get_agent_execution = blocking(_executions.get_agent_execution)
get_agent_executions = blocking(_executions.get_agent_executions)

get_failed_sessions = blocking(_failures.get_failed_sessions)
get_failed_executions = blocking(_failures.get_failed_executions)
resume_pipeline = blocking(_resume.resume_pipeline)
recover_sessions = blocking(_recovery.recover_sessions)
list_workers = blocking(_workers.list_workers)

save_user_project = blocking(_projects.save_user_project)
get_user_project = blocking(_projects.get_user_project)
list_user_projects = blocking(_projects.list_user_projects)
record_download = blocking(_projects.record_download)

record_metric = blocking(_samples.record_metric)
query_metrics = blocking(_samples.query_metrics)
flush_metrics = blocking(_samples.flush_metrics)

usage_report = blocking(_reports.usage_report)
agent_performance = blocking(_reports.agent_performance)
compare_variants = blocking(_experiments.compare_variants)

__all__ = [
    "AgentRun",
    "Resume",
    "Tracker",
    "abandon_session",
    "agent_performance",
    "assign_variant",
    "compare_variants",
    "flush_metrics",
    "get_agent_execution",
    "get_agent_executions",
    "get_failed_executions",
    "get_failed_sessions",
    "get_pipeline_session",
    "get_user_project",
    "handle_sigterm",
    "list_pipeline_sessions",
    "list_user_projects",
    "list_workers",
    "query_metrics",
    "record_download",
    "record_metric",
    "recover_sessions",
    "resume_pipeline",
    "save_pipeline_session",
    "save_user_project",
    "track_session",
    "update_agent_execution",
    "usage_report",
]
