"""What the person on call sees and does: sessions, show, watch, failures, resume, release, ..."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tdev_models import PipelineSession, Settings, settings, sync
from tdev_models.results import Failure, SessionStatus
from tdev_models.views.failure_groups import grouped
from tests import raw
from tests.cli.conftest import Printed, Tdev
from tests.conftest import MONTH

WIDTHS = (60, 80, 160)


def test_every_screen_fits_and_takes_at_most_5_requests(month: Settings, tdev: Tdev) -> None:
    (failed,) = sync.list_pipeline_sessions(status="FAILED", limit=1)
    for command in (
        ["sessions"],
        ["sessions", "--all", "--limit", "100"],
        ["sessions", "--user", "u001"],
        ["sessions", "--status", "failed", "--status", "ABANDONED", "--since", "30d"],
        ["sessions", "--due"],
        ["show", failed.session_id],
        ["failures", "--since", "30d"],
        ["failures", "--since", "30d", "--each", "--open"],
        ["workers"],
        ["projects", "u001"],
    ):
        for width in WIDTHS:
            printed = tdev(*command, width=width)
            assert (printed.code, printed.err) == (0, "")
            long = [line for line in printed.out.splitlines() if len(line) > width]
            assert all(line.startswith(("More: ", "These are")) for line in long), printed.out
            (requests,) = re.findall(r"^(\d+) requests?, [\d.]+ read units$", printed.out, re.M)
            # One more for each session of bare calls that is stalled, and each dead worker.
            assert int(requests) <= (5 + MONTH // 1000 if "--due" in command else 5), printed.out
        assert all(isinstance(line, dict) for line in tdev(*command, "--json").lines)


def test_sessions_are_listed_by_status_user_age_and_due(month: Settings, tdev: Tdev) -> None:
    def found(*arguments: str) -> list[dict[str, object]]:
        return [one for one in tdev("sessions", *arguments, "--json").lines if "session_id" in one]

    def pages(*arguments: str) -> list[dict[str, object]]:
        sessions, more = list[dict[str, object]](), ["--limit", "1000"]
        while more:
            page = tdev("sessions", *arguments, *more, "--json").lines
            sessions += [one for one in page if "session_id" in one]
            cursors = [str(one["cursor"]) for one in page if "cursor" in one]
            more = ["--limit", "1000", "--cursor", *cursors] if cursors else []
        return sessions

    def every(*arguments: str) -> list[dict[str, object]]:
        return [one for status in SessionStatus for one in pages("--status", status, *arguments)]

    everyone = every()
    assert len(everyone) == MONTH
    assert MONTH > 1000 or len(found("--all", "--limit", "1000")) == MONTH
    assert {one["status"] for one in found()} == {"ACTIVE", "FAILED"}
    assert {one["status"] for one in found("--status", "abandoned")} <= {"ABANDONED"}
    of_user = [one["session_id"] for one in everyone if one["user_id"] == "u001"]
    assert sorted(str(one["session_id"]) for one in pages("--user", "u001")) == (
        sorted(map(str, of_user))
    )
    at = datetime.fromtimestamp(time.time() - 3 * 86400, UTC).isoformat()
    young, old = every("--since", at), every("--older-than", at)
    assert young
    assert len(young) + len(old) == MONTH
    due = {one["session_id"] for one in found("--due", "--limit", "100")}
    assert due == {one.session_id for one in sync.get_failed_sessions(limit=100)}


def test_a_page_says_how_to_get_the_next(month: Settings, tdev: Tdev) -> None:
    first = tdev("sessions", "--status", "COMPLETED", "--limit", "3", width=60)
    (words,) = re.findall(r"^More: tdev (.*)$", first.out, re.M)
    second = tdev(*words.split())
    assert second.code == 0
    young = tdev("sessions", "--status", "COMPLETED", "--limit", "3", "--since", "20d")
    (more,) = re.findall(r"^More: tdev (.*)$", young.out, re.M)
    assert tdev(*more.split()).code == 0
    with settings.use(environment="elsewhere"):
        place = ["--env", month.environment, "--endpoint", str(month.endpoint)]
        for command in (["projects", "u001"], ["sessions", "--user", "u001"]):
            page = tdev(*command, "--limit", "1", *place, "--region", "us-east-1")
            (more,) = re.findall(r"^More: tdev (.*)$", page.out, re.M)
            with settings.use(endpoint=None, region="eu-west-1"):
                assert tdev(*more.split()).code == 0
        outside = re.search("agents: tdev (.*)", tdev("failures", *place).out)
        assert outside
        assert tdev(*outside[1].split()).code == 0
    *_, last = tdev("failures", "--since", "30d", "--limit", "2", "--json").lines
    following = ["--since", str(last["since"]), "--cursor", str(last["cursor"])]
    assert tdev("failures", "--limit", "2", *following).code == 0
    shown = [re.findall(r"^project_\S+", page.out, re.M) for page in (first, second)]
    assert [len(ids) for ids in shown] == [3, 3]
    assert not {*shown[0]} & {*shown[1]}


def test_the_next_page_of_an_id_that_looks_like_an_option_follows(
    strict_store: Settings, tdev: Tdev
) -> None:
    for number in range(2):
        sync.save_pipeline_session(session_id=f"s{number}", user_id="-u")
        sync.save_user_project(user_id="-u", project_id=f"p{number}")
    for command, first in ((["sessions", "--user=-u"], "s1"), (["projects", "--", "-u"], "p1")):
        page = tdev(command[0], "--limit", "1", *command[1:])
        (more,) = re.findall(r"^More: tdev (.*)$", page.out, re.M)
        assert f"\n{first} " in page.out
        assert f"\n{first[0]}0 " in tdev(*shlex.split(more)).out


def test_what_contradicts_itself_is_wrong_usage(month: Settings, tdev: Tdev) -> None:
    for arguments in (
        ["sessions", "--user", "u", "--due"],
        ["sessions", "--due", "--since", "2h"],
        ["sessions", "--cursor", "x"],
        ["sessions", "--user", ""],
        ["sessions", "--since", ""],
        ["sessions", "--older-than", ""],
        ["sessions", "--limit", "0"],
        ["failures", "--since", "soon"],
        ["failures", "--since", "99999999999w"],
        ["watch", "s", "--poll", "0"],
        ["watch", "--limit", "0"],
        ["sessions", "--region", "no region"],
        ["sessions", "--env", ""],
        ["sessions", "--endpoint", ""],
        ["ui", "--port", "65536"],
    ):
        printed = tdev(*arguments)
        assert printed.code == 64, arguments
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1


def three_attempts(session_id: str) -> None:
    """Run a session in which an agent fails twice, then ends; the next one fails for good."""
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError(f"try {len(calls)} of [red]\x1b[31m3")
        return "made"

    with pytest.raises(KeyError), sync.track_session(session_id, user_id="u") as session:
        session.run("nl_input", flaky, attempts=3, usage=lambda _: {"input_tokens": 1234})
        with session.agent("parser", {"for": "parser"}) as run:
            run.usage(cost_usd=0.5)
            raise KeyError("no such component")


def test_show_has_attempts_errors_workers_tokens_and_cost(
    strict_store: Settings, tdev: Tdev
) -> None:
    three_attempts("s")
    wide = tdev("show", "s", width=160).out
    assert re.search(r"^s  FAILED  1 of 9 agents$", wide, re.M)
    rows = re.findall(r"^(nl_input|parser) +(\d) +(\w+) +([█▓▒: ]+) ", wide, re.M)
    assert [row[:3] for row in rows] == [
        ("nl_input", "1", "FAILED"),
        ("nl_input", "2", "FAILED"),
        ("nl_input", "3", "COMPLETED"),
        ("parser", "1", "FAILED"),
    ]
    assert [{*row[3]} - {*": "} for row in rows] == [{"▓"}, {"▓"}, {"█"}, {"▓"}]
    assert re.search(r"1234 +\S+:\d+$", wide, re.M)
    assert re.search(r"0\.5000 +\S+:\d+$", wide, re.M)
    assert re.search(r"nl_input #2 \d+s ago: ValueError: try 2 of \[red\]\ufffd\[31m3", wide)
    assert "last failure at parser: KeyError: 'no such component'" in wide
    narrow = tdev("show", "s", width=60).out
    assert re.search("^Left out at this width: .*worker$", narrow, re.M)
    assert "\x1b" not in wide + narrow


def test_show_says_of_what_has_failed_alone_when_it_can_be_resumed(
    strict_store: Settings, tdev: Tdev
) -> None:
    with pytest.raises(KeyError), sync.track_session("s") as session:
        with session.agent("parser", timeout=60):
            # Whose worker dies is due within a lease, whose agent hangs at its deadline.
            alive = tdev("show", "s").out
            raise KeyError
    assert "due" not in alive
    assert "its agent's time is over in " in alive
    assert re.search(r"\bdue (now|in \d+s)\b", tdev("show", "s").out)


def test_show_has_payloads_and_tracebacks_on_demand(strict_store: Settings, tdev: Tdev) -> None:
    three_attempts("s")
    assert "for parser" not in tdev("show", "s").out
    shown = tdev("show", "s", "--payloads", "parser", "--payloads", "nl_input", "--tracebacks")
    assert '"for": "parser"' in shown.out
    assert 'output of nl_input\n"made"' in shown.out
    assert 'raise KeyError("no such component")' in shown.out
    kinds = [line["kind"] for line in tdev("show", "s", "--tracebacks", "--json").lines]
    assert kinds == ["session", "execution", "execution", "failure", "failure", "failure"]
    assert tdev("show", "s", "--payloads", "download").code == 4
    assert tdev("show", "no\x1b[31m").err == "error: there is no session no\ufffd[31m\n"
    assert tdev("show", "nobody") == Printed(
        4, tdev("show", "nobody").out, "error: there is no session nobody\n"
    )


def test_show_has_the_payloads_of_each_key_of_an_agent(strict_store: Settings, tdev: Tdev) -> None:
    with sync.track_session("s") as session:
        for key in (1, 2):
            with session.agent("evaluator", key=key) as run:
                run.output = key
    shown = tdev("show", "s", "--payloads", "evaluator", "--json").lines[-2:]
    assert [(one["agent_name"], one["output_data"]) for one in shown] == [
        *(("evaluator@1", 1), ("evaluator@2", 2))
    ]


def test_show_says_that_it_has_not_all_executions(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdev_models.cli.show.MOST_EXECUTIONS", 1)
    three_attempts("s")
    assert "The first 1 executions." in tdev("show", "s").out
    cursor = tdev("show", "s", "--json").lines[-1]
    assert (cursor["kind"], set(cursor)) == ("executions", {"kind", "cursor"})


def test_a_session_without_a_status_is_shown(strict_store: Settings, tdev: Tdev) -> None:
    PipelineSession(session_id="of others", user_id="u7").save()
    shown = tdev("show", "of others")
    assert (shown.code, "user u7" in shown.out) == (0, True)


def test_the_errors_of_a_session_are_whole(strict_store: Settings, tdev: Tdev) -> None:
    with pytest.raises(RuntimeError), sync.track_session("s") as session, session.agent("parser"):
        raise RuntimeError("E" * 600 + " at the root")
    assert "at the root" in tdev("show", "s").out.partition("Errors")[2]
    (execution,) = sync.get_agent_executions("s", attempts=True)
    assert (execution.attempts[0].error_message or "").endswith("EEE…")


def test_projects_show_what_they_are_made_of_in_any_form(
    strict_store: Settings, tdev: Tdev
) -> None:
    stacks = {"a": ["React", "Go"], "b": "React", "c": {"front": "React"}, "d": 7}
    for project_id, stack in stacks.items():
        sync.save_user_project(user_id="u", project_id=project_id, tech_stack=json.dumps(stack))
    shown = tdev("projects", "u", width=160).out
    for text in ("React, Go", '"React"', '{"front": "React"}', " 7"):
        assert text in shown


def test_payloads_and_tracebacks_keep_their_lines(strict_store: Settings, tdev: Tdev) -> None:
    code = {"code": f"return 'a   b'{' word' * 40}"}
    with pytest.raises(ValueError, match="word"):
        with sync.track_session("s") as session:
            with session.agent("parser", input_data=code) as run:
                run.output = code
            with session.agent("search"):
                raise ValueError(code["code"])
    shown = tdev("show", "s", "--payloads", "parser", "--tracebacks").out
    assert f"\nValueError: {code['code']}\n" in shown
    _, *printed, _ = re.split(r"\n\w+ of parser\n|\n\d+ requests", shown)
    assert [json.loads(text) for text in printed] == [code, code]


def test_failures_are_grouped_by_what_their_messages_mean(
    strict_store: Settings, tdev: Tdev
) -> None:
    for number in range(3):
        sync.update_agent_execution(
            execution_id=f"s{number}-generation",
            status="FAILED",
            error_message=f"no answer within {30 + number} s",
        )
    sync.update_agent_execution(execution_id="s0-generation", status="RUNNING")
    sync.update_agent_execution(execution_id="s0-generation", status="COMPLETED")
    sync.update_agent_execution(execution_id="s3-parser", status="FAILED", error_message="else")
    everything = tdev("failures").out
    assert re.search(r"^ +3 +1 +generation +\S+ +\S+ +no answer within \d+ s", everything, re.M)
    assert re.search(r"^ +1 +0 +parser +\S+ +\S+ +else", everything, re.M)
    assert re.search(r"^ +2 +0 +generation ", tdev("failures", "--open").out, re.M)
    assert "generation" not in tdev("failures", "--agent", "parser").out
    assert tdev("failures", "--since", "2099-01-01").out.count("No failures since 2099") == 1
    each = tdev("failures", "--each", "--json").lines
    assert [one["recovered"] for one in each].count(True) == 1


def test_quotes_paths_ids_and_numbers_make_no_other_message() -> None:
    texts = ("file '/a/b.py' of 9f2c41aa03b7 took 3.5 s", "file '/c.py' of 1f2c41aa03b7 took 12 s")
    failures = [
        Failure(execution_id="e", agent_name=f"parser@{at}", number=1, error_message=text)
        for at, text in enumerate((*texts, "something else"))
    ]
    assert [len(group.failures) for group in grouped(failures)] == [2, 1]


def test_a_group_is_named_by_the_first_line_that_says_something() -> None:
    failure = Failure(execution_id="e", agent_name="a", number=1, error_message="\n\nno space\nx")
    assert [group.message for group in grouped([failure])] == ["no space"]


def test_100_failures_are_read_by_3_requests(strict_store: Settings, tdev: Tdev) -> None:
    for number in range(100):
        sync.update_agent_execution(execution_id=f"s{number}-parser", status="FAILED")
    assert re.search(r"^3 requests, ", tdev("failures").out, re.M)


def test_workers_show_their_state(month: Settings, tdev: Tdev) -> None:
    printed = tdev("workers").out
    states = dict(re.findall(r"^(worker-\d)\S+ +(\w+)", printed, re.M))
    assert states == {
        **dict.fromkeys(("worker-1", "worker-2", "worker-3"), "ALIVE"),
        "worker-4": "DRAINING",
        "worker-5": "SILENT",
        "worker-6": "DEAD",
    }


def test_watch_follows_a_session_to_its_end(strict_store: Settings, tdev: Tdev) -> None:
    def work() -> None:
        with settings.use(strict_store), sync.track_session("s") as session:
            for name in ("nl_input", "parser"):
                with session.agent(name):
                    time.sleep(0.5)

    sync.save_pipeline_session(session_id="s")
    worker = threading.Thread(target=work)
    worker.start()
    watched = tdev("watch", "s", "--poll", "0.1", "--json")
    worker.join()
    assert watched.code == 0
    assert watched.lines[-1]["status"] == "COMPLETED"
    assert {"nl_input", "parser"} <= {line["current_agent"] for line in watched.lines}
    sync.save_pipeline_session(session_id="f", status="FAILED")
    assert tdev("watch", "f", "--poll", "0.1").code == 1
    assert tdev("watch", "nobody").code == 4


def test_watch_knows_which_sessions_have_left_though_it_shows_few(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poll(seconds: float) -> None:
        if not polls:
            raise KeyboardInterrupt
        session_id, status = polls.pop()
        sync.save_pipeline_session(session_id=session_id, status=status)

    polls = [("0", "COMPLETED"), ("new", "ACTIVE")]
    for number in range(5):
        sync.save_pipeline_session(session_id=str(number))
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", poll)
        watched = tdev("watch", "--limit", "3", "--json")
    changes = [(line["change"], line["session_id"]) for line in watched.lines]
    assert sorted(changes[:5]) == [("began", str(number)) for number in range(5)]
    assert changes[5:] == [("began", "new"), ("left", "0")]
    assert watched.code == 130


def test_watch_writes_each_change_in_one_line_however_long(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    sync.save_pipeline_session(session_id="s" * 100)
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", interrupt)
        assert f"began {'s' * 100}\n" in tdev("watch").out


def test_watch_writes_whole_lines_of_json_to_a_terminal_too(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.save_pipeline_session(session_id="s", status="COMPLETED")
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes any output for a terminal then
    assert [line["session_id"] for line in tdev("watch", "s", "--json").lines] == ["s"]


def test_watch_shows_what_runs_though_not_all_fits(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) > 1:
            raise KeyboardInterrupt

    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes any output for a terminal then
    monkeypatch.setenv("LINES", "24")
    with sync.track_session("s") as session:
        for number in range(30):
            with session.agent("evaluator", key=number):
                pass
        with session.agent("generation"), monkeypatch.context() as patched:
            patched.setattr(time, "sleep", sleep)
            shown = tdev("watch", "s").out
    assert "earlier attempts do not fit" in shown
    assert "generation" in shown
    assert "evaluator@1 " not in shown
    shown = tdev("watch", "s").out
    assert "evaluator@1 " in shown


def test_each_poll_of_watch_is_one_read_of_at_most_2_units(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tdev_models.cli.watch import progress

    sync.save_pipeline_session(session_id="s")
    events: list[float] = []
    with settings.use(on_request=lambda event: events.append(event.units)):
        polls = progress("s", 0.01)
        for number in range(1, 6):
            next(polls)
            assert len(events) == number
        with settings.use(on_request=None):
            sync.save_pipeline_session(session_id="s", status="COMPLETED")
        rest = list(polls)
    assert len(events) == 5 + len(rest)
    assert max(events) <= 2


def test_watch_reads_the_agents_that_began_last(strict_store: Settings) -> None:
    from tdev_models.cli.watch import progress

    sync.save_pipeline_session(session_id="s", status="COMPLETED")
    for number in range(101):
        sync.update_agent_execution(execution_id="s", agent_name=f"search@{number}")
    *_, (_, executions) = progress("s", 0.01)
    assert len(executions) == 101


def test_abandon_asks_and_ends(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.save_pipeline_session(session_id="s", user_id="u")
    refused = tdev("abandon", "s", "--reason", "gave up")
    assert refused.code == 64
    assert "--yes" in refused.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "no\n", raising=False)
    said_no = tdev("abandon", "s", "--reason", "gave up")
    assert (said_no.code, said_no.out) == (3, "")
    assert "End session s of user u (ACTIVE, 0 agents done) for good?" in said_no.err
    assert sync.get_pipeline_session("s").status == "ACTIVE"
    monkeypatch.setattr("sys.stdin.readline", lambda: "yes\n", raising=False)
    assert tdev("abandon", "s", "--reason", "gave up").out == "Session s is ABANDONED.\n"
    assert sync.get_pipeline_session("s").error_message == "gave up"
    sync.save_pipeline_session(session_id="done", status="COMPLETED")
    assert tdev("abandon", "done", "--reason", "x", "--yes").code == 3


def test_production_is_marked_and_wants_its_name(
    strict_store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    prod = tdev("sessions", "--env", "prod")
    assert prod.out.startswith(" PROD  t-developer-prod-* on http://127.0.0.1:")
    assert prod.code == 1  # it has no tables
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "yes\n", raising=False)
    sync.save_pipeline_session(session_id="s")
    stored = sync.get_pipeline_session("s")
    monkeypatch.setattr(sync, "get_pipeline_session", lambda session_id: stored)
    said = tdev("abandon", "s", "--reason", "x", "--env", "production")
    assert said.code == 3
    assert "Type 'prod' to do it" in said.err


def test_release_lets_the_next_worker_have_it_at_once(strict_store: Settings, tdev: Tdev) -> None:
    three_attempts("s")
    assert tdev("release", "s").out == "Session s waits for a worker, to go on at parser.\n"
    session = sync.get_pipeline_session("s")
    assert (session.status, session.lease_owner) == ("ACTIVE", session.lease_owner)
    assert [one.session_id for one in sync.get_failed_sessions()] == ["s"]
    with sync.track_session("live"):
        held = tdev("release", "live")
        assert held.code == 3
        assert re.match(r"refused: \S+ owns it \(claim 1\); --force takes it over\n", held.err)
        assert tdev("release", "live", "--force").code == 64  # nobody to ask
    sync.save_pipeline_session(session_id="over", status="COMPLETED")
    over = tdev("release", "over")
    assert (over.code, over.err) == (3, "refused: it is COMPLETED\n")
    sync.save_pipeline_session(session_id="late", status="FAILED")
    raw.put_attribute(strict_store, "pipeline-sessions", "late", expires_at={"N": "1"})
    assert tdev("release", "late").code == 4
    assert tdev("release", "nobody").code == 4
    sync.save_pipeline_session(session_id="gone", status="ABANDONED")
    assert tdev("release", "gone", "--force", "--yes").code == 0
    assert sync.get_pipeline_session("gone").status == "ACTIVE"


RUNNERS = """
import asyncio

