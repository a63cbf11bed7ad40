"""Projects and downloads."""

from __future__ import annotations

import asyncio

import pytest

from tdev_models import (
    InvalidRequest,
    NotFound,
    PayloadDamaged,
    Settings,
    get_user_project,
    list_user_projects,
    record_download,
    save_user_project,
    settings,
)
from tests import raw
from tests.faults import Fault, injected


async def test_only_the_given_fields_change(store: Settings) -> None:
    first = await save_user_project(
        user_id="u", project_id="p", project_name="n", tech_stack=["React"], size_mb=1.5
    )
    second = await save_user_project({"user_id": "u", "project_id": "p"}, description="d")
    assert second == await get_user_project("u", "p")
    assert dict(second) | {"description": None, "last_accessed": 0} == dict(first) | {
        "last_accessed": 0
    }
    assert second.tech_stack == ["React"]
    with pytest.raises(NotFound, match="user u has no project q"):
        await get_user_project("u", "q")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", ""),
        ("project_id", "x" * 1025),
        ("tech_stack", "React"),
        ("size_mb", "big"),
        ("size_mb", float("inf")),
        ("size_mb", 1e61),
        ("size_mb", 10**38 + 1),
        ("download_count", 3),
        ("colour", "red"),
    ],
)
async def test_bad_input_names_the_field_before_any_request(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await save_user_project({"user_id": "u", "project_id": "p", field: value})


async def test_history_is_listed_by_last_access_or_by_id(store: Settings) -> None:
    for name in "cab":
        await save_user_project(user_id="u", project_id=name)
    await save_user_project(user_id="other", project_id="x")
    await record_download("u", "c")
    recent = [one.project_id for one in await list_user_projects("u")]
    assert recent == ["c", "b", "a"]
    first = await list_user_projects("u", order="project_id", limit=2)
    rest = await list_user_projects("u", order="project_id", limit=2, cursor=first.cursor)
    assert [one.project_id for one in [*first, *rest]] == ["a", "b", "c"]
    with pytest.raises(InvalidRequest, match=r"^cursor: "):
        await list_user_projects("u", cursor=first.cursor)
    with pytest.raises(InvalidRequest, match=r"^order: "):
        await list_user_projects("u", order="size")


@pytest.mark.parametrize("order", ["recent", "project_id"])
async def test_a_project_that_cannot_be_read_hides_no_other(
    store: Settings, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abcd":
        await save_user_project(user_id="u", project_id=name, tech_stack=["React"])
    for name, other_form in (("b", {"L": [{"S": "React"}]}), ("c", {"S": "React"})):
        raw.put_attribute(store, "user-projects", "u", name, tech_stack=other_form)
    assert {one.project_id for one in await list_user_projects("u", order)} == {"a", "d"}
    for name in "bc":
        assert f"u {name} cannot be read" in caplog.text
        with pytest.raises(PayloadDamaged, match=f"u {name} cannot be read"):
            await get_user_project("u", name)


@pytest.mark.parametrize("download_id", [None, "mine"])
async def test_a_download_resent_after_a_lost_reply_counts_once(
    store: Settings, download_id: str | None
) -> None:
    await save_user_project(user_id="u", project_id="p")
    with injected(Fault("resent", operation="UpdateItem")):
        project = await record_download("u", "p", download_id)
    assert project.download_count == 1
    assert (await get_user_project("u", "p")).download_count == 1


async def test_the_same_download_id_counts_once_among_the_last_hundred(store: Settings) -> None:
    await save_user_project(user_id="u", project_id="p")
    for number in range(320):
        await record_download("u", "p", f"d{number}")
    for number in (319, 300, 220):
        await record_download("u", "p", f"d{number}")
    assert (await get_user_project("u", "p")).download_count == 320
    stored = raw.item(store, "user-projects", "u", "p")
    assert stored is not None
    assert 100 <= len(stored["download_ids"]["L"]) <= 150


async def test_cutting_the_ids_loses_no_download_in_between(store: Settings) -> None:
    await save_user_project(user_id="u", project_id="p")
    for number in range(150):
        await record_download("u", "p", f"d{number}")

    async def other() -> None:
        with settings.use(store):
            await record_download("u", "p", "other")

    # The first UpdateItem finds the list full; the second would cut it.
    with injected(Fault("before", operation="UpdateItem", nth=2, between=other)):
        await record_download("u", "p", "mine")
    stored = raw.item(store, "user-projects", "u", "p")
    assert stored is not None
    ids = [one["S"] for one in stored["download_ids"]["L"]]
    assert ids[-2:] == ["other", "mine"]
    assert stored["download_count"] == {"N": "152"}


async def test_downloads_at_once_are_all_counted(strict_store: Settings) -> None:
    await save_user_project(user_id="u", project_id="p")
    await asyncio.gather(*(record_download("u", "p") for _ in range(40)))
    assert (await get_user_project("u", "p")).download_count == 40


async def test_a_download_of_nothing_is_not_found(store: Settings) -> None:
    with pytest.raises(NotFound):
        await record_download("u", "p")
    assert raw.item(store, "user-projects", "u", "p") is None


async def test_attributes_of_a_newer_release_survive(store: Settings) -> None:
    await save_user_project(user_id="u", project_id="p")
    raw.put_attribute(store, "user-projects", "u", "p", future={"S": "kept"})
    await save_user_project(user_id="u", project_id="p", project_name="n")
    await record_download("u", "p")
    stored = raw.item(store, "user-projects", "u", "p")
    assert stored is not None
    assert stored["future"] == {"S": "kept"}
