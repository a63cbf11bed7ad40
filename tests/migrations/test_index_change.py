"""An index projects something else: workers read on while it is built under another name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import aws, settings, sync
from tdev_models.errors import StoreError
from tdev_models.models import PipelineSession
from tdev_models.settings import Settings, Transport
from tests.conftest import make_tables
from tests.migrations.runs import run

NEW, FORMER = "user-index-2", "user-index"
SHORT = "pipeline-sessions"


@pytest.fixture
def before(dynoxide: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Tables as the release before made them, which hold some sessions."""
    made = make_tables(dynoxide)
    monkeypatch.setattr(settings, "_configured", made)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynoxide)
    for number in range(5):
        sync.save_pipeline_session(session_id=f"s{number}", user_id="u", status="FAILED")
    return made


@contextmanager
def released(store: Settings, former: str = FORMER) -> Iterator[None]:
    """The release in which the index has its new name, with clients of its own."""
    with pytest.MonkeyPatch.context() as patch:
        index = PipelineSession.user_index
        patch.setattr(index.Meta, "index_name", NEW)
        patch.setattr(type(index), "former", former)
        renamed = {i.Meta.index_name: i for i in PipelineSession._indexes.values()}
        patch.setattr(PipelineSession, "_indexes", renamed)
        patch.setattr(settings, "_configured", replace(store, retry_seconds=10.0))
        yield


def read() -> list[str]:
    """Return what lists show of the user, over several pages."""
    found, cursor = list[str](), None
    while True:
        page = sync.list_pipeline_sessions(user_id="u", limit=2, cursor=cursor)
        found += [session.session_id for session in page]
        if (cursor := page.cursor) is None:
            return sorted(found)


def live_indexes(store: Settings) -> set[str]:
    answer = aws.call(store, "DescribeTable", {"TableName": store.table_name(SHORT)})
    return {index["IndexName"] for index in answer["Table"]["GlobalSecondaryIndexes"]}


def apply(store: Settings, *more: str) -> int:
    return run("apply", store.environment, "--set", "like=dev", "--table", SHORT, *more)


def test_workers_read_on_while_the_index_changes(before: Settings) -> None:
    everything = [f"s{number}" for number in range(5)]
    over, reads, failures = threading.Event(), list[list[str]](), list[BaseException]()

    def read_on() -> None:
        while not over.is_set():
            try:
                reads.append(read())
            except BaseException as failure:
                failures.append(failure)
                return

    with released(before):
        reader = threading.Thread(target=read_on)
        reader.start()
        try:
            assert read() == everything
            assert apply(before) == 0
            assert live_indexes(before) >= {NEW, FORMER}
            seen = len(reads)
            assert apply(before, "--allow", f"delete-index:{SHORT}/{FORMER}") == 0
            assert live_indexes(before) & {NEW, FORMER} == {NEW}
            while reader.is_alive() and len(reads) < seen + 3:
                over.wait(0.01)
        finally:
            over.set()
            reader.join()
    assert failures == []
    assert all(each == everything for each in reads)
    with released(before, former=""):
        assert read() == everything


def test_the_plan_proposes_the_way_without_a_gap(
    before: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        projection = PipelineSession.user_index.Meta.projection
        patch.setattr(projection, "non_key_attributes", projection.non_key_attributes[1:])
        run("plan", before.environment, "--set", "like=dev", "--table", SHORT)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if FORMER in line]
    assert "give the new form another name, with this one as its former name" in line


def refusing(names: set[str], asked: list[str]) -> Callable[[Transport], Transport]:
    """Let indexes refuse reads, as DynamoDB does while it builds them."""

    def around(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            if operation == "Query":
                asked.append(request["IndexName"])
                if request["IndexName"] in names:
                    text = f"Cannot read from backfilling global secondary index: {asked[-1]}"
                    refused = StoreError("ValidationException", 400, text)
                    refused.code = "ValidationException"
                    raise refused
            return await send(operation, request)

        return sent

    return around


def test_an_index_that_is_being_built_is_not_read(before: Settings) -> None:
    asked = list[str]()
    with released(before):
        assert apply(before) == 0
        with settings.use(transport=refusing({NEW}, asked)):
            assert len(sync.list_pipeline_sessions(user_id="u")) == 5
        assert asked == [NEW, FORMER]


def test_where_both_refuse_the_error_is_of_the_declared_one(before: Settings) -> None:
    asked = list[str]()
    with released(before):
        with settings.use(transport=refusing({NEW, FORMER}, asked)):
            with pytest.raises(StoreError, match=f"index: {NEW}"):
                sync.list_pipeline_sessions(user_id="u")
        assert asked == [NEW, FORMER]


def test_an_index_without_a_former_name_is_read_alone(before: Settings) -> None:
    asked = list[str]()
    with settings.use(transport=refusing({FORMER}, asked)):
        with pytest.raises(StoreError, match=f"index: {FORMER}"):
            sync.list_pipeline_sessions(user_id="u")
    assert asked == [FORMER]


def test_other_errors_are_not_asked_again(before: Settings) -> None:
    asked = list[str]()

    def around(send: Transport) -> Transport:
        async def sent(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
            asked.append(operation)
            raise StoreError("SomethingElse", 400, "no")

        return sent

    with released(before), settings.use(transport=around), pytest.raises(StoreError, match="no"):
        sync.list_pipeline_sessions(user_id="u")
    assert asked == ["Query"]
