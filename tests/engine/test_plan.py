"""The plan's own calls, word for word."""

from __future__ import annotations

import json
import time
from datetime import datetime
from types import SimpleNamespace

from tdev_models import (
    PipelineSession,
    Settings,
    get_agent_executions,
    get_failed_sessions,
    get_pipeline_session,
    query_metrics,
    record_metric,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    update_agent_execution,
)
from tests import raw

project_id = "prod_1723_88-x"
user_id = "user-7"


async def test_phase_1_as_the_plan_writes_it(store: Settings) -> None:
    # when a pipeline starts
    await save_pipeline_session({
        "session_id": project_id,
        "status": "ACTIVE",
        "current_agent": "nl_input",
        "progress": 0
    })  # fmt: skip
    agent_name, result = "generation", SimpleNamespace(output_data={"files": ["app.py"]})
    # when each agent completes
    await update_agent_execution({
        "execution_id": f"{project_id}-{agent_name}",
        "status": "COMPLETED",
        "output_data": json.dumps(result.output_data)
    })  # fmt: skip

    session = PipelineSession.get(project_id, consistent_read=True)
    assert (session.status, session.current_agent, session.progress) == ("ACTIVE", "nl_input", 0)
    assert session.created_at == session.last_updated

    (execution,) = await get_agent_executions(project_id)
    assert (execution.execution_id, execution.agent_name) == (
        f"{project_id}-generation",
        "generation",
    )
    stored = raw.item(store, "agent-executions", execution.execution_id, "generation")
    assert stored is not None
    assert stored["output_data"] == {"S": json.dumps(result.output_data)}
    assert stored["retry_count"] == {"N": "0"}
    assert stored["start_time"] == stored["end_time"]


async def test_phase_2_as_the_plan_writes_it(store: Settings) -> None:
    await save_pipeline_session({"session_id": project_id, "status": "FAILED"})
    one_hour_ago = time.time() + 1  # every session is older than that

    failed_sessions = await get_failed_sessions()
    for session in failed_sessions:
        if session['last_updated'] < one_hour_ago:  # fmt: skip
            await resume_pipeline(session['session_id'])  # fmt: skip

    session = await get_pipeline_session(project_id)
    assert (session.status, session.fence, session.resume_count) == ("ACTIVE", 1, 1)


async def test_phase_3_as_the_plan_writes_it(store: Settings) -> None:
    await save_user_project({
        "user_id": user_id,
        "project_id": project_id,
        "project_name": "My Todo App",
        "tech_stack": ["React", "Node.js", "MongoDB"]
    })  # fmt: skip

    stored = raw.item(store, "user-projects", user_id, project_id)
    assert stored is not None
    assert stored["project_name"] == {"S": "My Todo App"}
    assert json.loads(stored["tech_stack"]["S"]) == ["React", "Node.js", "MongoDB"]
    assert stored["download_count"] == {"N": "0"}


async def test_phase_4_as_the_plan_writes_it(store: Settings) -> None:
    execution_time = 2.5
    await record_metric({
        "metric_name": "agent_execution_time",
        "agent_name": "generation",
        "value": execution_time,
        "timestamp": datetime.now()  # noqa: DTZ005
    })  # fmt: skip

    (row,) = await query_metrics("agent_execution_time", time.time() - 60, time.time() + 1)
    assert (row.count, row.sum, row.mean, row.error_rate) == (1, 2.5, 2.5, 0)
    assert row.hour == int(time.strftime("%H", time.gmtime()))
