"""A sessions' table that was made before workers had a presence becomes today's, in use."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tdev_models import aws, settings, sync
from tdev_models.migrations import declared, environments
from tdev_models.models import TABLES, PipelineSession
from tdev_models.settings import Settings
from tests import raw
from tests.dying import kill_worker
from tests.migrations.runs import apply, run

SHORT = "pipeline-sessions"
LIKE_DEV = ("--set", "like=dev")


def make_earlier_table(store: Settings) -> None:
    """Make the sessions' table as it was, without a worker-index."""
    schema = PipelineSession.meta_table(store.table_name(SHORT)).data
    indexes = [
        one for one in schema["GlobalSecondaryIndexes"] if one["IndexName"] != "worker-index"
    ]
    for one in (schema, *indexes):
        one["KeySchema"].sort(key=lambda key: key["KeyType"])  # HASH first
    definitions = schema["AttributeDefinitions"]
    request = {
        **{key: schema[key] for key in ("TableName", "KeySchema")},
        "AttributeDefinitions": [one for one in definitions if one["AttributeName"] != "worker_id"],
        "GlobalSecondaryIndexes": indexes,
        "BillingMode": "PAY_PER_REQUEST",
    }
    aws.call(store, "CreateTable", request)
    others = [model for model in TABLES if model is not PipelineSession]
    apply(store, declared.tables(store, environments.Environment(), others))


def write_earlier_row(store: Settings, name: str, lease_expires: float) -> None:
    """Write a session as an owner of then left it: with a lease of its own."""
    now = {"N": str(time.time() - 60)}
    values: dict[str, Any] = {"created_at": now, "last_updated": now, "due_at": now}
    lease = {"lease_token": {"S": "t"}, "fence": {"N": "3"}, "lease_owner": {"S": "host:1"}}
    expires = {"N": str(lease_expires)}
    values |= {"status": {"S": "ACTIVE"}, "lease_expires": expires, **lease}
    raw.put_attribute(store, SHORT, name, **values)


def test_sessions_of_an_earlier_release_become_those_of_today_while_workers_work(
    dynoxide: str, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", dynoxide)
    store = Settings(
        environment=environment, region="us-east-1", endpoint=dynoxide, automatic_metrics=False
    )
    make_earlier_table(store)
    write_earlier_row(store, "died", time.time() - 1)
    write_earlier_row(store, "lives", time.time() + 50)
    done, tracked = threading.Event(), list[str]()

    def work() -> None:
        with settings.use(store):
            while not done.is_set():
                name = f"s{len(tracked)}"
                with sync.track_session(name):
                    tracked.append(name)

    def runner(resume: sync.Resume) -> None: ...

    with settings.use(store, lease_seconds=0.6):
        sync.track_session("of a dead worker").__enter__()
        kill_worker()
    with settings.use(store):
        worker = threading.Thread(target=work)
        worker.start()
        try:
            assert sync.resume_pipeline("died", runner)
            assert not sync.resume_pipeline("lives")
            assert run("apply", environment, *LIKE_DEV) == 0
        finally:
            done.set()
            worker.join()
        assert run("plan", environment, *LIKE_DEV) == 0
        assert sync.get_pipeline_session("died").fence == 4
        time.sleep(0.7)
        assert sync.recover_sessions(runner).completed == ["of a dead worker"]
        assert not sync.get_failed_sessions()
        for name in tracked:
            assert sync.get_pipeline_session(name).status == "COMPLETED"
