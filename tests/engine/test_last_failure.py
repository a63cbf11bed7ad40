"""Why a session failed last stays visible until it ends otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from tdev_models import (
    Settings,
    abandon_session,
    flush_metrics,
    get_pipeline_session,
    list_pipeline_sessions,
    query_metrics,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tests import raw
from tests.engine.pipelines import clock, fail, finish

LAST = ("search", "ValueError: broke")


async def failure(status: str) -> Any:
    session = await get_pipeline_session("s")
    assert session.status == status
    (listed,) = await list_pipeline_sessions(status=status)
    assert (listed.failed_agent, listed.error_message) == (
        session.failed_agent,
        session.error_message,
    )
    return session.failed_agent, session.error_message


async def failed_and_handed_back() -> None:
    await fail("s")
    with pytest.raises(KeyboardInterrupt):
        async with await resume_pipeline("s"):
            assert await failure("ACTIVE") == LAST
            raise KeyboardInterrupt


@pytest.mark.parametrize("ends", ["block", "save in the block", "bare save"])
async def test_it_is_seen_while_the_session_is_active_and_gone_once_it_is_completed(
    store: Settings, ends: str
) -> None:
    await failed_and_handed_back()
    assert await failure("ACTIVE") == LAST
    if ends == "bare save":
        await save_pipeline_session(session_id="s", status="COMPLETED")
    else:
        async with await resume_pipeline("s") as session:
            await finish(session)
            if ends != "block":
                await save_pipeline_session(session_id="s", status="COMPLETED")
    assert await failure("COMPLETED") == (None, None)


async def test_the_next_failure_takes_its_place_even_without_a_text(strict_store: Settings) -> None:
    await failed_and_handed_back()
    with pytest.raises(KeyError):
        async with track_session("s"):
            raise KeyError("of no agent")
    assert await failure("FAILED") == (None, "KeyError: 'of no agent'")
    async with track_session("s"):
        await save_pipeline_session(session_id="s", status="FAILED", failed_agent="download")
    assert await failure("FAILED") == ("download", None)


async def test_of_an_agent_that_fails_again_the_last_failure_counts(store: Settings) -> None:
    for reason in ("no model", "no memory"):
        async with track_session("s") as session, session.agent("search") as run:
            run.fail(reason)
        assert await failure("FAILED") == ("search", reason)


async def test_a_session_that_is_given_up_says_why_it_failed_last(strict_store: Settings) -> None:
    await failed_and_handed_back()
    raw.put_attribute(strict_store, "pipeline-sessions", "s", resumes_without_progress={"N": "9"})
    assert (await recover_sessions(finish, max_attempts=3)).abandoned == ["s"]
    assert ((await get_pipeline_session("s")).error_message or "").endswith(
        "; last: ValueError: broke"
    )


@pytest.mark.parametrize("had_failed", [True, False])
async def test_a_session_whose_workers_died_says_so_and_why_it_failed_before(
    strict_store: Settings, had_failed: bool
) -> None:
    if had_failed:
        await fail("s")
    await track_session("s").__aenter__()  # and its worker dies
    counts = {"resumes_without_progress": {"N": "9"}, "worker_deaths": {"N": "2"}}
    raw.put_attribute(strict_store, "pipeline-sessions", "s", **counts)
    with settings.use(strict_store, clock=clock(4000)):
        assert (await recover_sessions(finish, max_attempts=3)).abandoned == ["s"]
    text = (await get_pipeline_session("s")).error_message or ""
    before = "; before that: ValueError: broke" if had_failed else ""
    assert text.endswith(f"; last: its workers died{before}")


async def test_an_abandoned_session_stopped_where_it_was_and_not_where_it_had_failed(
    strict_store: Settings,
) -> None:
    with settings.use(strict_store, automatic_metrics=True):
        await fail("s")
        async with await resume_pipeline("s") as session, session.agent("download"):
            await abandon_session("s", "enough")
        await flush_metrics()
        now = settings.current().clock()
        (row,) = await query_metrics("sessions_abandoned", now - 3600, now + 3600, group_by="agent")
    assert row.agent_name == "download"


def test_a_blocking_caller_sees_it_too(strict_store: Settings) -> None:
    sync.save_pipeline_session(session_id="s", status="FAILED", error_message="why")
    with sync.track_session("s"):
        assert sync.get_pipeline_session("s").error_message == "why"
    assert sync.get_pipeline_session("s").error_message is None
