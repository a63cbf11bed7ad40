"""A cursor that was forged, checksum and all, is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tdev_models import InvalidRequest, Settings, settings, sync
from tdev_models.dynamodb import cursors

SESSION = {"session_id": {"S": "s"}, "status": {"S": "FAILED"}, "due_at": {"N": "1.5"}}
TABLES = "t-developer-dev-"
# The call, how it names its query, and a position as it makes them.
CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "list_pipeline_sessions": (
        lambda cursor: sync.list_pipeline_sessions(status="FAILED", cursor=cursor),
        (
            "list_pipeline_sessions",
            f"{TABLES}pipeline-sessions",
            *("status-index", "FAILED", None, None),
        ),
        SESSION,
    ),
    "list_workers": (
        lambda cursor: sync.list_workers(cursor=cursor),
        ("list_workers", f"{TABLES}pipeline-sessions"),
        {**SESSION, "status": {"S": "WORKER"}},
    ),
    "list_user_projects": (
        lambda cursor: sync.list_user_projects("u", order="project_id", cursor=cursor),
        ("list_user_projects", f"{TABLES}user-projects", "u", "project_id"),
        {"user_id": {"S": "u"}, "project_id": {"S": "p"}},
    ),
    "get_agent_executions": (
        lambda cursor: sync.get_agent_executions("p", cursor=cursor),
        ("get_agent_executions", f"{TABLES}agent-executions", "p"),
        {
            "execution_id": {"S": "e"},
            "agent_name": {"S": "a"},
            "project_id": {"S": "p"},
            "start_time": {"N": "1"},
        },
    ),
    "get_failed_executions": (
        lambda cursor: sync.get_failed_executions(cursor=cursor),
        ("get_failed_executions", f"{TABLES}agent-executions", None, None, None, False),
        {
            "execution_id": {"S": "e"},
            "agent_name": {"S": "a"},
            "status": {"S": "FAILED"},
            "failed_at": {"N": "1"},
        },
    ),
    "get_failed_executions of a session": (
        lambda cursor: sync.get_failed_executions(session_id="s", cursor=cursor),
        ("get_failed_executions", f"{TABLES}agent-executions", None, None, "s", False),
        {"at": [1.5, "e", "a", 1]},
    ),
    "get_failed_sessions": (
        lambda cursor: sync.get_failed_sessions(cursor=cursor),
        ("get_failed_sessions", f"{TABLES}pipeline-sessions", True),
        {
            "at": {
                "WORKER": {
                    "after": {**SESSION, "status": {"S": "WORKER"}},
                    "within": {
                        "session_id": {"S": "s"},
                        "worker_id": {"S": "w"},
                        "created_at": {"N": "1"},
                    },
                },
                "FAILED": SESSION,
                "ACTIVE": None,
            },
            "bounds": {"due_by": 1.5, "updated_before": None},
        },
    ),
}
WRONG: tuple[Any, ...] = (
    None,
    True,
    1,
    1e308,
    "x",
    [],
    {},
    {"S": ""},
    {"N": "x"},
    {"S": 1},
    {"S": "\ud800"},
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    operations: list[str] = []

    def noting(send: settings.Transport) -> settings.Transport:
        async def note(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            operations.append(operation)
            return {"Items": [], "Count": 0}

        return note

    made = Settings(region="us-east-1", transport=noting)
    monkeypatch.setattr(settings, "_configured", made)
    return operations


def forgeries(value: Any) -> list[Any]:
    """Return the values that differ from one in a single part."""
    # Another text, or another number, would be another position.
    kinds = (int, float) if isinstance(value, int | float) else (type(value),)
    made = [wrong for wrong in WRONG if type(wrong) not in kinds or wrong in ({}, [])]
    made += [10**400, 1e308] if kinds == (int, float) else []
    made += ["x"] if value == "1" else []  # the text of a number
    if isinstance(value, dict):
        made += [{**value, "more": {"S": "x"}}]
        for name, part in value.items():
            made += [{other: value[other] for other in value if other != name}]
            made += [{**value, name: forged} for forged in forgeries(part)]
    if isinstance(value, list):
        made += [value[:-1], [*value, 1], value[::-1]]
    return made


@pytest.mark.parametrize("name", CALLS)
def test_a_forged_cursor_is_refused(name: str, sent: list[str]) -> None:
    call, query, position = CALLS[name]
    call(cursors.encode(query, position))
    assert sent, "a position as the call makes it is taken"
    sent.clear()
    taken = []
    for forged in forgeries(position):
        try:
            call(cursors.encode(query, forged))
        except InvalidRequest:
            continue
        taken.append(forged)
    if name == "get_failed_sessions":
        # Not to go on with some of the three, or at the beginning of one, or with any moment.
        taken = [one for one in taken if not is_other_page(one, position)]
    assert taken == []


def is_other_page(one: Any, position: Any) -> bool:
    def left(starts: Any) -> dict[str, Any]:
        return {name: start for name, start in starts.items() if start is not None}

    at, of = one["at"], position["at"]
    if isinstance(at.get("WORKER"), dict):
        part = {"after": None, **at["WORKER"]}
        if part == {**of["WORKER"], "after": None} or part == {"after": of["WORKER"]["after"]}:
            at = {**at, "WORKER": of["WORKER"]}
    same_bounds = one["bounds"].keys() == position["bounds"].keys()
    return same_bounds and left(at).items() <= left(of).items()


@pytest.mark.parametrize("cursor", ["A" * 50_000_000, "[" * 100_000, "", "é", b"x", 5, ["x"]])
def test_what_is_no_cursor_is_refused(cursor: Any, sent: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=r"^cursor: "):
        sync.list_workers(cursor=cursor)
    assert sent == []


def test_a_cursor_that_is_nested_deep_is_refused(sent: list[str]) -> None:
    query = CALLS["list_workers"][1]
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(InvalidRequest, match=r"^cursor: "):
        sync.list_workers(cursor=cursors.encode(query, deep))
    assert sent == []
