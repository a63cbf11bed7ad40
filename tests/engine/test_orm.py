"""The models as a PynamoDB ORM that loses nothing."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pynamodb.exceptions import TransactWriteError, UpdateError
from pynamodb.expressions.update import Action
from pynamodb.transactions import TransactGet, TransactWrite

from tdev_models import (
    AgentExecution,
    InvalidRequest,
    PipelineSession,
    Settings,
    UserProject,
    resume_pipeline,
    save_pipeline_session,
    settings,
    sync,
    track_session,
)
from tests import raw
from tests.conftest import make_tables
from tests.transport.wire import ok, wired

CANCELLED = "TransactionCanceledException"


async def test_saving_what_an_index_returned_changes_only_what_was_changed(store: Settings) -> None:
    await save_pipeline_session(session_id="s", metadata='"a string"', user_id="u", progress=3)
    await track_session("s").__aenter__()
    raw.put_attribute(
        store, "pipeline-sessions", "s", status={"S": "FAILED"}, future={"L": [{"N": "1"}]}
    )
    before = raw.item(store, "pipeline-sessions", "s")
    assert before is not None

    session = next(PipelineSession.status_index.query("FAILED"))
    session.project_name = "changed"
    session.save()
    after = raw.item(store, "pipeline-sessions", "s")
    assert after == before | {"project_name": {"S": "changed"}}
    session.save()  # nothing is left to write
    assert raw.item(store, "pipeline-sessions", "s") == after

    session.refresh(consistent_read=True)
    assert (session.metadata, session.user_id) == ("a string", "u")
    session.metadata = {"now": ["an object"]}
    session.user_id = None
    session.save()
    last = raw.item(store, "pipeline-sessions", "s")
    assert last == {key: value for key, value in after.items() if key != "user_id"} | {
        "metadata": {"S": '{"now":["an object"]}'}
    }


def test_a_new_instance_is_made_and_updates_merge(store: Settings) -> None:
    PipelineSession("s", status="ACTIVE", progress=1, created_at=12.25).save()
    PipelineSession("s", project_name="second writer").save()
    stored = PipelineSession.get("s", consistent_read=True)
    assert (stored.progress, stored.created_at, stored.project_name) == (1, 12.25, "second writer")


def test_an_instance_of_keys_alone_is_made(strict_store: Settings) -> None:
    # moto makes no item of an UpdateItem without an expression.
    PipelineSession("only-a-key").save()
    assert PipelineSession.get("only-a-key").status is None


async def test_save_never_touches_a_lease(store: Settings) -> None:
    await save_pipeline_session(session_id="s", status="FAILED")
    stale = PipelineSession.get("s", consistent_read=True)
    assert await resume_pipeline("s")
    before = raw.item(store, "pipeline-sessions", "s")
    stale.fence, stale.lease_token, stale.lease_owner = 99, "forged", "me"
    stale.save()
    assert raw.item(store, "pipeline-sessions", "s") == before


def test_a_condition_guards_a_save(store: Settings) -> None:
    PipelineSession("s", progress=1).save()
    session = PipelineSession.get("s", consistent_read=True)
    session.progress = 2
    with pytest.raises(UpdateError):
        session.save(condition=PipelineSession.progress == 5)
    session.save(condition=PipelineSession.progress == 1)
    assert PipelineSession.get("s", consistent_read=True).progress == 2


def test_a_payload_in_chunks_is_not_saved_beside_them(store: Settings) -> None:
    sync.update_agent_execution(
        execution_id="s-parser", status="COMPLETED", output_data={"x": "y" * 3000}
    )
    execution = AgentExecution.get("s-parser", "parser")
    execution.output_data = {"new": 1}
    with pytest.raises(InvalidRequest, match=r"^output_data: is stored in chunks"):
        execution.save()
    execution = AgentExecution.get("s-parser", "parser")
    execution.variant = "b"
    execution.save()
    assert sync.get_agent_execution("s-parser").output_data == {"x": "y" * 3000}


@pytest.mark.parametrize("write", ["save", "update"])
def test_what_is_written_without_having_been_read_replaces_chunks(
    store: Settings, write: str
) -> None:
    sync.update_agent_execution(
        execution_id="s-parser", project_id="s", status="COMPLETED", output_data={"x": "y" * 3000}
    )
    execution = next(AgentExecution.project_index.query("s"))
    if write == "save":
        execution.output_data = {"new": 1}
        execution.save()
    else:
        execution.update([AgentExecution.output_data.set({"new": 1})])
    assert sync.get_agent_execution("s-parser").output_data == {"new": 1}


def test_what_would_erase_unknown_attributes_is_refused(store: Settings) -> None:
    with pytest.raises(InvalidRequest, match="puts whole items"):
        UserProject.batch_write()
    connection = PipelineSession._get_connection().connection
    with pytest.raises(InvalidRequest, match="puts whole items"):
        with TransactWrite(connection=connection) as transaction:
            transaction.save(PipelineSession("s"))


def test_a_misspelt_attribute_is_refused(store: Settings) -> None:
    session = PipelineSession("s")
    with pytest.raises(AttributeError, match="no attribute 'progres'"):
        session.progres = 1
    with pytest.raises(ValueError, match="Attribute progres"):
        PipelineSession("s", progres=1)


@pytest.mark.parametrize("number", [True, float("nan"), float("inf"), "1", 1e61])
def test_numbers_that_dynamodb_would_spoil_are_refused(number: object, store: Settings) -> None:
    with pytest.raises(ValueError, match="progress: "):
        PipelineSession("s", progress=number).save()


def test_a_value_that_botocore_cannot_send_is_an_error_at_once(strict_store: Settings) -> None:
    with pytest.raises(TypeError, match="bytes"):
        PipelineSession("s", project_name=b"n").save()


def test_a_decimal_is_a_number(store: Settings) -> None:
    UserProject("u", "p", size_mb=Decimal("1.5")).save()
    assert UserProject.get("u", "p").size_mb == 1.5


def test_a_json_attribute_stores_a_dict_that_looks_like_a_typed_value(store: Settings) -> None:
    PipelineSession("s", status="ACTIVE").save()
    session = PipelineSession.get("s")
    session.update(actions=[PipelineSession.metadata.set({"S": "x"})])
    assert PipelineSession.get("s", consistent_read=True).metadata == {"S": "x"}


def test_a_save_sees_a_change_to_a_value_that_is_equal_in_python(store: Settings) -> None:
    PipelineSession("s", status="ACTIVE", metadata={"deep": [1]}).save()
    session = PipelineSession.get("s", consistent_read=True)
    session.metadata = {"deep": [True]}
    session.save()
    stored = PipelineSession.get("s", consistent_read=True).metadata
    assert stored["deep"][0] is True


def test_what_was_saved_in_another_form_is_not_saved_again(store: Settings) -> None:
    moment = datetime(2031, 5, 4, tzinfo=UTC)
    session = PipelineSession(
        "s", created_at=moment, due_at=1.12345678, metadata='{"a": 1}', budget_usd=Decimal("0.50")
    )
    session.save()
    other = PipelineSession.get("s", consistent_read=True)
    other.created_at, other.due_at, other.metadata, other.budget_usd = 1, 2, {"b": 2}, 3
    other.save()
    session.project_name = "changed"
    session.save()
    stored = PipelineSession.get("s", consistent_read=True)
    assert (stored.created_at, stored.due_at, stored.budget_usd) == (1, 2, 3)
    assert (stored.metadata, stored.project_name) == ({"b": 2}, "changed")


def test_the_other_calls_of_the_orm_work(store: Settings) -> None:
    for number in range(3):
        AgentExecution(
            f"p-{number}", "parser", project_id="p", start_time=number, status="RUNNING"
        ).save()
    assert [one.start_time for one in AgentExecution.project_index.query("p")] == [0, 1, 2]
    assert AgentExecution.project_index.count("p") == 3
    assert len(list(AgentExecution.scan())) == 3
    keys = [("p-0", "parser"), ("p-2", "parser")]
    assert {one.execution_id for one in AgentExecution.batch_get(keys)} == {"p-0", "p-2"}
    AgentExecution.get("p-0", "parser").delete()
    with pytest.raises(AgentExecution.DoesNotExist):
        AgentExecution.get("p-0", "parser", consistent_read=True)


async def test_two_endpoints_in_one_process_each_get_their_own_calls(
    dynoxide: str, moto: str
) -> None:
    one, two = make_tables(dynoxide), make_tables(moto)
    for place, name in ((one, "one"), (two, "two")):
        with settings.use(place):
            await save_pipeline_session(session_id="s", project_name=name)
            PipelineSession(f"orm-{name}", status="ACTIVE", last_updated=1).save()
    for place, name in ((one, "one"), (two, "two"), (one, "one")):
        with settings.use(place):
            assert PipelineSession.get("s", consistent_read=True).project_name == name
            found = {session.session_id for session in PipelineSession.scan()}
            assert found == {"s", f"orm-{name}"}
            assert {
                item["session_id"]["S"] for item in raw.everything(place, "pipeline-sessions")
            } == found


async def test_nothing_secret_is_logged_at_any_level(
    store: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with track_session("s", metadata={"k": "SECRET-1"}) as session:
            async with session.agent("parser", "SECRET-2") as run:
                run.output = "SECRET-3"
        PipelineSession("t", metadata={"k": "SECRET-4"}).save()
        assert PipelineSession.get("s", consistent_read=True).metadata == {"k": "SECRET-1"}
        with pytest.raises(UpdateError):
            PipelineSession("t", metadata=["SECRET-5"]).save(PipelineSession.status == "x")
        connection = PipelineSession._get_connection().connection
        with TransactWrite(connection=connection) as transaction:
            actions: list[Action] = [PipelineSession.metadata.set({"k": "SECRET-6"})]
            transaction.update(PipelineSession("t"), actions=actions)
        with TransactGet(connection=connection) as reading:
            read = reading.get(PipelineSession, "t")
        assert read.get().metadata == {"k": "SECRET-6"}
        with pytest.raises(TransactWriteError):
            with TransactWrite(connection=connection) as transaction:
                transaction.update(
                    PipelineSession("t"), actions=actions, condition=PipelineSession.status == "x"
                )
    assert "SECRET" not in caplog.text
    assert "AWS4-HMAC-SHA256" not in caplog.text


def test_what_was_deleted_can_be_saved_again_whole(store: Settings) -> None:
    PipelineSession("s", status="ACTIVE", metadata={"a": 1}, progress=3).save()
    session = PipelineSession.get("s", consistent_read=True)
    session.delete()
    session.save()
    stored = PipelineSession.get("s", consistent_read=True)
    assert (stored.status, stored.metadata, stored.progress) == ("ACTIVE", {"a": 1}, 3)


@pytest.mark.parametrize("read", [True, False])
def test_a_changed_key_is_refused(store: Settings, read: bool) -> None:
    execution = AgentExecution("p-parser", "parser", status="RUNNING")
    execution.execution_id = "p2-parser"  # of a new instance it may be
    execution.save()
    if read:
        execution = AgentExecution.get("p2-parser", "parser", consistent_read=True)
    for field in ("execution_id", "agent_name"):
        before = getattr(execution, field)
        setattr(execution, field, "search")
        for write in (execution.save, execution.delete):
            with pytest.raises(InvalidRequest, match=f"^{field}: was changed since AgentExecution"):
                write()
        setattr(execution, field, before)
    assert len(raw.everything(store, "agent-executions")) == 1
    execution.status = "COMPLETED"
    execution.save()
    assert AgentExecution.get("p2-parser", "parser", consistent_read=True).status == "COMPLETED"


@pytest.mark.parametrize("read", [True, False])
def test_an_instance_belongs_to_its_environment(store: Settings, read: bool) -> None:
    other = make_tables(str(store.endpoint))
    session = PipelineSession("s", status="ACTIVE", project_name="first")
    session.save()
    if read:
        session = next(PipelineSession.scan())
    with settings.use(other):
        session.project_name = "second"
        actions: list[Action] = [PipelineSession.project_name.set("second")]
        for write in (session.save, session.delete, lambda: session.update(actions)):
            with pytest.raises(InvalidRequest, match=r"is of the table .*; make a new instance"):
                write()
        assert raw.everything(other, "pipeline-sessions") == []
        PipelineSession(**session.attribute_values).save()
    session.save()
    for place in (store, other):
        (stored,) = raw.everything(place, "pipeline-sessions")
        assert (stored["project_name"], stored["status"]) == ({"S": "second"}, {"S": "ACTIVE"})


@pytest.mark.parametrize("read", [True, False])
def test_what_was_deleted_meanwhile_is_not_made_anew_in_part(store: Settings, read: bool) -> None:
    session = PipelineSession("s", status="ACTIVE", user_id="u")
    session.save()
    if read:
        session = PipelineSession.get("s", consistent_read=True)
    PipelineSession("s").delete()
    session.progress = 4
    with pytest.raises(PipelineSession.DoesNotExist, match=r"'s' was deleted since it was read"):
        session.save()
    with pytest.raises(UpdateError):
        session.save(condition=PipelineSession.status.does_not_exist())
    assert raw.everything(store, "pipeline-sessions") == []
    PipelineSession(**session.attribute_values).save()
    assert PipelineSession.get("s", consistent_read=True).progress == 4


@pytest.mark.parametrize(
    ("status", "code", "reasons"),
    [
        (500, "InternalFailure", []),
        (400, CANCELLED, ["TransactionConflict"]),
        (400, CANCELLED, ["None", "ThrottlingError"]),
    ],
)
def test_what_the_services_try_again_the_orm_does(
    status: int, code: str, reasons: list[str]
) -> None:
    """PynamoDB's own errors have neither the status nor the reasons of a transaction."""
    sent: list[str] = []
    refusal = {"__type": code, "message": "", "CancellationReasons": [{"Code": r} for r in reasons]}
    text = json.dumps(refusal).encode()

    def answer(request: dict[str, str]) -> bytes:
        sent.append(request["ClientRequestToken"])
        if len(sent) > 1:
            return ok({})
        return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text)

    with wired() as wire:
        wire.answer = answer
        with settings.use(wire.settings()):
            connection = PipelineSession._get_connection().connection
            with TransactWrite(connection=connection) as transaction:
                actions: list[Action] = [PipelineSession.project_name.set("p")]
                transaction.update(PipelineSession("s"), actions=actions)
    assert len(sent) == 2
    assert len({*sent}) == 1  # the very same transaction, which counts once
