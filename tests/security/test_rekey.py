"""`tdev rekey`: what is in clear, or under a former key, is under the key in force afterwards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tdev_models import (
    Settings,
    get_agent_execution,
    get_failed_executions,
    get_pipeline_session,
    get_user_project,
    resume_pipeline,
    save_user_project,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.cli import main, rekey
from tdev_models.migrations import declared, environments, iam
from tdev_models.security.fields import is_current
from tdev_models.settings import Transport
from tests import raw
from tests.conftest import make_tables
from tests.engine.pipelines import files
from tests.faults import Fault, injected
from tests.kms import Kms
from tests.migrations.runs import apply

TABLES = ("pipeline-sessions", "agent-executions", "user-projects")
CANARY = "canary-51c0"
INPUT_FIRST = ("input_data", "output_data")
LARGE = {"secret": CANARY, **files(300_000)}


@pytest.fixture
def clear_store(dynoxide: str, kms: Kms, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Fresh tables in which nothing is encrypted; the command scans, which no worker may."""
    made = make_tables(dynoxide, retry_seconds=0.5)
    with settings.use(made, transport=None) as chosen:
        monkeypatch.setattr(settings, "_configured", chosen)
    return chosen


async def fill() -> None:
    with pytest.raises(KeyError):
        async with track_session("p", metadata={"m": CANARY}) as session:
            async with session.agent("nl_input", {"q": CANARY}) as run:
                await run.once("mail", lambda: [CANARY])
                run.output = LARGE
            async with session.agent("parser", {"all": LARGE}) as run:
                raise KeyError(CANARY)
    await save_user_project(user_id="u", project_id="p", description=CANARY)


async def check_all() -> None:
    done = await get_agent_execution("p-nl_input")
    assert (done.input_data, done.output_data) == ({"q": CANARY}, LARGE)
    failed = await get_agent_execution("p-parser")
    assert failed.input_data == {"all": LARGE}
    assert failed.error_message == failed.attempts[-1].error_message == f"KeyError: '{CANARY}'"
    session = await get_pipeline_session("p")
    assert session.metadata == {"m": CANARY}
    assert session.error_message == f"KeyError: '{CANARY}'"
    (failure,) = await get_failed_executions(session_id="p")
    assert CANARY in (failure.traceback or "")
    assert (await get_user_project("u", "p")).description == CANARY


def everything(store: Settings) -> list[dict[str, Any]]:
    return [item for table in TABLES for item in raw.everything(store, table)]


