"""Rows of an earlier release get what they lack, while workers write."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tdev_models import ConfigurationError, TdevError, Unavailable, settings as configured, sync
from tdev_models.errors import ConditionFailed
from tdev_models.migrations import (
    backfill as backfilling,
    backfills,
    command,
    declared,
    environments,
)
from tdev_models.migrations.backfill import Backfill
from tdev_models.migrations.calls import Calls, InProgress
from tdev_models.migrations.command import main
from tdev_models.migrations.live import Live, read
from tdev_models.settings import Settings
from tests import raw
from tests.chaos.backfill import killed_beside_writers
from tests.migrations.runs import apply
from tests.migrations.strict import StrictAws, _error
from tests.migrations.test_stale import TRANSIENT

SESSIONS, EXECUTIONS = "pipeline-sessions", "agent-executions"
MODULE = "tdev_models.migrations.backfills"


@pytest.fixture
def store(dynoxide: str, environment: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The tables on dynoxide, for the command too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", dynoxide)
    made = Settings(
        environment=environment, region="us-east-1", endpoint=dynoxide, automatic_metrics=False
    )
    apply(made, declared.tables(made, environments.load("dev")))
    return made


class Clock:
    """In the place of the module `time`: a pause takes no time, and is noted."""

    def __init__(self) -> None:
        self.now, self.pauses = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (backfilling, command):
        monkeypatch.setattr(module, "time", made)
    return made


def backfill(store: Settings, *more: str) -> int:
    chosen = ("--env", store.environment, "--set", "like=dev")
    return main(["backfill", *chosen, *more, *([] if "--dry-run" in more else ["--yes"])])


def earlier_session(store: Settings, name: str, status: str, **more: dict[str, Any]) -> None:
    at = {"N": "1700000000.5"}
    values = {"status": {"S": status}, "created_at": at, "last_updated": at, **more}
    raw.put_attribute(store, SESSIONS, name, **values)


def work(
    store: Settings, function: Callable[..., Any], short: str = SESSIONS, **more: Any
) -> Backfill:
    tables = declared.tables(store, environments.load("dev"))
    table = next(table for table in tables if table.short == short)
    calls = Calls(store)
    live = read(calls, table, Live(), ("table",))
    return Backfill(calls, table, live, function, time.monotonic() + 60, **more)


def test_sessions_and_failures_of_an_earlier_release_are_found_again(
    store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier_session(store, "failed", "FAILED")
    earlier_session(store, "active", "ACTIVE", lease_expires={"N": "1700000030"})
    earlier_session(store, "bare", "ACTIVE")
    raw.put_attribute(
        store,
        EXECUTIONS,
        "failed-parser",
        "parser",
        status={"S": "FAILED"},
        end_time={"N": "1700000001"},
    )
    with configured.use(store):
        sync.save_pipeline_session(session_id="of today", status="ACTIVE")
        with sync.track_session("done"):
            pass
        of_today = raw.everything(store, SESSIONS)
        assert sync.get_failed_sessions() == []
        assert sync.get_failed_executions() == []
    for options, code in ((("--dry-run",), 2), ((), 0), (("--dry-run",), 0)):
        capsys.readouterr()
        assert backfill(store, SESSIONS, f"{MODULE}:session_due_at", *options) == code
        if code:
            assert "3 would be changed, 0 failed; session_id=" in capsys.readouterr().err
            assert raw.everything(store, SESSIONS) == of_today
    assert backfill(store, EXECUTIONS, f"{MODULE}:execution_failed_at") == 0
    due = {
        row["session_id"]["S"]: float(row["due_at"]["N"])
        for row in raw.everything(store, SESSIONS)
        if row["session_id"]["S"] in ("failed", "active", "bare")
    }
    assert due == {"failed": 1700000000.5, "active": 1700000030, "bare": 1700003600.5}
    with configured.use(store):
        assert {one.session_id for one in sync.get_failed_sessions()} == {
            "failed",
            "active",
            "bare",
        }
        assert [one.execution_id for one in sync.get_failed_executions()] == ["failed-parser"]
    kept = [row for row in raw.everything(store, SESSIONS) if row["session_id"]["S"] not in due]
    assert kept == [row for row in of_today if row["session_id"]["S"] not in due]


def test_a_worker_keeps_its_place_in_the_index() -> None:
    stopped = {"session_id": {"S": "#worker:h:1:x"}, "status": {"S": "STOPPED"}}
    assert backfills.session_due_at({**stopped, "last_updated": {"N": "1"}}) is None


def test_what_a_live_writer_changes_meanwhile_is_seen_and_never_overwritten(
    store: Settings,
) -> None:
    for name in ("changed", "deleted", "other"):
        earlier_session(store, name, "FAILED")
    asked: list[str] = []

    def function(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        name, status = row["session_id"]["S"], row["status"]["S"]
        asked.append(name)
        if name == "changed" and asked.count(name) == 1:
            raw.put_attribute(store, SESSIONS, name, status={"S": "COMPLETED"})
        if name == "other" and asked.count(name) == 1:
            raw.put_attribute(store, SESSIONS, name, note={"S": "of a newer release"})
        if name == "deleted":
            raw.delete(store, SESSIONS, name)
        return {"due_at": {"N": "1" if status == "FAILED" else "2"}}

    done = work(store, function)
    done.run()
    assert (done.filled, done.failed) == (2, 0)
    changed, other = (raw.item(store, SESSIONS, name) for name in ("changed", "other"))
    assert changed
    assert (changed["status"], changed["due_at"]) == ({"S": "COMPLETED"}, {"N": "2"})
    assert other
    assert (other["note"], other["due_at"]) == ({"S": "of a newer release"}, {"N": "1"})
    assert raw.item(store, SESSIONS, "deleted") is None
    assert asked.count("changed") == 2
    assert asked.count("other") == 1  # what the function did not look at may change


def test_an_attribute_that_appears_after_the_function_missed_it_is_seen(store: Settings) -> None:
    earlier_session(store, "s", "FAILED")
    asked = []

    def function(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        asked.append("worker_id" in row)
        if len(asked) == 1:
            raw.put_attribute(store, SESSIONS, "s", worker_id={"S": "w"})
        return None if asked[-1] else {"due_at": {"N": "1"}}

    work(store, function).run()
    assert asked == [False, True]
    assert "due_at" not in (raw.item(store, SESSIONS, "s") or {})


def test_a_row_that_has_what_the_function_returns_is_not_written_again(store: Settings) -> None:
    earlier_session(store, "s1", "FAILED")
    for filled in (1, 0):
        done = work(store, lambda row: {"tag": {"S": "x"}})
        done.run()
        assert (done.read, done.filled) == (1, filled)


def test_rows_that_fail_are_named_and_the_others_are_filled(
    store: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("a", "b", "c", "d"):
        earlier_session(store, name, "FAILED")
    (tmp_path / "fill_some.py").write_text(
        "def fill(row):\n"
        "    name = row['session_id']['S']\n"
        "    if name == 'a': raise RuntimeError('odd\\n')\n"
        "    if name == 'b': return {'session_id': {'S': 'x'}}\n"
        "    if name == 'c': return {'due_at': {'S': 'late'}}\n"
        "    return {'due_at': {'N': '1'}}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert backfill(store, SESSIONS, "fill_some:fill") == 1
    shown = capsys.readouterr().err
    assert "3 rows failed" in shown
    for text in ("session_id=a: RuntimeError: odd ", "session_id=b: ValueError: a key cannot"):
        assert text in shown
    assert (raw.item(store, SESSIONS, "d") or {})["due_at"] == {"N": "1"}
    assert backfill(store, SESSIONS, "fill_some:fill", "--json") == 1
    assert "3 rows failed" in json.loads(capsys.readouterr().out)["error"]


def test_a_program_reads_what_a_backfill_did(
    store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier_session(store, "a", "FAILED")
    for more, code, text in ((["--dry-run"], 2, "would be"), ([], 0, "were")):
        assert backfill(store, SESSIONS, f"{MODULE}:session_due_at", "--json", *more) == code
        assert json.loads(capsys.readouterr().out) == {
            "summary": f"1 rows read, 1 {text} changed, 0 failed",
            "exit_code": code,
        }


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["metrics"],
        ["metrics", "nothing"],
        ["metrics", "no_such:module"],
        ["metrics", f"{MODULE}:no_such"],
        ["metrics", "script:run"],
        ["metric", f"{MODULE}:session_due_at"],
        ["metrics", f"{MODULE}:session_due_at", "more"],
    ],
)
def test_a_typo_is_wrong_usage_before_anything_is_sent(
    aws: StrictAws, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit(0)")  # one that is to be run by itself
    monkeypatch.chdir(tmp_path)
    assert main(["backfill", "--env", "dev", "--yes", *more]) == 64
    assert main(["plan", "--env", "dev", "metrics"]) == 64
    assert aws.calls == []


def test_a_table_that_is_being_restored_is_in_progress(
    aws: StrictAws, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    apply(settings, declared.tables(settings, environments.load("dev")))
    aws.look_creating(settings.table_name(SESSIONS), times=1)
    assert backfill(settings, SESSIONS, f"{MODULE}:session_due_at") == 5
    assert "is CREATING; run again" in capsys.readouterr().err


def test_it_is_paced_by_the_units_and_stops_at_the_timeout(
    aws: StrictAws, settings: Settings, clock: Clock
) -> None:
    tables = declared.tables(settings, environments.load("dev", None, {"billing": "provisioned"}))
    apply(settings, [table for table in tables if table.short == SESSIONS])
    for number in range(4):
        earlier_session(settings, f"s{number}", "FAILED")
    done = work(settings, backfills.session_due_at)

    def before(params: dict[str, Any]) -> Any:
        aws.by_hand("dynamodb", "UpdateItem", **params)
        return {"ConsumedCapacity": {"CapacityUnits": 500.0}}

    aws._before_UpdateItem = before  # type: ignore[attr-defined]
    # Rows of 500 units at half of 5 units a second: 200 s each.
    done.deadline = clock.now + 500
    with pytest.raises(InProgress, match="3 rows read, 3 were changed, 0 failed; run again"):
        done.run()
    assert clock.pauses == [200.0, 200.0]
    done.deadline = clock.now + 500
    done.run()
    assert done.filled == 4
    assert clock.pauses == [200.0, 200.0, 200.0, 0.0]


def test_what_the_rows_of_a_page_take_is_paused_within_the_page(
    aws: StrictAws, settings: Settings, clock: Clock
) -> None:
    six_sessions(settings)

    def before(params: dict[str, Any]) -> Any:
        aws.by_hand("dynamodb", "UpdateItem", **params)
        return {"ConsumedCapacity": {"CapacityUnits": 4.0}}

    def scan(params: dict[str, Any]) -> Any:
        answer = aws.by_hand("dynamodb", "Scan", **params)
        return {**answer, "ConsumedCapacity": {"CapacityUnits": 30.0}}

    aws._before_UpdateItem = before  # type: ignore[attr-defined]
    aws._before_Scan = scan  # type: ignore[method-assign]
    done = work(settings, backfills.session_due_at)
    done.calls.backfill_units = 10
    done.deadline = clock.now + 60
    done.run()
    # 0.4 s a row, each page 3 s in all.
    assert clock.pauses == pytest.approx([1.2, 1.2, 0.6])


def test_backfill_units_pace_a_backfill_of_an_on_demand_table(
    aws: StrictAws, settings: Settings, clock: Clock
) -> None:
    tables = declared.tables(settings, environments.load("dev"))
    apply(settings, [table for table in tables if table.short == SESSIONS])
    for number in range(4):
        earlier_session(settings, f"s{number}", "FAILED")

    def before(params: dict[str, Any]) -> Any:
        aws.by_hand("dynamodb", "UpdateItem", **params)
        return {"ConsumedCapacity": {"CapacityUnits": 500.0}}

    aws._before_UpdateItem = before  # type: ignore[attr-defined]
    done = work(settings, backfills.session_due_at)
    done.calls.backfill_units = 20  # 4 rows of 500 units: 100 s
    done.deadline = clock.now + 90
    with pytest.raises(InProgress, match="4 rows read, 4 were changed, 0 failed; run again"):
        done.run()
    assert clock.pauses == [25.0] * 3


def six_sessions(settings: Settings) -> None:
    tables = declared.tables(settings, environments.load("dev"))
    apply(settings, [table for table in tables if table.short == SESSIONS])
    for number in range(6):
        earlier_session(settings, f"s{number}", "FAILED")


REFUSALS = {
    "conflict": ("TransactionConflictException", "Transaction is ongoing for the item", 400),
    "another region": ("ReplicatedWriteConflictException", "", 400),
    "too many": ("429", "", 429),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_row_that_others_write_at_that_moment_is_filled_all_the_same(
    aws: StrictAws, settings: Settings, refusal: str
) -> None:
    six_sessions(settings)
    refused: list[str] = []

    def before(params: dict[str, Any]) -> None:
        if params["Key"]["session_id"]["S"] == "s3" and len(refused) < 2:
            refused.append(refusal)
            raise _error("UpdateItem", *REFUSALS[refusal])

    aws._before_UpdateItem = before  # type: ignore[attr-defined]
    done = work(settings, backfills.session_due_at)
    done.run()
    assert (done.filled, done.failed, len(refused)) == (6, 0, 2)


def test_a_row_that_would_be_too_large_is_named_and_the_others_are_filled(
    aws: StrictAws, settings: Settings
) -> None:
    six_sessions(settings)

    def before(params: dict[str, Any]) -> None:
        if params["Key"]["session_id"]["S"] == "s3":
            text = "Item size to update has exceeded the maximum allowed size"
            raise _error("UpdateItem", "ValidationException", text)

    aws._before_UpdateItem = before  # type: ignore[attr-defined]
    done = work(settings, backfills.session_due_at)
    with pytest.raises(TdevError, match="1 rows failed, such as session_id=s3: ItemTooLarge: "):
        done.run()
    assert done.filled == 5


WRONG: dict[str, Callable[[], Any]] = {
    "no settings": lambda: fails(ConfigurationError("of the function's own")),
    "no answer": lambda: fails(Unavailable("of the function's own")),
    "no condition": lambda: fails(ConditionFailed(None)),
    "no time": lambda: fails(InProgress("of the function's own")),
    "an untyped value": lambda: {"due_at": 1},
    "a value without a form": lambda: {"due_at": {"N": Decimal(1)}},
}


def fails(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize("wrong", WRONG)
def test_whatever_the_function_does_wrong_is_named_with_its_row(
    aws: StrictAws, settings: Settings, wrong: str
) -> None:
    six_sessions(settings)

    def function(row: Mapping[str, Any]) -> Any:
        return WRONG[wrong]() if row["session_id"]["S"] == "s3" else {"due_at": {"N": "1"}}

    done = work(settings, function)
    done.deadline = time.monotonic() + 5
    with pytest.raises(TdevError, match="1 rows failed, such as session_id=s3: "):
        done.run()
    assert done.filled == 5


@pytest.mark.parametrize("name", ["status", "due_at"])
def test_a_function_may_change_the_row_that_it_is_given(
    aws: StrictAws, settings: Settings, name: str
) -> None:
    six_sessions(settings)
    asked = []

    def function(row: Mapping[str, Any]) -> Any:
        asked.append(row["session_id"]["S"])
        assert len(asked) <= 6
        value = dict[str, Any](row["status"])
        row["status"]["S"] = value["S"] = "changed"
        return {name: value}

    done = work(settings, function)
    done.deadline = time.monotonic() + 5
    done.run()
    assert done.filled == 6


def in_eight_parts(aws: StrictAws) -> None:
    described = aws._after_DescribeTable

    def after(params: dict[str, Any], answer: Any) -> None:
        described(params, answer)
        answer["Table"]["TableSizeBytes"] = 8 << 20

    aws._after_DescribeTable = after  # type: ignore[method-assign]


def test_a_backfill_of_a_table_that_takes_longer_than_the_timeout_comes_to_an_end(
    aws: StrictAws, settings: Settings, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    six_sessions(settings)
    in_eight_parts(aws)

    def slow(params: dict[str, Any]) -> Any:
        answer = aws.by_hand("dynamodb", "Scan", **params)
        return {**answer, "ConsumedCapacity": {"CapacityUnits": 30.0}}  # 0.3 s at 100 units

    aws._before_Scan = slow  # type: ignore[method-assign]
    options = ["--env", settings.environment, "--set", "like=dev", "--yes"]
    options += ["--backfill-units", "100", "--timeout", "1", SESSIONS, f"{MODULE}:session_due_at"]
    begun, runs = list[str](), 1
    while (code := main(["backfill", *options, *begun])) == 5:
        found = re.search(rf"run again with (--rows {SESSIONS}:(\d)/8)", capsys.readouterr().err)
        assert found
        assert not begun or found[1] > " ".join(begun)
        begun, runs = found[1].split(), runs + 1
    assert (code, runs) == (0, 3)
    assert all("due_at" in row for row in raw.everything(settings, SESSIONS))


def test_however_a_backfill_ends_before_its_end_it_says_where_to_go_on(
    aws: StrictAws,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    six_sessions(settings)
    in_eight_parts(aws)
    (tmp_path / "interrupts.py").write_text("def fill(row): raise KeyboardInterrupt")
    monkeypatch.chdir(tmp_path)
    options = ["backfill", "--env", settings.environment, "--set", "like=dev", "--yes", SESSIONS]
    aws.forget()
    assert main([*options, "interrupts:fill"]) == 130
    (stopped, *_) = re.findall(rf"--rows {SESSIONS}:(\d)/8", capsys.readouterr().err)
    segments = [params["Segment"] for _, name, params in aws.calls if name == "Scan"]
    assert int(stopped) == segments[-1]
    aws.denied = {"UpdateItem"}
    assert main([*options, f"{MODULE}:session_due_at"]) == 1
    assert f"--rows {SESSIONS}:{stopped}/8" in capsys.readouterr().err
    aws.denied = set()
    aws.forget()
    assert main([*options, f"{MODULE}:session_due_at", "--rows", f"{SESSIONS}:{stopped}/8"]) == 0
    assert "--rows" not in capsys.readouterr().err
    segments = [params["Segment"] for _, name, params in aws.calls if name == "Scan"]
    assert segments == [*range(int(stopped), 8)]


@pytest.mark.parametrize("rows", ["sample", "none", "metrics:1/8", f"{SESSIONS}:8/8"])
def test_other_rows_than_the_printed_ones_are_wrong_usage(
    aws: StrictAws, environment: str, rows: str
) -> None:
    options = ["--env", environment, "--set", "like=dev", "--yes", "--rows", rows]
    assert main(["backfill", *options, SESSIONS, f"{MODULE}:session_due_at"]) == 64
    assert aws.calls == []


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("failure", TRANSIENT)
def test_every_write_stands_one_transient_failure(
    aws: StrictAws, settings: Settings, failure: str, carried_out: bool
) -> None:
    tables = declared.tables(settings, environments.load("dev"))
    apply(settings, [table for table in tables if table.short == SESSIONS])
    for number in range(3):
        earlier_session(settings, f"s{number}", "FAILED")
    failed = set[str]()

    def before(params: dict[str, Any]) -> Any:
        session = params["Key"]["session_id"]["S"]
        if session not in failed:
            failed.add(session)
            if carried_out:
                aws.by_hand("dynamodb", "UpdateItem", **params)
            raise TRANSIENT[failure]("UpdateItem")

    aws._before_UpdateItem = before  # type: ignore[attr-defined]
    done = work(settings, backfills.session_due_at)
    done.run()
    assert len(failed) == 3
    assert (done.filled, done.failed) == (0 if carried_out else 3, 0)
    for row in raw.everything(settings, SESSIONS):
        assert float(row["due_at"]["N"]) >= 1700000000


def test_killed_and_run_again_beside_writers_every_row_is_right(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert killed_beside_writers(store, rows=1200, kills=2).kills == 2
