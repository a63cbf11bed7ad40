"""What the pages show: the public calls' numbers, in two languages, and only to whom it belongs."""

from __future__ import annotations

import asyncio
import html
import re
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from tdev_models import ConfigurationError, Resume, Settings, record_metric, settings, sync, web
from tdev_models.metrics.experiments import compared
from tdev_models.metrics.totals import Totals
from tdev_models.results import Execution
from tdev_models.views.moments import moment
from tdev_models.views.numbers import percent, short
from tdev_models.web import pages
from tdev_models.web.languages import language, translate
from tdev_models.web.rendering import PAYLOAD_CHARACTERS, payload
from tests import raw
from tests.web.conftest import Client, every_session

PAGES = (
    *("/", "/?show=all", "/?show=due", "/?user_id=u001", "/failures?since=30d", "/failures?open=1"),
    *("/agents", "/usage", "/comparison", "/comparison?agent_name=search", "/workers"),
    *("/comparison?agent_name=search&a=old&b=new&days=30", "/projects", "/projects?user_id=u001"),
)


def words(page: str) -> str:
    """Return the text of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


@pytest.mark.parametrize("spoken", ["en", "ko-KR,ko;q=0.9,en;q=0.8"])
def test_every_page_is_there_in_both_languages(
    month: Settings, client: Client, spoken: str
) -> None:
    asking = client(spoken, action_token="x" * 16)
    for path in PAGES:
        answer = asking.get(path)
        assert answer.status_code == 200, path
        assert f'<html lang="{spoken[:2]}">' in answer.text
        # Nothing that the strict policy would refuse.
        assert not re.search(r"<style|style=|\son\w+=|javascript:", answer.text), path
    assert ("세션" in asking.get("/").text) == spoken.startswith("ko")


def test_every_text_of_the_templates_has_its_korean() -> None:
    folder = Path(web.__file__).parent / "templates"
    used = {
        text
        for template in folder.iterdir()
        for text in re.findall(r"""\bt\("([^"]+)"\)|\bt\('([^']+)'\)""", template.read_text())
        for text in text
        if text
    }
    assert len(used) > 100
    korean = translate("ko")
    assert all(korean(text) for text in used)


def test_the_language_is_the_one_that_is_wanted_most() -> None:
    for accepted, wanted in (
        ("", "en"),
        ("ko", "ko"),
        ("fr,ko;q=0.5", "ko"),
        ("en-GB,ko;q=0.9", "en"),
        ("en;q=0.1,ko-KR;q=0.2", "ko"),
        ("ko;q=0", "en"),
        ("ko; q=0.9, en ; Q=0.8", "ko"),
        ("ko;q=nonsense,,;", "en"),
    ):
        assert language(accepted) == wanted, accepted


def test_the_lists_are_those_of_the_calls(month: Settings, client: Client) -> None:
    asking = client()

    def listed(path: str) -> list[str]:
        rows = re.findall(
            r'<th scope="row" class="id"><a [^>]*><bdi>([^<]*)', asking.get(path).text
        )
        return [html.unescape(one) for one in rows]

    for status in ("ACTIVE", "FAILED", "COMPLETED", "ABANDONED"):
        wanted = sync.list_pipeline_sessions(status=status, limit=10)
        assert listed(f"/?show={status}&limit=10") == [one.session_id for one in wanted]
    both = [
        one.session_id
        for status in ("ACTIVE", "FAILED")
        for one in sync.list_pipeline_sessions(status=status, limit=25)
    ]
    assert listed("/") == both
    assert listed("/?show=due") == [one.session_id for one in sync.get_failed_sessions(limit=25)]
    of_user = sync.list_pipeline_sessions(user_id="u001", created_after=moment("since", "9d"))
    assert listed("/?user_id=u001&since=9d&limit=100") == [one.session_id for one in of_user]
    chosen = asking.get("/?show=FAILED&user_id=u001").text  # which lists all of that user
    assert re.findall(r'<option value="(\w+)" selected', chosen) == ["all"]
    assert asking.get("/?show=due&since=9d").status_code == 400


def test_no_more_of_a_payload_is_made_into_text_than_is_shown() -> None:
    text = payload([*range(100_000), object()])  # which is no JSON
    assert len(text) == PAYLOAD_CHARACTERS + 1
    assert text.endswith("…")
    assert payload({"a": ["안녕"]}) == '{\n  "a": [\n    "안녕"\n  ]\n}'


