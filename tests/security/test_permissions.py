"""What KMS refuses, or does not answer, costs the fields it guards, and no session."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import threading
import time
from typing import Any

import pytest
from pynamodb.expressions.update import Action
from pynamodb.transactions import TransactWrite

from tdev_models import (
    AGENTS,
    AccessDenied,
    ConfigurationError,
    InvalidRequest,
    Resume,
    Settings,
    Throttled,
    Unavailable,
    Undecrypted,
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    get_failed_sessions,
    get_pipeline_session,
    get_user_project,
    list_user_projects,
    recover_sessions,
    resume_pipeline,
    save_pipeline_session,
    save_user_project,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.models import PipelineSession
from tdev_models.security import fields
from tests import raw
from tests.engine.pipelines import fail, files, finish
from tests.kms import Kms

DENIED = "AccessDeniedException"


async def test_without_permission_to_decrypt_everything_else_works(
    encrypted_store: Settings, kms: Kms
) -> None:
    await fail("p", at="parser")
    await save_pipeline_session(session_id="p", metadata={"m": 1})
    await save_user_project(user_id="u", project_id="p", project_name="n", description="d")
    kms.forget()
    kms.refuses["Decrypt"] = DENIED

    execution = await get_agent_execution("p-nl_input")
    assert execution.status == "COMPLETED"
    assert isinstance(execution.output_data, Undecrypted)
    assert isinstance(execution.output_data.error, AccessDenied)
    assert f"kms:Decrypt on {encrypted_store.kms_key}" in execution.output_data
    session = await get_pipeline_session("p")
    assert session.failed_agent == "parser"
    assert isinstance(session.metadata, Undecrypted)
    assert isinstance(session.error_message, Undecrypted)
    (failure,) = await get_failed_executions(session_id="p")
    assert failure.error_class == "ValueError"
    assert isinstance(failure.traceback, Undecrypted)
    # Writing needs another permission.
    await save_user_project(user_id="u", project_id="p", description="new")
    await update_agent_execution(execution_id="q-parser", output_data=["new"])
    async with track_session("new") as tracked:
        async with tracked.agent("parser", files(100_000)) as run:
            run.output = files(100_000)
    assert (await get_pipeline_session("new")).status == "COMPLETED"


async def test_lists_ask_kms_for_nothing(encrypted_store: Settings, kms: Kms) -> None:
    await fail("p", at="parser")
    await save_user_project(user_id="u", project_id="p", description="d")
    kms.forget()
    (session,) = await get_failed_sessions()
    (failure,) = await get_failed_executions()
    (project,) = await list_user_projects("u", order="project_id")
    (listed,) = await list_user_projects("u")
    executions = await get_agent_executions("p", attempts=True)
    assert not kms.calls
    assert listed.description is None  # no index holds it
    for text in (
        session.error_message,
        failure.error_message,
        failure.traceback,
        project.description,
        executions[-1].error_message,
    ):
        assert isinstance(text, Undecrypted)
        assert text.error is None


async def test_nothing_is_claimed_failed_or_spent_without_permission_to_decrypt(
    encrypted_store: Settings, kms: Kms
) -> None:
    await fail("p")
    before = raw.everything(encrypted_store, "pipeline-sessions")
    kms.forget()
    kms.refuses["Decrypt"] = DENIED
    with pytest.raises(AccessDenied, match="kms:Decrypt"):
        await resume_pipeline("p")
    with pytest.raises(AccessDenied, match="kms:Decrypt"):
        async with track_session("p"):
            pytest.fail("it was entered")
    recovery = await recover_sessions(finish)
    assert recovery.lost == ["p"]
    assert raw.everything(encrypted_store, "pipeline-sessions") == before

    kms.refuses.clear()
    await recover_sessions(finish)
    assert (await get_pipeline_session("p")).status == "COMPLETED"


async def test_who_chooses_by_what_is_encrypted_chooses_nothing_blindly(
    encrypted_store: Settings, kms: Kms
) -> None:
    with pytest.raises(ValueError, match="broke"):
        async with track_session("p", metadata={"tier": "gold"}):
            raise ValueError("broke")
    seen: list[Any] = []

    def accepts(session: Any) -> bool:
        seen.append(session.metadata)
        return True

    kms.forget()
    kms.refuses["Decrypt"] = DENIED
    assert (await recover_sessions(finish, accepts=accepts)).lost == ["p"]
    assert seen == []
    kms.refuses.clear()
    await recover_sessions(finish, accepts=accepts)
    assert seen == [{"tier": "gold"}]


async def test_nothing_is_claimed_where_nothing_can_be_encrypted(
    encrypted_store: Settings, kms: Kms
) -> None:
    await fail("p", at="nl_input")
    before = raw.everything(encrypted_store, "pipeline-sessions")
    kms.forget()
    kms.refuses["GenerateDataKey"] = DENIED
    for session_id in ("p", "new"):
        with pytest.raises(AccessDenied, match="kms:GenerateDataKey on arn:"):
            async with track_session(session_id):
                pytest.fail("it was entered")
    with pytest.raises(AccessDenied):
        await resume_pipeline("p")
    assert raw.everything(encrypted_store, "pipeline-sessions") == before
    with pytest.raises(AccessDenied):
        await update_agent_execution(execution_id="q-parser", output_data=[1])
    assert raw.item(encrypted_store, "agent-executions", "q-parser", "parser") is None
    assert (await get_agent_execution("p-nl_input")).error_message == "ValueError: broke"


@pytest.mark.parametrize(
    ("code", "error"),
    [("KMSInternalException", Unavailable), ("ThrottlingException", Throttled)],
)
async def test_a_kms_that_is_away_is_asked_again(
    encrypted_store: Settings, kms: Kms, code: str, error: type[Exception]
) -> None:
    kms.forget()
    kms.refuses["GenerateDataKey"] = code
    with settings.use(retry_seconds=1), pytest.raises(error, match="kms:GenerateDataKey"):
        await update_agent_execution(execution_id="p-parser", output_data=[1])
    assert kms.calls["GenerateDataKey"] > 1

    kms.refuses.clear()
    async with track_session("p") as session:
        async with session.agent("parser") as run:
            run.output = ["finished work"]
            kms.forget()
            kms.refuses["GenerateDataKey"] = code
            # Longer than other calls are tried: an owner's work is kept.
            threading.Timer(1.0, kms.refuses.clear).start()
    assert (await get_agent_execution("p-parser")).output_data == ["finished work"]


async def test_a_key_that_is_disabled_says_so(encrypted_store: Settings, kms: Kms) -> None:
    await update_agent_execution(execution_id="p-parser", output_data=[1])
    kms.forget()
    kms.refuses["Decrypt"] = "DisabledException"
    shown = (await get_agent_execution("p-parser")).output_data
    assert isinstance(shown.error, ConfigurationError)
    assert f"kms:Decrypt on {encrypted_store.kms_key}" in shown
    assert "DisabledException" in shown


async def test_many_at_once_ask_kms_once_and_the_loop_goes_on(
    encrypted_store: Settings, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops, last = list[float](), time.monotonic()
    monkeypatch.setattr(kms, "seconds", 1.0)
    kms.forget()

    async def beat() -> None:
        nonlocal last
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            stops.append(now - last)
            last = now

    beats = asyncio.create_task(beat())
    await asyncio.gather(
        *(update_agent_execution(execution_id=f"p-{name}", output_data=[1]) for name in AGENTS)
    )
    beats.cancel()
    assert kms.calls == {"GenerateDataKey": 1}
    assert max(stops) < 0.8, "the loop waited for KMS"


async def test_many_at_once_wait_for_kms_in_one_thread(
    encrypted_store: Settings, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save_user_project(user_id="u", project_id="p", description="d")
    monkeypatch.setattr(kms, "seconds", 0.5)
    kms.forget()
    most = 0

    async def count() -> None:
        nonlocal most
        while True:
            await asyncio.sleep(0.01)
            names = [thread.name for thread in threading.enumerate()]  # botocore has its own
            most = max(most, names.count("tdev-agent"))

    counting = asyncio.create_task(count())
    found = await asyncio.gather(*(get_user_project("u", "p") for _ in range(50)))
    counting.cancel()
    assert [one.description for one in found] == ["d"] * 50
    assert kms.calls == {"Decrypt": 1}
    assert 0 < most < 10


def test_a_forked_child_waits_for_no_key_that_its_parent_was_about_to_have(
    encrypted_store: Settings, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.save_user_project(user_id="u", project_id="p", description="d")
    kms.forget()
    seconds, keys_of = [3.0], fields.keys_of

    def slow(settings: Settings) -> Any:
        time.sleep(seconds[0])
        return keys_of(settings)

    monkeypatch.setattr(fields, "keys_of", slow)
    reads = threading.Thread(target=sync.get_user_project, args=("u", "p"))
    reads.start()
    time.sleep(0.5)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            seconds[0] = 0
            sync.get_user_project("u", "p")
            status = 0
        finally:
            os._exit(status)
    reads.join()
    assert os.waitpid(child, 0)[1] == 0


async def test_where_no_thread_is_left_for_kms_it_is_tried_again(
    encrypted_store: Settings, kms: Kms, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, list[threading.Thread]()

    def refusing(thread: threading.Thread) -> None:
        if thread.name == "tdev-agent" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    await save_user_project(user_id="u", project_id="p", description="d")  # the SDK is imported
    kms.forget()
    monkeypatch.setattr(threading.Thread, "start", refusing)
    await asyncio.gather(
        *(save_user_project(user_id="u", project_id=f"p{n}", description="d") for n in range(9))
    )
    assert refused


async def test_a_field_that_was_not_decrypted_is_no_data(
    encrypted_store: Settings, kms: Kms
) -> None:
    await update_agent_execution(execution_id="p-parser", output_data=[1])
    kms.forget()
    kms.refuses["Decrypt"] = DENIED
    shown = (await get_agent_execution("p-parser")).output_data
    for given in (shown, {"in": [shown]}):
        with pytest.raises(InvalidRequest, match="not decrypted"):
            await update_agent_execution(execution_id="p-search", output_data=given)
    with pytest.raises(InvalidRequest, match=r"description: .*not decrypted"):
        await save_user_project(user_id="u", project_id="p", description=shown)
    with pytest.raises(InvalidRequest, match="not decrypted"):
        async with track_session("s") as session:
            async with session.agent("parser", {"in": shown}):
                pytest.fail("it was entered")


async def test_another_key_reads_what_the_former_one_has_encrypted(
    encrypted_store: Settings, kms: Kms
) -> None:
    old, new = str(encrypted_store.kms_key), kms.new_key()
    await fail("p", at="parser")
    kms.forget()
    with settings.use(kms_key=new, kms_former_keys=(old,)):
        outcome = await resume_pipeline("p", finish)
        assert outcome.outputs["nl_input"] == "nl_input"
        assert (await get_agent_execution("p-nl_input")).output_data == "nl_input"
    kms.forget()
    with settings.use(kms_key=None, kms_former_keys=(new,)):  # read only
        assert (await get_agent_execution("p-parser")).output_data == "parser again"
        shown = (await get_agent_execution("p-nl_input")).output_data
        assert f"encrypted under {old}" in shown
        await update_agent_execution(execution_id="q-parser", output_data=["clear"])
    assert raw.item(encrypted_store, "agent-executions", "q-parser", "parser") is not None


async def test_rows_in_clear_and_encrypted_ones_live_together(encrypted_store: Settings) -> None:
    with settings.use(kms_key=None):
        await fail("p", at="parser")
        await save_pipeline_session(session_id="p", metadata={"m": 1})
    async with await resume_pipeline("p") as session:
        await finish(session)
    assert (await get_pipeline_session("p")).metadata == {"m": 1}
    await save_pipeline_session(session_id="p", metadata={"m": 2})
    item = raw.item(encrypted_store, "pipeline-sessions", "p")
    assert item is not None
    assert "metadata" not in item
    with settings.use(kms_key=None):
        assert "set TDEV_KMS_KEY" in (await get_pipeline_session("p")).metadata
        await save_pipeline_session(session_id="p", metadata={"m": 3})
        assert (await get_pipeline_session("p")).metadata == {"m": 3}
    assert (await get_pipeline_session("p")).metadata == {"m": 3}


async def test_fields_are_encrypted_by_choice(encrypted_store: Settings) -> None:
    with settings.use(kms_fields=("output_data",)):
        await update_agent_execution(
            execution_id="p-parser", status="FAILED", error_message="e", input_data=[1]
        )
        await update_agent_execution(execution_id="q-parser", output_data=[files(100_000)])
        assert (await get_agent_execution("p-parser")).input_data == [1]
        assert (await get_agent_execution("q-parser")).output_data == [files(100_000)]
    item = raw.item(encrypted_store, "agent-executions", "p-parser", "parser")
    other = raw.item(encrypted_store, "agent-executions", "q-parser", "parser")
    assert item is not None
    assert other is not None
    assert (item["input_data"], item["error_message"]) == ({"S": "[1]"}, {"S": "e"})
    assert "output_ref_encrypted" in other


async def test_the_orm_stores_no_secret_in_clear(encrypted_store: Settings) -> None:
    with pytest.raises(InvalidRequest, match=r"metadata: is encrypted, and save\(\)"):
        PipelineSession("p", metadata={"m": 1}).save()
    session = PipelineSession("p", project_name="n")
    session.save()
    secret: list[Action] = [PipelineSession.metadata.set({"m": 1})]
    with pytest.raises(InvalidRequest, match=r"metadata: is encrypted, and update\(\)"):
        session.update(secret)
    connection = PipelineSession._get_connection().connection
    with pytest.raises(InvalidRequest, match=r"metadata: is encrypted, and update\(\)"):
        with TransactWrite(connection=connection) as transaction:
            transaction.update(session, secret)
    session.update([PipelineSession.metadata.remove(), PipelineSession.project_name.set("n")])
    assert (await get_pipeline_session("p")).project_name == "n"


async def test_the_orm_replaces_what_is_encrypted_and_is_no_longer_to_be(
    encrypted_store: Settings,
) -> None:
    await save_pipeline_session(
        session_id="s", status="FAILED", error_message="old", metadata={"old": 1}
    )
    with settings.use(kms_fields=("input_data",)):
        session = next(PipelineSession.status_index.query("FAILED"))
        session.metadata = {"new": 1}
        session.save()
        session.update([PipelineSession.error_message.set("new")])
        stored = await get_pipeline_session("s")
        assert (stored.metadata, stored.error_message) == ({"new": 1}, "new")
    await save_pipeline_session(session_id="s", error_message="old")
    connection = PipelineSession._get_connection().connection
    with TransactWrite(connection=connection) as transaction:
        transaction.update(session, [PipelineSession.error_message.remove()])
    assert (await get_pipeline_session("s")).error_message is None


async def test_a_missing_library_names_the_extra(
    strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "find_spec", lambda name: None)
    await get_failed_sessions()
    key = "arn:aws:kms:us-east-1:123456789012:key/0"
    with settings.use(kms_key=key), pytest.raises(ConfigurationError, match=r"models\[kms\]"):
        await get_failed_sessions()


async def test_no_data_key_is_printed(
    encrypted_store: Settings, kms: Kms, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await update_agent_execution(execution_id="p-parser", output_data=["canary-1"])
        shown: list[Resume[Any] | Any] = [fields._keys, *fields._keys.values()]
        kms.forget()
        assert (await get_agent_execution("p-parser")).output_data == ["canary-1"]
    assert len(kms.data_keys) == 1
    text = caplog.text + repr(shown)
    assert "aws_encryption_sdk" in text, "nothing was recorded"
    for key in kms.data_keys:
        for form in (base64.b64encode(key).decode(), key.hex(), repr(key)[2:-1]):
            assert form not in text
    assert "canary-1" not in text
