"""Who may write the tables, and has no key, changes nothing that anybody believes.

What is moved is moved as it is: between rows, attributes, tables and environments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tdev_models import (
    ConfigurationError,
    PayloadDamaged,
    Settings,
    Undecrypted,
    get_agent_execution,
    get_failed_executions,
    get_pipeline_session,
    get_user_project,
    json_form,
    resume_pipeline,
    save_user_project,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tests import raw
from tests.conftest import make_tables
from tests.engine.pipelines import files
from tests.kms import Kms

EXECUTIONS, SESSIONS, PROJECTS = "agent-executions", "pipeline-sessions", "user-projects"
SMALL, LARGE = "output_data_encrypted", "output_ref_encrypted"


async def written(name: str, output: Any, **more: Any) -> tuple[str, str]:
    """Write an execution, and return its key."""
    await update_agent_execution(
        execution_id=f"p-{name}", status="COMPLETED", output_data=output, **more
    )
    return f"p-{name}", name


def attribute(store: Settings, table: str, *key: str, name: str) -> dict[str, Any]:
    found = raw.item(store, table, *key)
    assert found is not None
    return dict(found[name])


def chunks(store: Settings, agent: str) -> list[dict[str, Any]]:
    found = [one for one in raw.everything(store, EXECUTIONS) if "chunk" in one]
    mine = [one for one in found if one["agent_name"]["S"].startswith(f"{agent}#")]
    return sorted(mine, key=lambda one: str(one["agent_name"]["S"]))


@pytest.mark.parametrize(("output", "form"), [({"a": 1}, SMALL), (files(100_000), LARGE)])
async def test_a_payload_of_another_row_is_refused(
    encrypted_store: Settings, output: Any, form: str
) -> None:
    source, target = await written("parser", output), await written("search", ["x"])
    moved = attribute(encrypted_store, EXECUTIONS, *source, name=form)
    raw.put_attribute(encrypted_store, EXECUTIONS, *target, **{form: moved})
    with pytest.raises(PayloadDamaged, match=r"p-search.*for another item or attribute"):
        await get_agent_execution("p-search")


@pytest.mark.parametrize(("output", "form"), [({"a": 1}, SMALL), (files(100_000), LARGE)])
async def test_a_payload_of_another_attribute_is_refused(
    encrypted_store: Settings, output: Any, form: str
) -> None:
    key = await written("parser", output)
    moved = attribute(encrypted_store, EXECUTIONS, *key, name=form)
    other = form.replace("output", "input")
    raw.put_attribute(encrypted_store, EXECUTIONS, *key, **{other: moved})
    with pytest.raises(PayloadDamaged, match=r"p-parser.*for another item or attribute"):
        await get_agent_execution("p-parser")


async def test_a_text_of_another_table_is_refused(encrypted_store: Settings) -> None:
    await update_agent_execution(
        execution_id="p-parser", status="FAILED", error_message="of an agent"
    )
    await save_user_project(user_id="p", project_id="q", description="d")
    sync.save_pipeline_session(session_id="p", status="FAILED", error_message="of a session")
    moved = attribute(
        encrypted_store, EXECUTIONS, "p-parser", "parser", name="error_message_encrypted"
    )
    raw.put_attribute(encrypted_store, SESSIONS, "p", error_message_encrypted=moved)
    raw.put_attribute(encrypted_store, PROJECTS, "p", "q", description_encrypted=moved)
    for shown in (
        (await get_pipeline_session("p")).error_message,
        (await get_user_project("p", "q")).description,
    ):
        assert isinstance(shown, Undecrypted)
        assert isinstance(shown.error, PayloadDamaged)
        assert "another table or environment" in shown
        assert "of an agent" not in shown


async def test_a_payload_of_another_environment_is_refused(
    encrypted_store: Settings, dynoxide: str
) -> None:
    other = make_tables(dynoxide, kms_key=encrypted_store.kms_key)
    assert other.environment != encrypted_store.environment
    with settings.use(other):
        source = await written("parser", {"of": "prod"})
    await written("parser", {"of": "dev"})
    moved = attribute(other, EXECUTIONS, *source, name=SMALL)
    raw.put_attribute(encrypted_store, EXECUTIONS, *source, **{SMALL: moved})
    with pytest.raises(PayloadDamaged, match="another table or environment"):
        await get_agent_execution("p-parser")


async def test_the_text_of_another_attempt_is_refused(encrypted_store: Settings) -> None:
    for text in ("first", "second"):
        await update_agent_execution(execution_id="p-parser", status="RUNNING")
        await update_agent_execution(execution_id="p-parser", status="FAILED", error_message=text)
    first, second = (("p-parser", f"parser#failed#0000{number}") for number in (1, 2))
    moved = attribute(encrypted_store, EXECUTIONS, *first, name="error_message_encrypted")
    raw.put_attribute(encrypted_store, EXECUTIONS, *second, error_message_encrypted=moved)
    last, before = await get_failed_executions(session_id="p", include_recovered=True)
    assert before.error_message == "first"
    assert isinstance(last.error_message, Undecrypted)
    assert "another item or attribute" in last.error_message


def cut(found: list[dict[str, Any]], _: bytes) -> list[bytes]:
    return [one["chunk"]["B"] for one in found[:-1]] + [b""]


def reordered(found: list[dict[str, Any]], _: bytes) -> list[bytes]:
    first, second, *rest = (one["chunk"]["B"] for one in found)
    return [second, first, *rest]


def changed(found: list[dict[str, Any]], _: bytes) -> list[bytes]:
    *rest, last = (bytes(one["chunk"]["B"]) for one in found)
    return [*rest, last[:-1] + bytes([last[-1] ^ 1])]


def foreign(found: list[dict[str, Any]], other: bytes) -> list[bytes]:
    size = 62 * 1024
    return [other[at * size : (at + 1) * size] for at in range(len(found))]


@pytest.mark.parametrize("harm", [cut, reordered, changed, foreign])
async def test_chunks_that_were_touched_are_refused(
    encrypted_store: Settings, harm: Callable[[list[dict[str, Any]], bytes], list[bytes]]
) -> None:
    await written("parser", files(600_000))
    await written("search", [files(600_000)])
    mine, others = chunks(encrypted_store, "parser"), chunks(encrypted_store, "search")
    assert len(mine) == len(others) > 1
    whole = b"".join(one["chunk"]["B"] for one in others)
    for one, data in zip(mine, harm(mine, whole), strict=True):
        key = one["execution_id"]["S"], one["agent_name"]["S"]
        raw.put_attribute(encrypted_store, EXECUTIONS, *key, chunk={"B": data})
    with pytest.raises(PayloadDamaged, match=r"parser#output_data|p-parser"):
        await get_agent_execution("p-parser")
    assert (await get_agent_execution("p-search")).output_data == [files(600_000)]


async def test_chunks_that_are_missing_are_refused(encrypted_store: Settings) -> None:
    await written("parser", files(600_000))
    last = chunks(encrypted_store, "parser")[-1]
    key = last["execution_id"]["S"], last["agent_name"]["S"]
    raw.delete(encrypted_store, EXECUTIONS, *key)
    with pytest.raises(PayloadDamaged, match="chunks are there"):
        await get_agent_execution("p-parser")


async def test_what_is_encrypted_under_a_key_of_others_is_refused_before_kms_is_asked(
    encrypted_store: Settings, kms: Kms
) -> None:
    with settings.use(kms_key=kms.new_key()):
        key = await written("parser", {"forged": True})
    kms.forget()
    shown = (await get_agent_execution(*key)).output_data
    assert isinstance(shown, Undecrypted)
    assert isinstance(shown.error, ConfigurationError)
    assert "neither TDEV_KMS_KEY nor one of TDEV_KMS_FORMER_KEYS" in shown
    assert kms.calls["Decrypt"] == 0


@pytest.mark.parametrize("message", [b"", b"\x02", b"\x02\x04\x78" + bytes(200), b"x" * 500])
async def test_bytes_that_are_no_message_are_refused(
    encrypted_store: Settings, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    key = await written("parser", ["x"])
    raw.put_attribute(encrypted_store, EXECUTIONS, *key, **{SMALL: {"B": message}})
    with pytest.raises(PayloadDamaged, match="p-parser"):
        await get_agent_execution("p-parser")
    assert not [one for one in caplog.records if one.name.startswith("aws_encryption_sdk")]


async def test_a_row_in_clear_is_refused_where_that_is_set(encrypted_store: Settings) -> None:
    key = await written("parser", {"of": "the agent"})
    for name in ("output_data", "error_message"):
        raw.put_attribute(encrypted_store, EXECUTIONS, *key, **{name: {"S": '"forged"'}})
    assert (await get_agent_execution("p-parser")).output_data == {"of": "the agent"}
    with settings.use(kms_key=None):
        await written("search", ["in clear"])
    assert (await get_agent_execution("p-search")).output_data == ["in clear"]
    with settings.use(kms_strict=True):
        with pytest.raises(PayloadDamaged, match=r"in clear, which kms_strict refuses"):
            await get_agent_execution("p-search")
        shown = (await get_agent_execution("p-parser")).error_message
        assert isinstance(shown, Undecrypted)
        assert "in clear, which kms_strict refuses" in shown


async def test_nothing_is_claimed_on_what_was_forged(encrypted_store: Settings) -> None:
    with pytest.raises(KeyError):
        async with track_session("p") as session:
            async with session.agent("nl_input") as run:
                run.output = "mine"
            raise KeyError
    forged = {SMALL: {"B": b"forged"}}
    raw.put_attribute(encrypted_store, EXECUTIONS, "p-nl_input", "nl_input", **forged)
    before = raw.item(encrypted_store, SESSIONS, "p")
    with pytest.raises(PayloadDamaged):
        await resume_pipeline("p")
    assert raw.item(encrypted_store, SESSIONS, "p") == before


async def test_an_envelope_in_clear_points_at_nothing_that_is_encrypted(
    encrypted_store: Settings,
) -> None:
    output = files(100_000)
    await written("parser", output)
    (chunk,) = chunks(encrypted_store, "parser")
    text = json_form.encode("x", output).encode()  # who forges it may know it
    envelope = {
        "codec": "zlib",
        "key": chunk["agent_name"]["S"].removesuffix("00000"),
        "chunks": 1,
        "size": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
        "execution_id": "p-parser",
        "kms_key": encrypted_store.kms_key,
    }
    for name, more in (("search", {}), ("generation", {"kms_key": None})):
        await update_agent_execution(execution_id=f"p-{name}", status="COMPLETED")
        forged = {"output_ref": {"S": json.dumps({**envelope, **more})}}
        raw.put_attribute(encrypted_store, EXECUTIONS, f"p-{name}", name, **forged)
        with pytest.raises(PayloadDamaged):
            await get_agent_execution(f"p-{name}")