def test_the_next_page_follows(month: Settings, client: Client) -> None:
    asking = client()
    path, seen = "/?show=COMPLETED&limit=50", list[str]()
    while path:
        text = asking.get(path).text
        seen += re.findall(r'<th scope="row" class="id"><a [^>]*><bdi>([^<]*)', text)
        found = re.search(r'rel="next" href="([^"]*)"', text)
        path = html.unescape(found[1]) if found else ""
    assert seen == every_session("COMPLETED")


@pytest.mark.parametrize(
    "path", ["/?show=COMPLETED&since=40d&limit=2", "/?user_id=u001&older_than=1m&limit=2"]
)
def test_the_next_page_of_an_age_follows(month: Settings, client: Client, path: str) -> None:
    assert_next(client(), path)


def test_the_next_page_of_failures_follows(
    month: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_FAILURES", 2)
    assert_next(client(), "/failures?since=40d")


@pytest.mark.parametrize("path", ["/failures", "/comparison"])
def test_an_agent_of_one_s_own_stays_chosen(
    strict_store: Settings, client: Client, path: str
) -> None:
    text = client().get(f"{path}?agent_name=evaluator").text
    assert re.findall("<option selected>([^<]*)", text) == ["evaluator"]


def assert_next(asking: TestClient, path: str) -> None:
    """Assert that a page links to one that is there, though its age is of another moment."""
    (following,) = re.findall(r'rel="next" href="([^"]*)"', asking.get(path).text)
    answer = asking.get(html.unescape(following))
    assert (answer.status_code, "<tbody>" in answer.text) == (200, True)


def test_a_session_shows_each_attempt_with_its_time_and_cost(
    month: Settings, client: Client
) -> None:
    (failure, *_) = sync.get_failed_executions(include_recovered=True, limit=1)
    session_id = failure.session_id or ""
    text = client().get("/session", params={"session_id": session_id, "tracebacks": "1"}).text
    shown = words(text)
    executions = sync.get_agent_executions(session_id, attempts=True)
    assert text.count("<rect class=") == sum(len(one.attempts) for one in executions)
    session = sync.get_pipeline_session(session_id)
    assert f"{int(session.progress or 0)}/9" in shown
    for execution in executions:
        assert_shown(execution, shown)
    assert words(failure.error_message or "") in shown
    assert "Traceback (most recent call last)" in shown


def assert_shown(execution: Execution, shown: str) -> None:
    for attempt in execution.attempts:
        name = execution.agent_name + (f" #{attempt.number}" if attempt.number > 1 else "")
        assert f"{name} {attempt.status}" in shown
        if attempt.end_time is not None and attempt.start_time is not None:
            assert f" {short(attempt.end_time - attempt.start_time)} " in shown
    if tokens := (execution.input_tokens or 0) + (execution.output_tokens or 0):
        assert f"{int(tokens):,} {short(execution.cost_usd)}" in shown


def test_reports_show_the_numbers_of_the_calls(month: Settings, client: Client) -> None:
    # A day more than there is: an hour that ends in between changes no number.
    asking, start, end = client(), moment("start", "31d"), moment("end", "0s")
    shown = words(asking.get("/agents?days=31").text)
    for agent in sync.agent_performance(start, end).agents:
        numbers = [f"{agent.runs:,}", percent(agent.success_rate), f"{agent.retries:,}"]
        numbers += map(short, (agent.mean, agent.p50, agent.p95, agent.p99))
        assert " ".join([agent.agent_name, *numbers]) in shown
    report = sync.usage_report(start, end)
    shown = words(asking.get("/usage?days=31").text)
    assert f"started {report.sessions.started:,} completed {report.sessions.completed:,}" in shown
    for step in report.funnel:
        assert f"{step.agent_name} {step.completed:,} {step.stopped:,}" in shown
    for day in report.by_day:
        events = ("started", "completed", "failed", "abandoned", "resumed")
        assert " ".join([day.group, *(f"{day[event]:,}" for event in events)]) in shown
    for name, number in report.technologies.items():
        assert f"{name} {number:,}" in shown
    for row in sync.query_metrics("agent_cost_usd", start, end, group_by="agent"):
        assert re.search(rf"{row.agent_name} [\d,]+ {row.sum:,.2f}", shown)
    found = sync.compare_variants("search", "old", "new", "agent_execution_time", start, end)
    shown = words(asking.get("/comparison?agent_name=search&a=old&b=new&days=31").text)
    assert found.a is not None
    assert f"old {found.a.count:,} {percent(found.a.success_rate)} {short(found.a.mean)}" in shown
    assert found.verdict in shown
    shown = words(asking.get("/workers").text)
    for worker in sync.list_workers():
        assert f"{worker.name} {worker.state} {worker.sessions}" in shown


def test_an_uneven_test_is_judged_by_its_weights(strict_store: Settings, client: Client) -> None:
    of_agent = {"metric_name": "agent_execution_time", "agent_name": "search", "value": 1}

    async def record() -> None:
        variants = ["a=b"] * 90 + ["c,d"] * 30
        await asyncio.gather(*(record_metric(of_agent, dimension=one) for one in variants))

    asyncio.run(record())
    asked = {"agent_name": "search", "a": "a=b", "b": "c,d", "days": "1"}
    asking = client()
    assert "Not to be trusted" in words(asking.get("/comparison", params=asked).text)
    text = asking.get("/comparison", params={**asked, "weights": "a=b=3,c,d=1"}).text
    assert "Not enough data to tell" in words(text)
    assert 'value="a=b=3,c,d=1"' in text
    assert asking.get("/comparison", params={**asked, "weights": "a=b"}).status_code == 400
    api = {"agent": "search", "a": "a=b", "b": "c,d", "metric": "agent_execution_time"}
    api |= {"start": "1d", "end": "0s", "weights": "a=b=3, c,d=1"}
    assert "Not enough data to tell" in asking.get("/api/comparison", params=api).json()["verdict"]


@pytest.mark.parametrize("names", [("A", "B"), ("gpt-4.1 mini", "새 것 (2)"), ("a\nb", "B")])
def test_every_verdict_is_said_in_korean(names: tuple[str, str]) -> None:
    few, many = Totals.of([1.0] * 20), Totals.of([1.0, 2.0] * 2000)
    slow, failing = Totals.of([9.0, 18.0] * 2000), Totals.of([1.0, 2.0] * 2000, errors=900)
    unsure, nothing = Totals.of([1.0, 9.0] * 60), Totals.of([0.0] * 4000)
    pairs = [(few, many), (many, slow), (slow, many), (many, failing), (failing, slow)]
    pairs += [(many, many), (unsure, unsure), (nothing, nothing), (many, Totals.of([1.0] * 900))]
    said = set[str]()
    for a, b in pairs:
        english = compared("x", "m", (names[0], a), (names[1], b)).verdict
        said |= set(re.findall("Not enough|trusted|more often|less often|less than", english))
        said |= set(re.findall("more than|rates show|Values show|success \\(|above 0", english))
        said |= set(re.findall(r"values \(\d+ each\)", english))
        korean = translate("ko")(english)
        assert sorted(re.findall(r"\d+", english)) == sorted(re.findall(r"\d+", korean))
        for name in names:
            korean = korean.replace(name, "")
        assert not re.search("[A-Za-z]", korean), (english, korean)
    assert len(said) == 11, said


def test_wrong_values_and_missing_things_are_said(month: Settings, client: Client) -> None:
    asking = client()
    for path, status in (
        ("/?show=strange", 400),
        ("/?limit=many", 400),
        ("/?since=soon", 400),
        ("/?show=all&cursor=x", 400),
        ("/?show=FAILED&cursor=x", 400),
        ("/usage?days=0", 400),
        ("/?show=all&stauts=FAILED", 400),
        ("/sessions/live?stauts=FAILED", 400),
        ("/failures?agent=parser", 400),
        ("/session", 404),
        ("/session?session_id=nobody", 404),
        ("/execution?execution_id=nobody-parser", 404),
        ("/nowhere", 404),
        ("/static/nothing.css", 404),
    ):
        answer = asking.get(path)
        assert answer.status_code == status, path
        assert f"<h1>{status}</h1>" in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert asking.post("/").status_code == 405


def test_only_its_own_names_are_answered(month: Settings, client: Client) -> None:
    asking = client()
    for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.nip.io"):
        assert asking.get("/", headers={"Host": host}).status_code == 400
    for host in ("127.0.0.1:8423", "LOCALHOST", "[::1]:8423"):
        assert asking.get("/workers", headers={"Host": host}).status_code == 200
    assert client(hosts=["runs.example"]).get("/").status_code == 400


def test_a_lease_token_is_never_shown(strict_store: Settings, client: Client) -> None:
    asking = client()
    with sync.track_session("s", user_id="u") as session:
        with session.agent("nl_input") as run:
            stored = raw.item(strict_store, "pipeline-sessions", "s") or {}
            token = stored["lease_token"]["S"]
            for path in (
                *("/", "/session?session_id=s", "/execution?execution_id=s-nl_input"),
                *("/api/session?session_id=s", "/api/executions?project_id=s&attempts=true"),
            ):
                text = asking.get(path).text
                assert "RUNNING" in text or "nl_input" in text
                assert token not in text
            run.output = {}


def user_of(request: Request) -> str:
    return request.headers.get("x-user", "")


def test_a_user_sees_what_is_his_and_nothing_else(month: Settings, client: Client) -> None:
    asking = client(user_id=user_of)
    his, others = (sync.list_pipeline_sessions(user_id=one, limit=100) for one in ("u001", "u002"))
    assert his
    assert others

    def get(path: str, user_id: str = "u001") -> tuple[int, str]:
        answer = asking.get(path, headers={"X-User": user_id})
        return answer.status_code, answer.text

    assert get("/", "")[0] == 403
    assert get("/api/sessions", "")[0] == 403
    for path in ("/?limit=100", "/?limit=100&user_id=u002", "/?show=FAILED&limit=100"):
        status, text = get(path)
        assert status == 200
        assert all(one.session_id in text for one in his)
        assert not any(one.session_id in text for one in others)
    mine, other = his[0].session_id, others[0].session_id
    for path, status in (
        (f"/session?session_id={mine}&tracebacks=1", 200),
        (f"/session?session_id={other}", 404),
        (f"/session/live?session_id={other}", 404),
        (f"/execution?execution_id={mine}-nl_input", 200),
        (f"/execution?execution_id={other}-nl_input", 404),
        ("/projects?user_id=u002", 200),
        *((f"/{name}", 404) for name in ("failures", "agents", "usage", "comparison", "workers")),
        (f"/api/session?session_id={mine}", 200),
        (f"/api/session?session_id={other}", 404),
        (f"/api/executions?project_id={mine}&attempts=true", 200),
        (f"/api/executions?project_id={other}", 404),
        (f"/api/execution?execution_id={other}-nl_input", 404),
        (f"/api/events?session_id={other}", 404),
        ("/api/sessions?user_id=u002", 400),
        ("/api/sessions?status=FAILED", 400),
        *((f"/api/{name}", 404) for name in ("failures", "due", "agents", "usage", "workers")),
    ):
        got, text = get(path)
        assert got == status, path
        assert "worker-" not in text
        assert "Traceback" not in text
        assert "u002" not in text
    assert [
        one["session_id"]
        for one in asking.get("/api/sessions", headers={"X-User": "u001"}).json()["items"]
    ] == [one.session_id for one in his]
    allowed = asking.get("/api/openapi.json", headers={"X-User": "u001"}).json()["paths"]
    assert [*allowed] == [
        f"/api/{name}"
        for name in (
            "session",
            "sessions",
            "executions",
            "execution",
            "projects",
            "project",
            "events",
        )
    ]


def test_who_the_user_is_may_be_awaited(month: Settings, client: Client) -> None:
    async def awaited(request: Request) -> str:
        return "u001"

    text = client(user_id=awaited).get("/?limit=100").text
    assert sync.list_pipeline_sessions(user_id="u001")[0].session_id in text


def test_acting_takes_a_switch_a_token_and_the_page(strict_store: Settings, client: Client) -> None:
    with pytest.raises(KeyError), sync.track_session("s"):
        raise KeyError("broken")
    token = "a token of the operator"
    acting, page = client(action_token=token), {"Origin": "http://localhost"}
    form = {"session_id": "s", "reason": "given up", "token": token}
    assert client().post("/abandon", data=form, headers=page).status_code == 404
    for headers, data in (
        ({}, form),
        ({"Origin": "http://evil.example"}, form),
        ({"Origin": "null"}, form),
        ({"Origin": "http://["}, form),
        (page, {**form, "token": "guessed"}),
        (page, {**form, "token": ""}),
    ):
        assert acting.post("/abandon", data=data, headers=headers).status_code == 403
    assert acting.get("/abandon").status_code == 405
    assert acting.post("/abandon", content=b"x" * 20_000, headers=page).status_code == 413
    assert acting.post("/abandon", content=b"x=1&" * 11, headers=page).status_code == 403
    assert sync.get_pipeline_session("s").status == "FAILED"

    released = acting.post("/release", data=form, headers=page, follow_redirects=False)
    assert (released.status_code, released.headers["location"]) == (303, "/session?session_id=s")
    session = sync.get_pipeline_session("s")
    assert (session.status, session.lease_owner) == ("ACTIVE", None)
    assert acting.post("/abandon", data=form, headers=page).status_code == 200
    assert sync.get_pipeline_session("s").status == "ABANDONED"
    # Who still has the page of before cannot take back what another has ended.
    for more in ({}, {"force": "true"}):
        refused = acting.post("/release", data={**form, **more}, headers=page)
        assert refused.status_code == 409
        assert "refused" in refused.text
    assert sync.get_pipeline_session("s").status == "ABANDONED"


def test_who_loses_a_session_that_the_page_releases_is_told(
    strict_store: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyError), sync.track_session("s"):
        raise KeyError("broken")
    release = Resume.release

    async def too_late(self: Resume) -> None:
        await asyncio.to_thread(sync.resume_pipeline, "s", force=True)
        await release(self)

    monkeypatch.setattr(Resume, "release", too_late)
    acting, page = client(action_token="a token of the operator"), {"Origin": "http://localhost"}
    form = {"session_id": "s", "token": "a token of the operator"}
    assert acting.post("/release", data=form, headers=page).status_code == 409


def test_a_switch_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="16 characters"):
        web.app(action_token="short")
    with pytest.raises(ConfigurationError, match="without user_id"):
        web.app(action_token="x" * 16, user_id=user_of)


HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "\u202eright to left\u2066 \u05e9\u05dc\u05d5\u05dd",
    "👩‍👩‍👧 {{ 7 * 7 }} {% raise %}",
    "a\nb\r\nc\x1b[31m\x7f",
    "../..//?#%00&session_id=other",
    "]]></svg><!-- --><![CDATA[",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(strict_store: Settings, client: Client, text: str) -> None:
    with pytest.raises(ZeroDivisionError):
        with sync.track_session(
            text, user_id=text, project_name=text, metadata={text: "x" * 10_000 + text}
        ) as session:
            with session.agent("nl_input", {text: text}) as run:
                run.output = [text, "y" * 1_000_000]
            with session.agent("parser"):
                raise ZeroDivisionError(f"{text} {'z' * 1_000_000}")
    sync.save_user_project(user_id=text, project_id=text, project_name=text, tech_stack=[text])
    asking = client(action_token="x" * 16)
    execution_id = f"{text}-nl_input"
    for path, asked in (
        ("/", {}),
        ("/", {"user_id": text}),
        ("/session", {"session_id": text, "tracebacks": "1"}),
        ("/execution", {"execution_id": execution_id, "agent_name": "nl_input"}),
        ("/failures", {}),
        ("/projects", {"user_id": text}),
        ("/?since=" + "q" * 5000, {}),
    ):
        page = asking.get(path, params=asked or None)
        assert page.status_code == (400 if "since" in path else 200), path
        assert_harmless(page.text)
    assert_harmless(asking.get("/session", params={"session_id": f"no {text}"}).text)
    exact = asking.get("/api/session", params={"session_id": text})
    assert exact.json()["project_name"] == text
    assert exact.headers["content-type"] == "application/json"
    read = asking.get("/api/execution", params={"execution_id": execution_id}).json()
    assert read["output_data"] == [text, "y" * 1_000_000]


def assert_harmless(page: str) -> None:
    assert len(page) < 250_000
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert not re.search(r"<script(?! src=\"/static/)|<img|onerror=\w+\(1\)>$|<!--|<!\[", page)
    # Each tag is one of the templates', and closed as they close it.
    tags = re.findall(r"<(/?)([a-z0-9]+)[^>]*?(/?)>", page)
    void = {"meta", "link", "input", "br"}
    opened = sorted(name for end, name, alone in tags if not end and not alone and name not in void)
    assert opened == sorted(name for end, name, _ in tags if end)


def test_the_place_is_marked_in_production(
    monkeypatch: pytest.MonkeyPatch, client: Client, strict_store: Settings
) -> None:
    # The tables of this name are not there: the page of the error says where it looked.
    with settings.use(strict_store, environment="prod"):
        answer = client().get("/")
    assert '<strong class="prod">PROD</strong>' in answer.text
