"""Saving, reading and listing sessions."""

from __future__ import annotations

import asyncio
import contextvars
import json

import pytest

from tdev_models import (
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    NotFound,
    SessionStatus,
    Settings,
    abandon_session,
    get_pipeline_session,
    list_pipeline_sessions,
    resume_pipeline,
    save_pipeline_session,
    track_session,
)
from tests import raw

ALLOWED = {
    ("ACTIVE", "COMPLETED"),
    ("ACTIVE", "FAILED"),
    ("ACTIVE", "ABANDONED"),
    ("FAILED", "ACTIVE"),
    ("FAILED", "ABANDONED"),
}


@pytest.mark.parametrize("before", SessionStatus)
@pytest.mark.parametrize("after", SessionStatus)
async def test_status_changes_only_along_the_machine(
    store: Settings, before: str, after: str
) -> None:
    await save_pipeline_session(session_id="s", status=before)
    if before == after or (before, after) in ALLOWED:
        assert (await save_pipeline_session(session_id="s", status=after)).status == after
    else:
        with pytest.raises(InvalidTransition, match=f"is {before} and cannot become {after}"):
            await save_pipeline_session(session_id="s", status=after, project_name="x")
        session = await get_pipeline_session("s")
        assert (session.status, session.project_name) == (before, None)


async def test_only_the_given_fields_change(store: Settings) -> None:
    first = await save_pipeline_session(
        session_id="s", user_id="u", metadata={"a": [1, 2.5, None]}, progress=3
    )
    second = await save_pipeline_session(
        {"session_id": "s", "progress": None}, current_agent="parser"
    )
    assert second == await get_pipeline_session("s")
    same = {"last_updated": 0, "due_at": 0, "current_agent": None}
    assert dict(second) | same == dict(first) | same
    assert second.created_at == first.created_at
    assert (second.last_updated or 0) > (first.last_updated or 0)
    assert second["metadata"] == {"a": [1, 2.5, None]}


async def test_metadata_is_kept_as_the_json_text_that_was_given(store: Settings) -> None:
    text = json.dumps({"b": 1, "a": "é"}, indent=1)
    await save_pipeline_session(session_id="s", metadata=text)
    stored = raw.item(store, "pipeline-sessions", "s")
    assert stored is not None
    assert stored["metadata"] == {"S": text}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("session_id", ""),
        ("session_id", "x" * 2049),
        ("session_id", 7),
        ("user_id", ""),
        ("status", "DONE"),
        ("progress", 10),
        ("progress", -1),
        ("progress", True),
        ("progress", 1.5),
        ("pipeline_type", "HUGE"),
        ("metadata", "not json"),
        ("metadata", object()),
        ("metadata", {"x": "y" * 17_000}),
        ("metadata", {1: 1, "1": 2}),
        ("project_name", "\ud800"),
        ("fence", 3),
        ("created_at", 1.0),
        ("stat", "ACTIVE"),
    ],
)
async def test_bad_input_names_the_field_before_any_request(
    field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No endpoint: a request would be a ConfigurationError or a time-out.
    with pytest.raises(InvalidRequest, match=f"^{field}: ") as caught:
        await save_pipeline_session({"session_id": "s", field: value})
    assert caught.value.field == field


async def test_a_missing_session_is_not_found(store: Settings) -> None:
    with pytest.raises(NotFound, match="no session nope"):
        await get_pipeline_session("nope")
    with pytest.raises(NotFound):
        await abandon_session("nope", "because")
    with pytest.raises(NotFound):
        await resume_pipeline("nope")


async def test_sessions_are_listed_newest_first_page_by_page(store: Settings) -> None:
    for number in range(7):
        await save_pipeline_session(session_id=f"s{number}", user_id="u")
    await save_pipeline_session(session_id="other", status="FAILED", user_id="v")
    for query in ({"status": "ACTIVE"}, {"user_id": "u"}):
        seen: list[str] = []
        cursor = None
        while True:
            page = await list_pipeline_sessions(limit=3, cursor=cursor, **query)
            assert len(page) <= 3
            seen += [session.session_id for session in page]
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [f"s{number}" for number in reversed(range(7))]


async def test_a_cursor_is_refused_where_it_does_not_belong(store: Settings) -> None:
    for number in range(3):
        await save_pipeline_session(session_id=f"s{number}", user_id="u")
    page = await list_pipeline_sessions(status="ACTIVE", limit=1)
    assert page.cursor
    altered = page.cursor[:-3] + ("AAA" if page.cursor[-3:] != "AAA" else "BBB")
    for query in (
        {"status": "FAILED", "cursor": page.cursor},
        {"user_id": "u", "cursor": page.cursor},
        {"status": "ACTIVE", "cursor": altered},
        {"status": "ACTIVE", "cursor": "!"},
    ):
        with pytest.raises(InvalidRequest, match=r"^cursor: "):
            await list_pipeline_sessions(**query)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", [{}, {"status": "ACTIVE", "user_id": "u"}])
async def test_a_list_wants_one_of_status_and_user(query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="either status or user_id"):
        await list_pipeline_sessions(**query)  # type: ignore[arg-type]


async def test_a_bare_call_on_an_owned_session_changes_nothing(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED", project_name="before")
    assert await resume_pipeline("s")
    before = await get_pipeline_session("s")
    for fields in ({"status": "FAILED"}, {"status": "ACTIVE"}, {"project_name": "after"}):
        with pytest.raises(LeaseHeld, match="owned by"):
            await save_pipeline_session({"session_id": "s", **fields})
    assert await get_pipeline_session("s") == before


async def test_abandoning_ends_a_session_even_under_its_owner(store: Settings) -> None:
    session = track_session("s")
    await session.__aenter__()
    await asyncio.create_task(
        abandon_session("s", "operator said so"), context=contextvars.Context()
    )
    with pytest.raises(LeaseLost):
        async with session.agent("parser"):
            await asyncio.sleep(30)
    with pytest.raises(LeaseLost):
        await session.__aexit__(None, None, None)
    ended = await abandon_session("s", "operator said so")  # again is no error
    assert (ended.status, ended.error_message) == ("ABANDONED", "operator said so")
    for status in ("ACTIVE", "COMPLETED", "FAILED"):
        with pytest.raises(InvalidTransition):
            await save_pipeline_session(session_id="s", status=status)
    assert (await resume_pipeline("s")).reason == "it is ABANDONED"


async def test_a_completed_session_cannot_be_abandoned(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="COMPLETED")
    with pytest.raises(InvalidTransition):
        await abandon_session("s", "late")
    with pytest.raises(InvalidRequest, match=r"^reason: "):
        await abandon_session("s", "")


async def test_attributes_of_a_newer_release_survive(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    future = {"M": {"x": {"N": "1"}}}
    raw.put_attribute(store, "pipeline-sessions", "s", future=future)
    await save_pipeline_session(session_id="s", project_name="p")
    async with await resume_pipeline("s") as session:
        async with session.agent("nl_input") as run:
            run.output = 1
        await save_pipeline_session(session_id="s", metadata={})
    stored = raw.item(store, "pipeline-sessions", "s")
    assert stored is not None
    assert stored["future"] == future
