"""Encrypted fields: what is stored, what comes back, and what it takes of KMS."""

from __future__ import annotations

import re
from enum import Enum

import pytest

from tdev_models import (
    AGENTS,
    Settings,
    abandon_session,
    aws,
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
from tdev_models.cli import main
from tdev_models.models import UserProject
from tdev_models.results import Undecrypted
from tests import raw
from tests.engine.pipelines import files
from tests.kms import Kms

CANARY = "canary-7f3a"
TABLES = ("pipeline-sessions", "agent-executions", "user-projects")


def stored(store: Settings) -> str:
    """Return everything that is stored."""
    return "".join(repr(raw.everything(store, table)) for table in TABLES)


class Text(str, Enum):  # noqa: UP042 (its str() is not its value)
    EMPTY = "{}"


async def test_json_text_that_is_an_enum_has_its_value(encrypted_store: Settings) -> None:
    await update_agent_execution(execution_id="s-search", status="RUNNING", input_data=Text.EMPTY)
    assert (await get_agent_execution("s-search")).input_data == {}


async def test_rows_that_go_to_tables_of_another_name_are_read_there_and_stored_here(
    encrypted_store: Settings,
) -> None:
    """As docs/migrations.md says of keys that change: the encryption is bound to the table."""
    await save_user_project(user_id="u", project_id="p", description=CANARY)
    row = raw.item(encrypted_store, "user-projects", "u", "p")
    read = await get_user_project("u", "p")
    with settings.use(prefix="other") as other:
        UserProject.create_table()
        aws.dynamodb(other).put_item(TableName=other.table_name("user-projects"), Item=row)
        copied = await get_user_project("u", "p")
        assert isinstance(copied.description, Undecrypted)
        await save_user_project(user_id="u", project_id="p", description=read.description)
        assert (await get_user_project("u", "p")).description == CANARY


async def test_what_is_secret_comes_back_and_is_nowhere_in_clear(encrypted_store: Settings) -> None:
    large = {"secret": CANARY, **files(200_000)}
    with pytest.raises(KeyError):
        async with track_session("p", user_id="u", metadata={"m": CANARY}) as session:
            async with session.agent("nl_input", {"q": CANARY}) as run:
                run.output = {"a": CANARY}
            async with session.agent("parser", large) as run:
                assert run.once is not None
                assert await run.once("mail", lambda: CANARY) == CANARY
                run.output = [large, "x"]
            async with session.agent("generation", large) as run:
                raise KeyError(CANARY)
    await save_user_project(user_id="u", project_id="p", description=f"about {CANARY}")
    text = stored(encrypted_store)
    assert CANARY not in text
    chunks = [
        one["chunk"]["B"] for one in raw.everything(encrypted_store, TABLES[1]) if "chunk" in one
    ]
    assert chunks
    assert not [one for one in chunks if one.startswith(b"x\x9c")], "only compressed"

    execution = await get_agent_execution("p-nl_input")
    assert (execution.input_data, execution.output_data) == ({"q": CANARY}, {"a": CANARY})
    execution = await get_agent_execution("p-parser")
    assert (execution.input_data, execution.output_data) == (large, [large, "x"])
    execution = await get_agent_execution("p-generation")
    assert CANARY in (execution.error_message or "")
    assert execution.attempts[-1].error_message == execution.error_message
    read = await get_pipeline_session("p")
    assert read.metadata == {"m": CANARY}
    assert CANARY in (read.error_message or "")
    (failure,) = await get_failed_executions(session_id="p")
    assert CANARY in (failure.error_message or "")
    assert f"KeyError: '{CANARY}'" in (failure.traceback or "")
    assert (await get_user_project("u", "p")).description == f"about {CANARY}"
    resumed = await resume_pipeline("p")
    assert resumed.outputs == {"nl_input": {"a": CANARY}, "parser": [large, "x"]}
    await abandon_session("p", f"no {CANARY}")
    assert (await get_pipeline_session("p")).error_message == f"no {CANARY}"
    assert CANARY not in stored(encrypted_store)


def test_the_blocking_calls_do_the_same(encrypted_store: Settings) -> None:
    with sync.track_session("p", metadata={"m": CANARY}) as session:
        with session.agent("nl_input", files(100_000)) as run:
            run.output = CANARY
    assert sync.get_agent_execution("p-nl_input").output_data == CANARY
    assert sync.get_agent_execution("p-nl_input").input_data == files(100_000)
    assert sync.get_pipeline_session("p").metadata == {"m": CANARY}
    assert CANARY not in stored(encrypted_store)


async def test_a_hundred_sessions_cost_three_calls_of_kms(
    encrypted_store: Settings, kms: Kms
) -> None:
    kms.forget()
    for number in range(100):
        async with track_session(f"p{number}", metadata={"n": number}) as session:
            for name in AGENTS[:1]:
                async with session.agent(name, {"in": name}) as run:
                    run.output = {"out": name}
        await get_agent_execution(f"p{number}-nl_input")
        await get_pipeline_session(f"p{number}")
    assert kms.calls == {"GenerateDataKey": 2}
    kms.forget()
    for number in range(100):
        await get_agent_execution(f"p{number}-nl_input")
        await get_pipeline_session(f"p{number}")
    assert kms.calls == {"Decrypt": 2}


def test_the_command_shows_what_one_session_hides(
    encrypted_store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyError):
        with sync.track_session("p") as session:
            with session.agent("nl_input") as run:
                run.output = {"a": CANARY}
            with session.agent("parser"):
                raise KeyError(CANARY)
    assert main(["show", "p", "--payloads", "nl_input", "--tracebacks"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"parser #1 \d+s ago: KeyError: '{CANARY}'", shown)
    assert "Traceback" in shown
    assert f'"a": "{CANARY}"' in shown
    assert main(["failures"]) == 0
    shown = capsys.readouterr().out
    assert CANARY not in shown
    assert "KeyError (encrypted" in shown
