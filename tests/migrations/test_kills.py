"""Runs that are killed at random requests, reads and changes alike; each next run ends clean."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from typing import Any

import botocore.client
import pytest

from tests.migrations.runs import run
from tests.migrations.strict import Killed, StrictAws


def kill_and_run_again(
    monkeypatch: pytest.MonkeyPatch, kills: int, *options: str, reset: Callable[[], None]
) -> None:
    """Kill as many first runs, each before or after a random request of all that it would send.

    Each is of an environment of its own. The next run must end clean.
    """
    send, count, at = botocore.client.BaseClient._make_api_call, 0, 0.0

    def call(client: Any, operation: str, params: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        answer = send(client, operation, params)
        if count + 0.5 == at:
            raise Killed
        return answer

    def another() -> str:
        return f"t{uuid.uuid4().hex[:8]}"

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    assert run("apply", another(), *options) == 0
    whole, killed = count, 0
    while killed < kills:
        reset()
        environment, count, at = another(), 0, random.randrange(2, 2 * whole + 1) / 2
        try:
            # How often an engine is asked whether it is ready differs, so this may be no kill.
            assert run("apply", environment, *options) == 0
            continue
        except Killed:
            killed += 1
        killed_at, at = at, 0.0
        assert run("apply", environment, *options) == 0, f"killed at {killed_at} of {whole}"
        assert run("plan", environment, *options) == 0, f"killed at {killed_at} of {whole}"


def test_killed_runs_of_dev_on_dynoxide(dynoxide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", dynoxide)
    kill_and_run_again(monkeypatch, 8, "--set", "like=dev", reset=lambda: None)


def test_killed_runs_of_prod_on_moto(aws: StrictAws, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_and_run_again(
        monkeypatch, 4, "--set", "like=prod", "--table", "user-projects", reset=aws.reset
    )
    assert "DeleteTable" not in aws.mutations
