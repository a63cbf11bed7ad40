"""Tables that were made before failed attempts were kept become those of today, in use."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress

import pytest

from tdev_models import aws, settings, sync
from tdev_models.errors import StoreError
from tdev_models.migrations import declared, environments
from tdev_models.models import TABLES, AgentExecution
from tdev_models.settings import Settings
from tests import raw
from tests.migrations.runs import apply, run

SHORT = "agent-executions"
LIKE_DEV = ("--set", "like=dev")


def make_earlier_table(store: Settings) -> None:
    """Make the executions' table as it was: with a status-index, and without a failure-index."""
    schema = AgentExecution.meta_table(store.table_name(SHORT)).data
    indexes = schema["GlobalSecondaryIndexes"]
    project = next(index for index in indexes if index["IndexName"] == "project-index")
    for one in (schema, project):
        one["KeySchema"].sort(key=lambda key: key["KeyType"])  # HASH first
    keys = [("status", "HASH"), ("end_time", "RANGE")]
    status = {
        "IndexName": "status-index",
        "KeySchema": [{"AttributeName": name, "KeyType": kind} for name, kind in keys],
        "Projection": project["Projection"],
    }
    definitions = json.dumps(schema["AttributeDefinitions"]).replace("failed_at", "end_time")
    request = {
        **{key: schema[key] for key in ("TableName", "KeySchema")},
        "AttributeDefinitions": json.loads(definitions),
        "GlobalSecondaryIndexes": [project, status],
        "BillingMode": "PAY_PER_REQUEST",
    }
    aws.call(store, "CreateTable", request)
    others = [model for model in TABLES if model is not AgentExecution]
    apply(store, declared.tables(store, environments.Environment(), others))


def write_earlier_row(store: Settings, execution_id: str, agent_name: str) -> None:
    at = {"N": str(time.time() - 60)}
    project_id = {"S": execution_id.removesuffix(f"-{agent_name}")}
    values = {"project_id": project_id, "status": {"S": "FAILED"}, "retry_count": {"N": "0"}}
    raw.put_attribute(store, SHORT, execution_id, agent_name, **values, start_time=at, end_time=at)


def fail_and_repair(name: str) -> None:
    for fails in (True, False):
        with suppress(KeyError), sync.track_session(name) as session:
            with session.agent("parser"):
                if fails:
                    raise KeyError(name)


def test_executions_of_an_earlier_release_become_those_of_today_while_workers_work(
    dynoxide: str,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", dynoxide)
    store = Settings(
        environment=environment, region="us-east-1", endpoint=dynoxide, automatic_metrics=False
    )
    make_earlier_table(store)
    write_earlier_row(store, "old-parser", "parser")
    write_earlier_row(store, "older-parser", "parser")
    done, names = threading.Event(), [f"s{number}" for number in range(1000)]
    tracked: list[str] = []

    def work() -> None:
        with settings.use(store):
            for name in names:
                if done.is_set():
                    return
                fail_and_repair(name)
                tracked.append(name)

    with settings.use(store):
        fail_and_repair("before")
        with pytest.raises(StoreError):
            sync.get_failed_executions()
        worker = threading.Thread(target=work)
        worker.start()
        try:
            assert run("apply", environment, *LIKE_DEV) == 0
        finally:
            done.set()
            worker.join()
        shown = capsys.readouterr().out
        assert "index failure-index" in shown
        assert f"delete-index:{SHORT}/status-index" in shown
        found = sync.get_failed_executions(include_recovered=True, limit=1000)
        assert sorted(str(one.session_id) for one in found) == sorted(["before", *tracked])
        assert all(one.recovered for one in found)
        # Rows of then are found by their session, and everywhere once they are written.
        assert sync.get_failed_executions() == []
        (one,) = sync.get_failed_executions(session_id="old")
        assert (one.execution_id, one.number) == ("old-parser", 1)
        sync.update_agent_execution(execution_id="old-parser", error_message="of then")
        (one,) = sync.get_failed_executions()
        assert (one.execution_id, one.error_message) == ("old-parser", "of then")
        sync.update_agent_execution(execution_id="older-parser", status="RUNNING")
        allowed = ("--allow", f"delete-index:{SHORT}/status-index")
        assert run("apply", environment, *LIKE_DEV, *allowed) == 0
        assert run("plan", environment, *LIKE_DEV) == 0
        assert [str(one.session_id) for one in sync.get_failed_executions()] == ["old"]
        stored = raw.item(store, SHORT, "older-parser", "parser")
        assert stored is not None
        assert stored["status"] == {"S": "RUNNING"}
