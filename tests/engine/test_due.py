"""When somebody should look at a session, and what the index of it costs and shows."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tdev_models import (
    PayloadDamaged,
    Resume,
    Settings,
    get_failed_executions,
    get_failed_sessions,
    get_pipeline_session,
    list_pipeline_sessions,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    settings,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.engine.pipelines import clock, finish

DEEP = {"S": "[" * 5000 + "]" * 5000}


async def due_in(session_id: str) -> float:
    return ((await get_pipeline_session(session_id)).due_at or 0) - time.time()


async def test_each_status_is_due_in_its_own_time(store: Settings) -> None:
    for status, seconds in {"ACTIVE": 3600, "FAILED": 0, "COMPLETED": 0, "ABANDONED": 0}.items():
        await save_pipeline_session(session_id=status, status=status)
        assert await due_in(status) == pytest.approx(seconds, abs=10)
    async with track_session("s"):
        assert await due_in("s") == pytest.approx(3600, abs=10)
    assert await due_in("s") == pytest.approx(0, abs=10)


async def test_a_bare_save_moves_what_is_active_and_leaves_a_backoff_alone(
    store: Settings,
) -> None:
    await save_pipeline_session(session_id="live")
    await save_pipeline_session(session_id="waits", status="FAILED")

    async def runner(session: Resume) -> None:
        raise RuntimeError

    await recover_sessions(runner, backoff_seconds=1000)
    waits = (await get_pipeline_session("waits")).due_at
    with settings.use(store, clock=clock(400)):
        for name in ("live", "waits"):
            saved = await save_pipeline_session(session_id=name, project_name="p", progress=2)
            assert (saved.project_name, saved.progress) == ("p", 2)
    assert await due_in("live") == pytest.approx(4000, abs=10)
    assert (await get_pipeline_session("waits")).due_at == waits


async def test_a_session_in_backoff_is_listed_and_not_found(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")

    async def runner(session: Resume) -> None:
        raise RuntimeError

    await recover_sessions(runner, backoff_seconds=1000)
    assert await get_failed_sessions() == []
    (waiting,) = await list_pipeline_sessions(status="FAILED")
    assert (waiting.due_at or 0) > time.time() + 400
    with settings.use(store, clock=clock(1000)):
        assert len(await get_failed_sessions()) == 1


async def test_a_list_shows_where_active_sessions_are(store: Settings) -> None:
    for name in "ab":
        await save_pipeline_session(session_id=name, user_id="u", progress=3)
    await save_pipeline_session(session_id="c", user_id="u", progress=9, status="COMPLETED")
    await update_agent_execution(execution_id="a-parser", status="RUNNING")
    async with track_session("d", user_id="u") as session:
        async with session.agent("nl_input") as run:
            run.output = 1
        expected = {"a": (3, None), "b": (3, None), "d": (1, "nl_input")}
        for page in (
            await list_pipeline_sessions(status="ACTIVE"),
            await list_pipeline_sessions(user_id="u"),
        ):
            shown = {one.session_id: one for one in page}
            active = {name: shown[name] for name in expected}
            assert {
                name: (one.progress, one.current_agent) for name, one in active.items()
            } == expected
            assert all(one.last_updated for one in active.values())
        (ended,) = await list_pipeline_sessions(status="COMPLETED")
        assert (ended.progress, ended.last_updated) == (None, None)


async def test_expired_rows_hide_no_failure(store: Settings) -> None:
    past = {"N": str(int(time.time()) - 60)}
    for number in range(120):
        await save_pipeline_session(session_id=f"old{number}", status="FAILED")
        raw.put_attribute(store, "pipeline-sessions", f"old{number}", expires_at=past)
    for name in "abc":
        await save_pipeline_session(session_id=name, status="FAILED")
    page = await get_failed_sessions(limit=3)
    assert [one.session_id for one in page] == ["a", "b", "c"]
    assert sorted((await recover_sessions(finish)).completed) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "damage",
    [
        {"metadata": DEEP},
        {"metadata": {"S": "no json"}},
        {"resume_count": {"S": "three"}},
        {"resume_count": {"N": "1e125"}},
        {"lease_expires": {"L": []}},
        {"expires_at": {"S": "never"}},
        {"failed_agent": {"N": "1"}},
    ],
    ids=lambda damage: "-".join(damage),
)
async def test_one_row_that_cannot_be_read_hides_no_other(
    store: Settings, damage: dict[str, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "bad", "c"):
        await save_pipeline_session(session_id=name, status="FAILED", user_id="u")
    raw.put_attribute(store, "pipeline-sessions", "bad", **damage)
    assert [one.session_id for one in await get_failed_sessions()] == ["a", "c"]
    for page in (
        await list_pipeline_sessions(status="FAILED"),
        await list_pipeline_sessions(user_id="u"),
    ):
        assert {one.session_id for one in page} - {"bad"} == {"a", "c"}
    done = await recover_sessions(finish)
    assert (done.unreadable, sorted(done.completed)) == (["bad"], ["a", "c"])
    assert "bad cannot be read" in caplog.text
    with pytest.raises(PayloadDamaged, match="bad cannot be read"):
        await resume_pipeline("bad")
    assert raw.item(store, "pipeline-sessions", "bad") is not None


async def test_one_execution_that_cannot_be_read_hides_no_other(store: Settings) -> None:
    for name in ("a", "bad", "c"):
        await update_agent_execution(execution_id=f"{name}-parser", status="FAILED")
    raw.put_attribute(store, "agent-executions", "bad-parser", "parser", retry_count={"S": "three"})
    assert [one.session_id for one in await get_failed_executions()] == ["c", "a"]


async def test_a_page_ends_at_a_row_of_another_program(store: Settings) -> None:
    for number, status in enumerate(["FAILED", "ACTIVE", "FAILED", "ACTIVE"]):
        await save_pipeline_session(session_id=f"s{number}", status=status)
        due_at = {"N": f"170000000{number}.123456789"}  # more digits than a float has
        odd = {"due_at": due_at, "expires_at": {"N": "1e20"}}
        raw.put_attribute(store, "pipeline-sessions", f"s{number}", **odd)
        await update_agent_execution(execution_id=f"s{number}-parser", status="FAILED")
        key = (f"s{number}-parser", "parser")
        raw.put_attribute(store, "agent-executions", *key, failed_at=due_at)
    with settings.use(clock=clock(4000)):
        for call, expected in ((get_failed_sessions, "0123"), (get_failed_executions, "3210")):
            seen, cursor = "", None
            while (cursor or not seen) and len(seen) < 9:
                more: Any = {} if call is get_failed_sessions else {"agent_name": "parser"}
                page: Any = await call(limit=1, cursor=cursor, **more)
                seen, cursor = seen + "".join(one.session_id[1] for one in page), page.cursor
            assert seen == expected


async def test_a_row_of_another_program_is_passed_over(store: Settings) -> None:
    now = {"N": str(time.time() - 10)}
    raw.put_attribute(
        store, "pipeline-sessions", "odd", status={"S": "FAILED"}, due_at=now, foo={"BOOL": True}
    )
    assert (await recover_sessions(finish)).completed == ["odd"]
