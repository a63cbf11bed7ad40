"""The JSON: the public calls' own results, as the OpenAPI document describes them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator
from starlette.requests import Request
from starlette.testclient import TestClient

from tdev_models import Settings, settings, sync
from tdev_models.results import Execution
from tdev_models.web.api import CALLS, answer
from tests.web.conftest import Client, every_session


def asked(month: Settings) -> dict[str, dict[str, Any]]:
    """Return parameters of each call that find something."""
    (failed,) = sync.list_pipeline_sessions(status="FAILED", limit=1)
    (project,) = sync.list_user_projects("u001", limit=1)
    days = {"start": "10 days ago", "end": "0s"}
    return {
        "session": {"session_id": failed.session_id},
        "sessions": {"status": "COMPLETED", "limit": 3},
        "due": {"limit": 1},
        "executions": {"project_id": failed.session_id, "attempts": "true"},
        "execution": {"execution_id": f"{failed.session_id}-nl_input"},
        "failures": {"since": "30d", "include_recovered": "true", "limit": 5},
        "projects": {"user_id": "u001", "order": "project_id"},
        "project": {"user_id": "u001", "project_id": project.project_id},
        "workers": {},
        "usage": days,
        "agents": days,
        "metrics": {
            **days,
            "name": "agent_execution_time",
            "group_by": "day",
            "percentiles": "50,95.5",
        },
        "comparison": {
            **days,
            "agent": "search",
            "a": "old",
            "b": "new",
            "metric": "agent_execution_time",
        },
    }


def test_every_answer_is_as_the_document_describes(month: Settings, client: Client) -> None:
    asking = client()
    document = asking.get("/api/openapi.json").json()
    OpenAPI.model_validate(document)
    assert len({one["get"]["operationId"] for one in document["paths"].values()}) == 14
    examples = asked(month)
    assert examples.keys() == CALLS.keys()
    for name, parameters in examples.items():
        answer = asking.get(f"/api/{name}", params=parameters)
        assert answer.status_code == 200, answer.text
        operation = document["paths"][f"/api/{name}"]["get"]
        assert {one["name"] for one in operation["parameters"]} >= parameters.keys()
        assert operation["summary"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        check(schema, answer.json(), document)
        if name not in ("due", "session", "execution", "project", "usage", "agents", "comparison"):
            assert answer.json()["items"], name
    refused = asking.get("/api/session")
    assert refused.status_code == 400
    check(document["components"]["schemas"]["Error"], refused.json(), document)


def check(schema: dict[str, Any], value: Any, document: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_answers_are_those_of_the_calls(month: Settings, client: Client) -> None:
    asking, given = client(), asked(month)
    session = sync.get_pipeline_session(given["session"]["session_id"])
    assert asking.get("/api/session", params=given["session"]).json() == session.to_dict()
    executions = sync.get_agent_executions(session.session_id, attempts=True)
    assert asking.get("/api/executions", params=given["executions"]).json() == executions.to_dict()
    failures = sync.get_failed_executions(include_recovered=True, limit=5)
    assert asking.get("/api/failures?include_recovered=true&limit=5").json() == json.loads(
        json.dumps(failures.to_dict())
    )
    row = asking.get("/api/metrics", params=given["metrics"]).json()["items"][0]
    assert {*row["percentiles"]} == {"50", "95.5"}  # as in the command's JSON
    since = {"status": "FAILED", "created_after": session.created_at}
    assert session.session_id in asking.get("/api/sessions", params=since).text


def test_cursors_lead_through_a_list(month: Settings, client: Client) -> None:
    asking, cursor, found = client(), None, list[str]()
    while True:
        parameters = {
            "status": "COMPLETED",
            "limit": "40",
            **({"cursor": cursor} if cursor else {}),
        }
        page = asking.get("/api/sessions", params=parameters).json()
        found += [one["session_id"] for one in page["items"]]
        if (cursor := page["cursor"]) is None:
            break
    assert found == every_session("COMPLETED")
    assert len(found) > 80


def test_what_the_reader_has_is_not_sent_again(strict_store: Settings, client: Client) -> None:
    asking: TestClient = client()
    sync.save_pipeline_session(session_id="s", metadata={"by": ["안녕", 1.5, None]})
    first = asking.get("/api/session?session_id=s")
    tag = first.headers["etag"]
    for seen in (tag, f'W/{tag}, "other"'):
        again = asking.get("/api/session?session_id=s", headers={"If-None-Match": seen})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    sync.save_pipeline_session(session_id="s", progress=1)
    changed = asking.get("/api/session?session_id=s", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.json()["metadata"] == {"by": ["안녕", 1.5, None]}
    assert changed.headers["cache-control"] == "private, no-cache"


async def test_others_are_served_while_large_payloads_are_written() -> None:
    served = 0

    async def serve() -> None:
        nonlocal served
        while True:
            served += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(serve())
    found = Execution(execution_id="e", agent_name="parser", output_data=[*range(200_000)])
    answered = await answer(Request({"type": "http", "headers": []}), found)
    others.cancel()
    assert json.loads(bytes(answered.body))["output_data"] == [*range(200_000)]
    assert served > 10


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("sessions", "status"),
        ("sessions?status=STRANGE", "status"),
        ("sessions?status=FAILED&limit=x", "limit"),
        ("sessions?status=FAILED&limit=1&limit=2", "limit"),
        ("sessions?status=FAILED&limit=1001", "limit"),
        ("sessions?status=FAILED&cursor=x", "cursor"),
        ("sessions?status=FAILED&progress=1", "progress"),
        ("sessions?status=FAILED&created_after=soon", "created_after"),
        ("sessions?state=FAILED", "state"),
        ("metrics?name=m&start=2d&end=1d&percentiles=50,x", "percentiles"),
        ("comparison?agent=a&a=b&b=c&metric=m&start=2d&end=1d&effect=big", "effect"),
        ("comparison?agent=a&a=b&b=c&metric=m&start=2d&end=1d&weights=b", "weights"),
    ],
)
def test_wrong_parameters_are_named(
    strict_store: Settings, client: Client, path: str, field: str
) -> None:
    answer = client().get(f"/api/{path}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["field"]) == ("InvalidRequest", field)


def test_weights_are_a_text_that_is_described(client: Client) -> None:
    offered = client().get("/api/openapi.json").json()["paths"]["/api/comparison"]["get"]
    (described,) = (one for one in offered["parameters"] if one["name"] == "weights")
    assert described["schema"] == {"type": "string", "examples": ["old=9,new=1"]}
    assert described["description"]


def test_an_outage_says_call_again_and_to_users_no_more(
    strict_store: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(strict_store, endpoint="http://127.0.0.1:9", retry_seconds=0)
    monkeypatch.setattr(settings, "_configured", away)
    answer = client().get("/api/session?session_id=s")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "127.0.0.1:9" in answer.json()["error"]["message"]
    told = client(user_id=lambda request: "u").get("/api/session?session_id=s")
    assert told.status_code == 503
    assert told.json()["error"]["message"] == "The store does not answer now; call again."
