"""Engines, tables and the rule that every request of every test is checked against."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from benchmarks.seeded_month import seed
from tdev_models import settings
from tdev_models.cli.engine import Engine
from tdev_models.dynamodb.transports import target
from tdev_models.models import TABLES
from tdev_models.settings import Settings, Transport
from tdev_models.workers import presence
from tests import canary
from tests.dying import kill_worker
from tests.moto import server

MONTH = int(os.environ.get("TDEV_TEST_SESSIONS", "200"))

# The plan's fourth, PutItem, is never sent: it would delete what newer releases have written.
ALLOWED = {"GetItem", "UpdateItem", "Query", "TransactGetItems", "TransactWriteItems"}
SENT: Counter[str] = Counter()
SWEPT: Counter[str] = Counter()


def allowed_only(send: Transport) -> Transport:
    """Fail whichever test sends what the plan's four permissions do not cover."""

    async def checked(operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        parts = {kind for part in request.get("TransactItems", ()) for kind in part}
        SENT.update([operation, *(f"{operation}:{kind}" for kind in parts)])
        canary.take(request)
        assert operation in ALLOWED, operation
        assert parts <= {"Get", "Update"}, parts
        return await send(operation, request)

    return checked


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, counted in (("requests the services sent", SENT), ("faults the sweep met", SWEPT)):
        if counted:
            figures = ", ".join(f"{name} {count}" for name, count in sorted(counted.items()))
            terminalreporter.write_line(f"{what}: {figures}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of one of several test processes to the one that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["counts"] = dict(SENT), dict(SWEPT)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    sent, swept = getattr(node, "workeroutput", {}).get("counts", ({}, {}))
    SENT.update(sent)
    SWEPT.update(swept)


def missing(reason: str) -> None:
    """Skip for want of an engine, or fail where CI should have had it."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have every engine: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _no_real_aws() -> None:
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "TDEV_ENV"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _transport_of_the_run() -> Iterator[None]:
    """With TDEV_TRANSPORT=botocore, let every test send by botocore, whatever it wraps around."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("TDEV_TRANSPORT") == "botocore":
            patch.setattr(target, "opened", lambda settings: None)
        yield


@pytest.fixture(autouse=True)
def _nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """With TDEV_CANARY, fail each test in which anything logs what was stored."""
    if not os.environ.get("TDEV_CANARY"):
        yield
        return
    with canary.watching() as leaked:
        yield
    assert leaked() == []


@pytest.fixture(autouse=True)
def _workers_end_with_their_test(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let no heartbeat outlive its test, and workers declare others dead at once.

    Marked `calm`, a test waits as workers do.
    """
    if "calm" not in request.keywords:
        monkeypatch.setattr(presence, "CALM_LEASES", 0.0)
    yield
    for made in [*presence.Presence._all]:
        kill_worker(made)


@pytest.fixture(scope="session")
def dynoxide() -> Iterator[str]:
    """The endpoint of a dynoxide in memory."""
    with Engine.start() as engine:
        if engine.name != "dynoxide":
            missing(engine.notice)
        yield engine.endpoint


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The endpoint of a single-threaded moto."""
    with server() as endpoint:
        yield endpoint


@pytest.fixture(params=["dynoxide", "moto"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    value: str = request.getfixturevalue(request.param)
    return value


def make_tables(endpoint: str, **changes: Any) -> Settings:
    """Make fresh tables, and settings that lead to them.

    Without metrics of the package's own: they would meet the faults meant for others.
    """
    made = Settings(
        environment=f"t{uuid.uuid4().hex[:10]}",
        region="us-east-1",
        endpoint=endpoint,
        transport=allowed_only,
        **{"automatic_metrics": False, **changes},
    )
    with settings.use(made):
        for model in TABLES:
            model.create_table()
    return made


@pytest.fixture
def store(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Fresh tables on each engine, which every call of the test reaches."""
    made = make_tables(endpoint)
    monkeypatch.setattr(settings, "_configured", made)
    return made


@pytest.fixture
def strict_store(dynoxide: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Fresh tables on dynoxide alone: concurrency, transactions, capacity, crashes."""
    made = make_tables(dynoxide)
    monkeypatch.setattr(settings, "_configured", made)
    return made


@pytest.fixture(scope="session")
def seeded(dynoxide: str) -> Settings:
    """Tables that hold a month of `MONTH` sessions; what changes them takes tables of its own."""
    made = make_tables(dynoxide)
    with settings.use(made):
        seed(MONTH)
    return made


@pytest.fixture
def month(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The month as the settings in force."""
    monkeypatch.setattr(settings, "_configured", seeded)
    return seeded
