"""What a type checker tells a caller; `mypy` runs over this file in `make check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import tdev_models as tdev
from tdev_models import sync
from tdev_models.results import Execution, MetricRow, Page, Project, Session

if TYPE_CHECKING:

    async def right_uses() -> None:
        assert_type(await tdev.save_pipeline_session({"session_id": "s"}), Session)
        assert_type(await tdev.save_pipeline_session(session_id="s", progress=3), Session)
        assert_type(await tdev.get_pipeline_session("s"), Session)
        assert_type(await tdev.list_pipeline_sessions(status="FAILED"), Page[Session])
        assert_type(await tdev.get_failed_sessions(limit=5), Page[Session])
        assert_type(await tdev.update_agent_execution(execution_id="s-parser"), Execution)
        assert_type(await tdev.list_user_projects("u"), Page[Project])
        assert_type(await tdev.query_metrics("m", 1, 2), list[MetricRow])
        assert_type(await tdev.resume_pipeline("s"), tdev.Resume)
        async with tdev.track_session("s", user_id="u") as session:
            assert_type(session, tdev.Tracker)
            async with session.agent("parser") as run:
                assert_type(run, tdev.AgentRun)
        assert_type(next(tdev.PipelineSession.status_index.query("FAILED")), tdev.PipelineSession)

    def right_blocking_uses() -> None:
        assert_type(sync.get_pipeline_session("s"), Session)
        assert_type(sync.get_failed_sessions(), Page[Session])
        with sync.track_session("s") as session:
            assert_type(session, tdev.Tracker)

    async def wrong_uses() -> None:
        await tdev.get_pipeline_session(7)  # type: ignore[arg-type]
        await tdev.get_pipeline_session()  # type: ignore[call-arg]
        await tdev.list_pipeline_sessions("FAILED")  # type: ignore[call-arg]
        await tdev.query_metrics("m", 1, 2, group="day")  # type: ignore[call-arg]
        print((await tdev.get_pipeline_session("s")).lease_token)  # type: ignore[attr-defined]
        (await tdev.get_pipeline_session("s")).status = "x"  # type: ignore[misc]
        await sync.get_pipeline_session("s")  # type: ignore[misc]


def test_functions_show_their_own_signature() -> None:
    import inspect

    for module in (tdev, sync):
        signature = inspect.signature(module.resume_pipeline)
        assert list(signature.parameters) == ["session_id", "runner", "from_agent"]
        assert (module.resume_pipeline.__doc__ or "").startswith("Claim a failed or stalled")


def test_both_colours_have_the_same_functions() -> None:
    functions = {
        name for name in tdev.__all__ if callable(getattr(tdev, name)) and name[0].islower()
    }
    assert functions - {"configure"} == set(sync.__all__)
