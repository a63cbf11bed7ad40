"""Systems without forks, SIGHUP and file locks, as Windows is, simulated here."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Python's own modules are loaded first: on Windows they do without.
_AS_ON_WINDOWS = """
import asyncio, concurrent.futures.thread, http.server, logging, multiprocessing, os, random
import signal, subprocess, sys, tarfile, tempfile, threading
for module, name in (
    (os, "register_at_fork"), (os, "fork"), (signal, "SIGHUP"), (signal, "SIGKILL"),
):
    delattr(module, name)
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
"""
MODULES = (
    "tdev_models",
    "tdev_models.sync",
    "tdev_models.cli",
    "tdev_models.cli.local",
    "tdev_models.cli.recover",
    "tdev_models.cli.reports",
    "tdev_models.cli.demo.story",
    "tdev_models.migrations.command",
)


def as_on_windows(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _AS_ON_WINDOWS + code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("module", MODULES)
def test_each_module_can_be_imported(module: str) -> None:
    as_on_windows(f"import {module}")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("tdev_models.cli", ["--help"]),
        ("tdev_models.cli", ["recover", "--help"]),
        ("tdev_models.migrations.command", ["--help"]),
    ],
)
def test_help_is_printed(module: str, arguments: list[str]) -> None:
    printed = as_on_windows(
        f"from {module} import main\n"
        f"try: code = main({arguments})\n"
        "except SystemExit as end: code = end.code\n"
        "assert not code, code"
    )
    assert printed.startswith("usage: ")


def test_a_command_runs_and_its_error_is_one_line() -> None:
    printed = as_on_windows(
        "from tdev_models.cli import main\n"
        "sys.stderr = sys.stdout\n"
        "assert main(['local', '--port', '0']) == 64"
    )
    assert printed.splitlines() == ["error: port: 0 is not from 1 to 65535"]


def test_an_engine_runs_and_says_that_it_keeps_nothing(dynoxide: str) -> None:
    printed = as_on_windows(
        "from pathlib import Path\n"
        "from tdev_models.cli.engine import Engine\n"
        "with Engine.start(Path(tempfile.mkdtemp()) / 'data.db') as engine:\n"
        "    print(engine.keeps_data, engine.notice)"
    )
    assert printed.startswith("False nothing is kept: ")
