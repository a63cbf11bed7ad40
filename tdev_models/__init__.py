"""The memory of the T-Developer pipeline: sessions, executions, history and metrics on DynamoDB.

The functions here are awaitable; `tdev_models.sync` has the same ones, blocking.
"""

from tdev_models import errors, settings
from tdev_models.binding import awaitable, context
from tdev_models.dynamodb.async_client import AsyncClient as _AsyncClient
from tdev_models.errors import (
    AccessDenied,
    BudgetSpent,
    ConfigurationError,
    Conflict,
    EffectInDoubt,
    InvalidRequest,
    InvalidTransition,
    ItemTooLarge,
    LeaseHeld,
    LeaseLost,
    NotFound,
    PayloadDamaged,
    StoreError,
    TdevError,
    Throttled,
    Unavailable,
    WrongUser,
)
from tdev_models.metrics import (
    experiments as _experiments,
    reports as _reports,
    samples as _samples,
)
from tdev_models.metrics.experiments import assign_variant
from tdev_models.models import AgentExecution, Metric, PipelineSession, UserProject
from tdev_models.results import (
    AGENTS,
    AgentPerformance,
    Attempt,
    Comparison,
    Difference,
    Execution,
    ExecutionStatus,
    FunnelStep,
    MetricRow,
    Page,
    PerformanceReport,
    PipelineType,
    Project,
    RequestEvent,
    Session,
    SessionCounts,
    SessionStatus,
    UsageReport,
    Variant,
    Worker,
    WorkerState,
)
from tdev_models.services import (
    executions as _executions,
    failures as _failures,
    projects as _projects,
    recovery as _recovery,
    resume as _resume,
    sessions as _sessions,
    tracking as _tracking,
    workers as _workers,
)
from tdev_models.services.agent_runs import AgentRun
from tdev_models.services.draining import handle_sigterm
from tdev_models.services.recovery import Recovery
from tdev_models.services.resume import Resume
from tdev_models.services.tracking import Tracker
from tdev_models.settings import Settings, configure

__version__ = "0.1.0"

save_pipeline_session = awaitable(_sessions.save_pipeline_session)
get_pipeline_session = awaitable(_sessions.get_pipeline_session)
list_pipeline_sessions = awaitable(_sessions.list_pipeline_sessions)
abandon_session = awaitable(_sessions.abandon_session)
track_session = context(_AsyncClient, _tracking.track_session)

update_agent_execution = awaitable(_executions.update_agent_execution)
get_agent_execution = awaitable(_executions.get_agent_execution)
get_agent_executions = awaitable(_executions.get_agent_executions)

get_failed_sessions = awaitable(_failures.get_failed_sessions)
get_failed_executions = awaitable(_failures.get_failed_executions)
resume_pipeline = awaitable(_resume.resume_pipeline)
recover_sessions = awaitable(_recovery.recover_sessions)
list_workers = awaitable(_workers.list_workers)

save_user_project = awaitable(_projects.save_user_project)
get_user_project = awaitable(_projects.get_user_project)
list_user_projects = awaitable(_projects.list_user_projects)
record_download = awaitable(_projects.record_download)

record_metric = awaitable(_samples.record_metric)
query_metrics = awaitable(_samples.query_metrics)
flush_metrics = awaitable(_samples.flush_metrics)

usage_report = awaitable(_reports.usage_report)
agent_performance = awaitable(_reports.agent_performance)
compare_variants = awaitable(_experiments.compare_variants)

__all__ = [
    "AGENTS",
    "AccessDenied",
    "AgentExecution",
    "AgentPerformance",
    "AgentRun",
    "Attempt",
    "BudgetSpent",
    "Comparison",
    "ConfigurationError",
    "Conflict",
    "Difference",
    "EffectInDoubt",
    "Execution",
    "ExecutionStatus",
    "FunnelStep",
    "InvalidRequest",
    "InvalidTransition",
    "ItemTooLarge",
    "LeaseHeld",
    "LeaseLost",
    "Metric",
    "MetricRow",
    "NotFound",
    "Page",
    "PayloadDamaged",
    "PerformanceReport",
    "PipelineSession",
    "PipelineType",
    "Project",
    "Recovery",
    "RequestEvent",
    "Resume",
    "Session",
    "SessionCounts",
    "SessionStatus",
    "Settings",
    "StoreError",
    "TdevError",
    "Throttled",
    "Tracker",
    "Unavailable",
    "UsageReport",
    "UserProject",
    "Variant",
    "Worker",
    "WorkerState",
    "WrongUser",
    "abandon_session",
    "agent_performance",
    "assign_variant",
    "compare_variants",
    "configure",
    "errors",
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
    "settings",
    "track_session",
    "update_agent_execution",
    "usage_report",
]
