"""The role that the package acts in, and the counts of what it was allowed and denied."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import pytest

from tdev_models.migrations import iam
from tests.conftest import missing
from tests.permissions import account
from tests.permissions.account import Account, Statement

Printed: TypeAlias = Callable[..., Sequence[Statement]]
COUNTED: Counter[tuple[str, str]] = Counter()


@pytest.fixture(scope="session")
def _account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    if not account.PYTHON.exists():
        missing("no ministack, so no permission was tried: make .venv-permissions/.ready")
    with account.opened(tmp_path_factory.mktemp("ministack")) as made:
        yield made
        made.judged()
        COUNTED.update(made.counted)


@pytest.fixture
def role(_account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """The account, in whose role everything acts that the test calls."""
    for name, key in (
        ("AWS_ACCESS_KEY_ID", "AccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SecretAccessKey"),
        ("AWS_SESSION_TOKEN", "SessionToken"),
    ):
        monkeypatch.setenv(name, _account.credentials[key])
    monkeypatch.setenv("AWS_REGION", account.REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL", _account.endpoint)
    account.forget_credentials()
    _account.judged()
    yield _account
    account.forget_credentials()


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Return the statements that `tdev iam` prints for a role."""

    def statements(role: str, environment: str, *more: str) -> Sequence[Statement]:
        capsys.readouterr()
        assert iam.main([role, "--env", environment, "--set", "like=dev", *more]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        found: list[Statement] = document["Statement"]
        return found

    return statements


@pytest.fixture
def environment() -> str:
    """The name of an environment that no other test uses."""
    return f"t{uuid.uuid4().hex[:8]}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of one of several test processes to the one that prints them."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["permissions"] = [(*what, count) for what, count in COUNTED.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for verdict, action, count in getattr(node, "workeroutput", {}).get("permissions", ()):
        COUNTED[verdict, action] += count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for verdict in ("allowed", "denied"):
        found = {action: count for (one, action), count in COUNTED.items() if one == verdict}
        if found:
            figures = ", ".join(f"{action} {count}" for action, count in sorted(found.items()))
            terminalreporter.write_line(f"IAM {verdict} {sum(found.values())}: {figures}")
