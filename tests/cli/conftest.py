"""A small month of sessions, and `tdev` as users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from benchmarks.seeded_month import seed
from tdev_models import Settings, settings
from tdev_models.cli import main
from tests.conftest import make_tables

SESSIONS = 200


class Printed(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its JSON, one object a line."""
        return [json.loads(line) for line in self.out.splitlines()]


Tdev = Callable[..., Printed]


@pytest.fixture(scope="session")
def seeded(dynoxide: str) -> Settings:
    """Tables that hold a small month; commands that change it take sessions of their own."""
    made = make_tables(dynoxide)
    with settings.use(made):
        seed(SESSIONS)
    return made


@pytest.fixture
def month(seeded: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The small month as the settings in force."""
    monkeypatch.setattr(settings, "_configured", seeded)
    return seeded


@pytest.fixture
def tdev(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tdev:
    """Runs a command on the settings in force, in a terminal of a given width."""

    def run(*arguments: str, width: int = 80) -> Printed:
        monkeypatch.setenv("COLUMNS", str(width))
        capsys.readouterr()
        code = main([*arguments])
        return Printed(code, *capsys.readouterr())

    return run
