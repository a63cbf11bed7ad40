"""The memory of the T-Developer pipeline: sessions, executions, history and metrics on DynamoDB.

The functions here are awaitable; `tdev_models.sync` has the same ones, blocking.
"""

from typing import TYPE_CHECKING, Any

from tdev_models import errors, settings
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
from tdev_models.results import (
    AGENTS,
    AgentPerformance,
    Attempt,
    Comparison,
    Difference,
    Execution,
    ExecutionStatus,
    Failure,
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
    Undecrypted,
    UsageReport,
    Variant,
    Worker,
    WorkerState,
)
from tdev_models.settings import Settings, configure

__version__ = "0.1.0"

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
    "Failure",
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
    "Undecrypted",
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

if TYPE_CHECKING:
    from tdev_models.calls import *
else:

    def __getattr__(name: str) -> Any:
        """Return a name of `calls`, which is imported when the first of them is used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from tdev_models import calls

        value = globals()[name] = getattr(calls, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
