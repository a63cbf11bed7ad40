"""What a type checker tells a caller; `mypy` runs over this file in `make check`."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, assert_type

import tdev_models as tdev
from tdev_models import sync
from tdev_models.results import Execution, MetricRow, Page, Project, Session

if TYPE_CHECKING:

    async def right_uses() -> None:
        assert_type(await tdev.save_pipeline_session({"session_id": "s"}), Session)
        assert_type(await tdev.save_pipeline_session(session_id="s", progress=3), Session)
        assert_type(await tdev.get_pipeline_session("s"), Session)
        assert_type(await tdev.list_pipeline_sessions(status="FAILED"), Page[Session])
        assert_type(await tdev.abandon_session("s", "why"), Session)
        assert_type(await tdev.update_agent_execution(execution_id="s-parser"), Execution)
        assert_type(await tdev.get_agent_execution("s-parser"), Execution)
        assert_type(await tdev.get_agent_executions("s", limit=5), Page[Execution])
        assert_type(await tdev.get_failed_executions(1.8e9, "parser"), Page[Execution])
        assert_type(await tdev.get_failed_sessions(limit=5), Page[Session])
        assert_type(await tdev.resume_pipeline("s"), tdev.Resume)
        assert_type(await tdev.recover_sessions(print), tdev.Recovery)
        assert_type(await tdev.list_workers(), Page[tdev.Worker])
        assert_type(await tdev.save_user_project(user_id="u", project_id="p"), Project)
        assert_type(await tdev.get_user_project("u", "p"), Project)
        assert_type(await tdev.list_user_projects("u"), Page[Project])
        assert_type(await tdev.record_download("u", "p"), Project)
        assert_type(await tdev.record_metric(metric_name="m", value=1), None)
        assert_type(await tdev.query_metrics("m", 1, 2), list[MetricRow])
        assert_type(await tdev.flush_metrics(), None)
        assert_type(await tdev.usage_report(1, 2), tdev.UsageReport)
        assert_type(await tdev.agent_performance(1, 2), tdev.PerformanceReport)
        assert_type(await tdev.compare_variants("parser", "a", "b", "m", 1, 2), tdev.Comparison)
        tdev.handle_sigterm(20)
        assert_type(tdev.assign_variant("e", "u", {"a": 1, "b": 1}), str)
        async with tdev.track_session("s", user_id="u") as session:
            assert_type(session, tdev.Tracker)
            async with session.agent("parser") as run:
                assert_type(run, tdev.AgentRun)
                effect: Coroutine[Any, Any, Any] = run.once("mail", print)
                assert_type(await effect, Any)
            call: Coroutine[Any, Any, Any] = session.run("parser", pow, 2, 3)
            assert_type(await call, Any)
        assert_type(next(tdev.PipelineSession.status_index.query("FAILED")), tdev.PipelineSession)
        assert_type(tdev.PipelineSession("s").user_id, str)

    def right_blocking_uses() -> None:
        assert_type(sync.save_pipeline_session({"session_id": "s"}), Session)
        assert_type(sync.save_pipeline_session(session_id="s", progress=3), Session)
        assert_type(sync.get_pipeline_session("s"), Session)
        assert_type(sync.list_pipeline_sessions(status="FAILED"), Page[Session])
        assert_type(sync.abandon_session("s", "why"), Session)
        assert_type(sync.update_agent_execution(execution_id="s-parser"), Execution)
        assert_type(sync.get_agent_execution("s-parser"), Execution)
        assert_type(sync.get_agent_executions("s", limit=5), Page[Execution])
        assert_type(sync.get_failed_executions(1.8e9, "parser"), Page[Execution])
        assert_type(sync.get_failed_sessions(limit=5), Page[Session])
        assert_type(sync.resume_pipeline("s"), sync.Resume)
        assert_type(sync.recover_sessions(print), tdev.Recovery)
        assert_type(sync.list_workers(), Page[tdev.Worker])
        assert_type(sync.save_user_project(user_id="u", project_id="p"), Project)
        assert_type(sync.get_user_project("u", "p"), Project)
        assert_type(sync.list_user_projects("u"), Page[Project])
        assert_type(sync.record_download("u", "p"), Project)
        assert_type(sync.record_metric(metric_name="m", value=1), None)
        assert_type(sync.query_metrics("m", 1, 2), list[MetricRow])
        assert_type(sync.flush_metrics(), None)
        assert_type(sync.usage_report(1, 2), tdev.UsageReport)
        assert_type(sync.agent_performance(1, 2), tdev.PerformanceReport)
        assert_type(sync.compare_variants("parser", "a", "b", "m", 1, 2), tdev.Comparison)
        sync.handle_sigterm(20)
        assert_type(sync.assign_variant("e", "u", {"a": 1, "b": 1}), str)
        with sync.track_session("s", user_id="u") as session:
            assert_type(session, sync.Tracker)
            with session.agent("parser", key=1) as run:
                assert_type(run, sync.AgentRun)
                assert_type(run.once("mail", print), Any)
            assert_type(session.run("parser", pow, 2, 3), Any)

    async def wrong_uses() -> None:
        await tdev.get_pipeline_session(7)  # type: ignore[arg-type]
        await tdev.get_pipeline_session()  # type: ignore[call-arg]
        await tdev.list_pipeline_sessions("FAILED")  # type: ignore[call-arg]
        await tdev.query_metrics("m", 1, 2, group="day")  # type: ignore[call-arg]
        print((await tdev.get_pipeline_session("s")).lease_token)  # type: ignore[attr-defined]
        (await tdev.get_pipeline_session("s")).status = "x"  # type: ignore[misc]
        await sync.get_pipeline_session("s")  # type: ignore[misc]
        await tdev.track_session("s").run("parser", len, 7)  # type: ignore[arg-type]
        await tdev.track_session("s").run("parser", len)  # type: ignore[arg-type]
        tdev.track_session("s").run("parser", print)  # type: ignore[unused-coroutine]


def test_functions_show_their_own_signature() -> None:
    import inspect

    for module in (tdev, sync):
        signature = inspect.signature(module.resume_pipeline)
        assert list(signature.parameters) == ["session_id", "runner", "from_agent", "force"]
        assert (module.resume_pipeline.__doc__ or "").startswith("Claim a failed or stalled")
