"""The awaitable calls, and what else of `tdev_models` stands on PynamoDB.

`tdev_models` imports this module when the first of these names is used: PynamoDB and botocore take
most of an import's time, and who only handles errors or settings needs neither.
"""

from tdev_models.binding import awaitable, context
from tdev_models.dynamodb.async_client import AsyncClient as _AsyncClient
from tdev_models.metrics import (
    experiments as _experiments,
    reports as _reports,
    samples as _samples,
)
from tdev_models.metrics.experiments import assign_variant as assign_variant
from tdev_models.models import (
    AgentExecution as AgentExecution,
    Metric as Metric,
    PipelineSession as PipelineSession,
    UserProject as UserProject,
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
from tdev_models.services.agent_runs import AgentRun as AgentRun
from tdev_models.services.draining import handle_sigterm as handle_sigterm
from tdev_models.services.recovery import Recovery as Recovery
from tdev_models.services.resume import Resume as Resume
from tdev_models.services.tracking import Tracker as Tracker

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

# A sample belongs to the hour of its call, and is recorded also if the call is then cancelled.
record_metric = awaitable(_samples.record_metric, at_once=True)
query_metrics = awaitable(_samples.query_metrics)
flush_metrics = awaitable(_samples.flush_metrics)

usage_report = awaitable(_reports.usage_report)
agent_performance = awaitable(_reports.agent_performance)
compare_variants = awaitable(_experiments.compare_variants)