def passes(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


async def test_what_was_in_clear_is_encrypted_and_then_nothing_is_left_of_it(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill()
    assert CANARY in repr(everything(clear_store))
    with settings.use(kms_key=kms.new_key(), kms_strict=True):
        assert main(["rekey", "--yes", "--json"]) == 0
        assert sum(one["encrypted"] for one in passes(capsys.readouterr().out)) == 6
        await check_all()
        kms.forget()
        assert main(["rekey", "--yes", "--json", "--delete-old"]) == 0
        *again, deletion = passes(capsys.readouterr().out)
        assert kms.calls == {}, "what is done needs no key"
        assert not any(one["encrypted"] or one["failed"] for one in again)
        assert deletion["deleted"] >= 2
        await check_all()
        stored = everything(clear_store)
        assert CANARY not in repr(stored)
        assert not [
            one for one in stored if one.get("chunk", {}).get("B", b"").startswith(b"x\x9c")
        ]
        assert (await resume_pipeline("p")).outputs == {"nl_input": LARGE}


def chunk_keys(store: Settings) -> list[str]:
    return [one["agent_name"]["S"] for one in everything(store) if "chunk" in one]


async def store_chunks(count: int) -> None:
    """Store an output of so many chunks, which nothing compresses."""
    output = {"x": os.urandom(count * 45_000).hex()}
    await update_agent_execution(execution_id="p-parser", status="COMPLETED", output_data=output)


async def test_payloads_that_are_not_to_be_encrypted_are_left(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill()
    before = chunk_keys(clear_store)
    with settings.use(kms_key=kms.new_key(), kms_fields=("error_message", "traceback")):
        assert main(["rekey", "--yes", "--delete-old"]) == 0
        await check_all()
        capsys.readouterr()
        assert main(["rekey", "--yes", "--json"]) == 0
    assert [one["encrypted"] for one in passes(capsys.readouterr().out)] == [0, 0, 0]
    assert chunk_keys(clear_store) == before


@pytest.mark.parametrize(("field", "other"), [INPUT_FIRST, INPUT_FIRST[::-1]])
async def test_what_stays_in_clear_does_not_lie_in_chunks_that_are_deleted(
    clear_store: Settings, kms: Kms, field: str, other: str
) -> None:
    await fill()  # the parser's input has the former agent's output as a part
    former = [key for key in chunk_keys(clear_store) if field in key]
    assert former
    with settings.use(kms_key=kms.new_key(), kms_fields=(field,)):
        assert main(["rekey", "--yes", "--delete-old"]) == 0
        await check_all()
    left = chunk_keys(clear_store)
    assert not {*former} & {*left}
    assert any(other in key for key in left)


async def test_a_worker_stores_nothing_that_stays_in_clear_by_chunks_that_will_be_deleted(
    clear_store: Settings, kms: Kms
) -> None:
    with pytest.raises(KeyError):
        async with track_session("p") as session:
            async with session.agent("nl_input", {"q": 1}) as run:
                run.output = LARGE
            raise KeyError
    with settings.use(kms_key=kms.new_key(), kms_fields=("output_data",)):
        async with track_session("p") as session:
            async with session.agent("parser", LARGE) as run:
                run.output = {}
        (chunk,) = [key for key in chunk_keys(clear_store) if "input_data" in key]
        assert chunk.startswith("parser#")
        assert main(["rekey", "--yes", "--delete-old"]) == 0
        assert (await get_agent_execution("p-parser")).input_data == LARGE


async def test_a_deletion_that_was_stopped_is_finished_by_the_next_run(
    clear_store: Settings, kms: Kms
) -> None:
    await store_chunks(3)
    former = {*chunk_keys(clear_store)}
    assert len(former) == 3
    with settings.use(kms_key=kms.new_key(), retry_seconds=0):
        with injected(Fault("broken", nth=2, operation="DeleteItem")):
            assert main(["rekey", "--yes", "--delete-old"]) == 1
        assert former & {*chunk_keys(clear_store)}
        assert main(["rekey", "--yes", "--delete-old"]) == 0
        assert not former & {*chunk_keys(clear_store)}
        assert len((await get_agent_execution("p-parser")).output_data["x"]) == 270_000


async def test_nothing_is_deleted_while_a_worker_without_the_key_writes(
    clear_store: Settings,
    kms: Kms,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = 0

    def encrypt_all(run: Any) -> Any:
        nonlocal number
        number += 1
        found = passes_over(run)
        with settings.use(clear_store):
            sync.save_user_project(user_id="u", project_id="p", description=f"in clear {number}")
        return found

    passes_over = rekey._Run.encrypt_all
    monkeypatch.setattr(rekey._Run, "encrypt_all", encrypt_all)
    await fill()
    before = chunk_keys(clear_store)
    with settings.use(kms_key=kms.new_key()):
        assert main(["rekey", "--yes", "--delete-old"]) == 1
    assert "give every worker this key" in capsys.readouterr().err
    assert {*before} <= {*chunk_keys(clear_store)}


async def test_chunks_whose_first_is_gone_are_deleted_where_they_were_to_be_encrypted(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    await store_chunks(3)
    for key in ("parser#output_data#0#1#0000#00001", "parser#input_data#0#1#0000#00002"):
        raw.put_attribute(clear_store, "agent-executions", "p-parser", key, chunk={"B": b"x"})
    with settings.use(kms_key=kms.new_key(), kms_fields=("output_data",)):
        assert main(["rekey", "--yes", "--json", "--delete-old"]) == 0
        assert passes(capsys.readouterr().out)[-1]["deleted"] == 4
        assert len((await get_agent_execution("p-parser")).output_data["x"]) == 270_000
    left = chunk_keys(clear_store)
    assert "parser#input_data#0#1#0000#00002" in left
    assert "parser#output_data#0#1#0000#00001" not in left


async def test_what_was_under_a_former_key_is_under_the_new_one(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = kms.new_key(), kms.new_key()
    with settings.use(kms_key=old):
        await fill()
    with settings.use(kms_key=new, kms_former_keys=(old,)):
        assert main(["rekey", "--yes", "--delete-old"]) == 0
    assert "4 encrypted" in capsys.readouterr().out
    with settings.use(kms_key=new, kms_strict=True) as chosen:
        kms.forget()
        await check_all()
        found = [
            value["B"]
            for item in everything(clear_store)
            for name, value in item.items()
            if name.endswith("_encrypted")
            or (name == "chunk" and item["agent_name"]["S"].endswith("#00000"))
        ]
        assert len(found) > 8
        assert all(is_current(chosen, message) for message in found)


async def test_after_a_kill_it_goes_on(clear_store: Settings, kms: Kms) -> None:
    await fill()
    with settings.use(kms_key=kms.new_key(), retry_seconds=0):
        for nth in range(1, 12):
            fault = Fault("broken", nth=nth, operation="UpdateItem")
            with injected(fault, needed=False):
                assert main(["rekey", "--yes"]) == (1 if fault.hit else 0)
            await check_all()
            if not fault.hit:
                break
        else:
            pytest.fail("it never came to an end")
        assert main(["rekey", "--yes", "--delete-old"]) == 0
        await check_all()
    assert CANARY not in repr(everything(clear_store))


async def test_a_live_write_in_between_is_kept(clear_store: Settings, kms: Kms) -> None:
    await save_user_project(user_id="u", project_id="p", description="old")
    with settings.use(kms_key=kms.new_key()):
        calm = settings.current()

        def between() -> None:
            with settings.use(calm):
                sync.save_user_project(user_id="u", project_id="p", description="new")

        fault = Fault("before", operation="UpdateItem", table="user-projects", between=between)
        with injected(fault):
            assert main(["rekey", "--yes"]) == 0
        assert (await get_user_project("u", "p")).description == "new"
        item = raw.item(clear_store, "user-projects", "u", "p")
        assert item is not None
        assert "description" not in item


async def test_a_row_that_is_deleted_in_between_stays_deleted(
    clear_store: Settings, kms: Kms
) -> None:
    await save_user_project(user_id="u", project_id="p", description="old")
    with settings.use(kms_key=kms.new_key()):
        gone = partial(raw.delete, clear_store, "user-projects", "u", "p")
        with injected(Fault("before", operation="UpdateItem", table="user-projects", between=gone)):
            assert main(["rekey", "--yes"]) == 0
    assert raw.item(clear_store, "user-projects", "u", "p") is None


async def test_a_row_with_texts_in_its_attempts_alone_stays_deleted(
    clear_store: Settings, kms: Kms
) -> None:
    for values in ({"status": "FAILED", "error_message": CANARY}, {"status": "RUNNING"}):
        await update_agent_execution(execution_id="p-parser", **values)
    key = "agent-executions", "p-parser", "parser"
    with settings.use(kms_key=kms.new_key()):
        gone = partial(raw.delete, clear_store, *key)
        with injected(Fault("before", operation="UpdateItem", table=key[0], between=gone)):
            assert main(["rekey", "--yes"]) == 0
    assert raw.item(clear_store, *key) is None
    assert CANARY not in repr(everything(clear_store))


@pytest.mark.parametrize("payload", ["there", "gone"])
async def test_what_has_expired_is_left_to_dynamodb(
    clear_store: Settings, kms: Kms, payload: str
) -> None:
    clock = SimpleNamespace(now=time.time() - 3 * 86400)
    with settings.use(retention_days=1, clock=lambda: clock.now):
        await fill()
    (chunk,) = [key for key in chunk_keys(clear_store) if key.startswith("nl_input#")]
    if payload == "gone":
        raw.delete(clear_store, "agent-executions", "p-nl_input", chunk)
    before = raw.everything(clear_store, "agent-executions")
    with settings.use(kms_key=kms.new_key()):
        assert main(["rekey", "--yes", "--delete-old"]) == 0
    assert raw.everything(clear_store, "agent-executions") == before
    assert CANARY not in repr(raw.everything(clear_store, "user-projects"))


def attempt(number: int, status: str) -> dict[str, Any]:
    """One attempt as a release stored it that kept no failed attempts."""
    values = {"number": {"N": str(number)}, "start_time": {"N": "1700000000"}}
    values |= {"end_time": {"N": f"170000000{number}.25"}, "worker": {"S": "host:1"}}
    return {"M": {**values, "status": {"S": status}, "error_message": {"S": f"{CANARY} {number}"}}}


async def test_texts_of_attempts_that_have_no_items_are_encrypted_as_items(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = {"1": attempt(1, "FAILED"), "2": attempt(2, "LOST"), "3": attempt(3, "FAILED")}
    raw.put_attribute(
        clear_store,
        "agent-executions",
        *("p-parser", "parser"),
        project_id={"S": "p"},
        status={"S": "FAILED"},
        start_time={"N": "1700000000"},
        failed_at={"N": "1700000003.25"},
        retry_count={"N": "2"},
        error_message={"S": f"{CANARY} 3"},
        attempts={"M": attempts},
    )
    with settings.use(kms_key=kms.new_key()):
        assert main(["rekey", "--yes"]) == 0
        # It is no failure, and no item may say that it was one.
        assert "left as it is: p-parser: the text of attempt 2" in capsys.readouterr().out
        failures = await get_failed_executions(session_id="p", include_recovered=True)
        assert [(one.number, one.error_message) for one in failures] == [
            (3, f"{CANARY} 3"),
            (1, f"{CANARY} 1"),
        ]
        assert (failures[1].failed_at, failures[1].worker) == (1700000001.25, "host:1")
        (_, second, _) = (await get_agent_execution("p-parser")).attempts
        assert second.error_message == f"{CANARY} 2"
    assert repr(everything(clear_store)).count(CANARY) == 1


async def test_it_sends_what_its_printed_policy_allows(clear_store: Settings, kms: Kms) -> None:
    await fill()
    sent: set[str] = set()

    def transport(send: Transport) -> Transport:
        async def recorded(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            sent.add(operation)
            return await send(operation, request)

        return recorded

    with settings.use(kms_key=kms.new_key(), transport=transport):
        assert main(["rekey", "--yes", "--delete-old"]) == 0
    assert sent == {*iam.REKEY_ACTIONS} - {"DescribeTable", "Scan"}  # which are as in migrations


async def test_a_damaged_row_is_named_and_the_others_are_done(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill()
    (chunk, *_) = [one for one in everything(clear_store) if "chunk" in one]
    key = chunk["execution_id"]["S"], chunk["agent_name"]["S"]
    raw.put_attribute(clear_store, "agent-executions", *key, chunk={"B": b"x"})
    with settings.use(kms_key=kms.new_key()):
        assert main(["rekey", "--yes", "--delete-old"]) == 1
        assert "left as it is: p-nl_input" in capsys.readouterr().out
        assert (await get_user_project("u", "p")).description == CANARY
    # What may still be of use to somebody is not deleted.
    assert raw.item(clear_store, "agent-executions", *key) is not None


async def test_a_row_under_a_key_that_nobody_named_is_named_and_the_others_are_done(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    with settings.use(kms_key=kms.new_key()):
        await save_user_project(user_id="u", project_id="a", description=CANARY)
        await store_chunks(1)
    for project in ("b", "c"):
        await save_user_project(user_id="u", project_id=project, description=CANARY)
    with settings.use(kms_key=kms.new_key()):
        assert main(["rekey", "--yes", "--delete-old"]) == 1
        shown = " ".join(capsys.readouterr().out.split())
        assert "left as it is: user-projects u, a: description: it is encrypted under arn" in shown
        assert "left as it is: agent-executions p-parser, parser: output" in shown
        assert "3 read, 2 encrypted, 0 deleted, 1 failed" in shown
        for project in ("b", "c"):
            assert (await get_user_project("u", project)).description == CANARY
    assert CANARY not in repr(everything(clear_store))


async def test_units_are_taken_row_by_row(
    clear_store: Settings, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    with settings.use(environment=f"{clear_store.environment}p") as chosen:
        monkeypatch.setattr(settings, "_configured", chosen)
        made = {"billing": "provisioned", "write_units": 1}
        apply(chosen, declared.tables(chosen, environments.load("dev", None, made)))
        for project in "abc":
            await save_user_project(user_id="u", project_id=project, description=CANARY)
        pauses: list[float] = []
        monkeypatch.setattr(rekey, "time", SimpleNamespace(sleep=pauses.append))
        with settings.use(kms_key=kms.new_key()):
            assert main(["rekey", "--yes"]) == 0
    long = [seconds for seconds in pauses if seconds > 1]
    # A row takes 2 units, with its index, at half of one unit a second.
    assert long == pytest.approx([4, 4, 4], abs=0.5)


async def test_it_asks_and_it_needs_a_key(
    clear_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rekey"]) == 1
    assert "set TDEV_KMS_KEY" in capsys.readouterr().err
    with settings.use(kms_key=kms.new_key()):
        assert main(["rekey"]) == 64
    assert "--yes: is required" in capsys.readouterr().err