from tdev_models.errors import InvalidRequest, NotFound

def run(session):
    with session.agent("parser") as run:
        run.output = 1

async def broken(session):
    raise RuntimeError("still broken")

def misses(session):
    raise NotFound("no template")

async def misuses(session):
    raise InvalidRequest("template", "is none")

def leaves(session):
    raise SystemExit(0)

def catches(session):
    try:
        with session.agent("parser"):
            raise RuntimeError("no model")
    except RuntimeError:
        pass

async def gathers(session):
    async with asyncio.TaskGroup() as group:
        group.create_task(broken(session))
"""


def test_resume_runs_the_rest_here(
    strict_store: Settings, tdev: Tdev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "on_call_runners.py").write_text(RUNNERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    three_attempts("s")
    failed = tdev("resume", "s", "on_call_runners:broken")
    assert (failed.code, failed.out) == (1, "Session s is FAILED: RuntimeError: still broken.\n")
    for runner, why in (
        ("misses", "NotFound: no template"),
        ("misuses", "InvalidRequest: template: is none"),
        ("catches", "RuntimeError: no model"),
        ("gathers", "RuntimeError: still broken"),
    ):
        raised = tdev("resume", "s", f"on_call_runners:{runner}")
        assert (raised.code, raised.out) == (1, f"Session s is FAILED: {why}.\n")
    assert tdev("resume", "nobody", "on_call_runners:run").code == 4
    left = tdev("resume", "s", "on_call_runners:leaves")
    assert (left.code, left.out) == (1, "Session s is ACTIVE: SystemExit: 0.\n")
    assert tdev("resume", "s", "on_call_runners:run", "--from-agent", "nl_input").code == 64
    again = tdev(
        "resume", "s", "on_call_runners:run", "--from-agent", "nl_input", "--yes", "--json"
    )
    assert (again.code, again.lines[0]["status"]) == (0, "COMPLETED")
    over = tdev("resume", "s", "on_call_runners:run")
    assert (over.code, over.err) == (3, "refused: it is COMPLETED\n")
    assert tdev("resume", "s", "nowhere:run").code == 64
