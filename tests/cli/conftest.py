"""A small month of sessions, and `tdev` as users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tdev_models.cli import main


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


@pytest.fixture
def tdev(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tdev:
    """Runs a command on the settings in force, in a terminal of a given width."""

    def run(*arguments: str, width: int = 80) -> Printed:
        monkeypatch.setenv("COLUMNS", str(width))
        capsys.readouterr()
        code = main([*arguments])
        return Printed(code, *capsys.readouterr())

    return run
