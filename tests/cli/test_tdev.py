"""The command `tdev`: its exit codes, and `tdev local`."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

import tdev_models
from tdev_models import Settings, cli, settings
from tdev_models.cli import codes, engine, main
from tdev_models.cli.commands import COMMANDS, FORWARDED, parser
from tdev_models.cli.local_state import LocalState
from tdev_models.dynamodb import cursors
from tdev_models.errors import (
    AccessDenied,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    NotFound,
    Throttled,
)
from tdev_models.sync import (
    get_pipeline_session,
    list_pipeline_sessions,
    save_pipeline_session,
)

TDEV = [sys.executable, "-c", "import sys; from tdev_models.cli import main; sys.exit(main())"]


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["show"], ["local", "--port", "x"], ["local", "extra"], ["abandon", "s"]],
)
def test_a_usage_error_exits_with_64(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 64
    assert "usage: tdev" in capsys.readouterr().err


def test_a_cursor_is_never_taken_for_an_option() -> None:
    whole = parser()
    for number in range(300):
        cursor = cursors.encode(("list_workers", number), {})
        assert whole.parse_args(["workers", "--cursor", cursor]).cursor == cursor


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command_and_exit_code_in_80_columns(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert [name for name in (*COMMANDS, *FORWARDED) if f"\n    {name}" not in printed] == []
    assert codes.TEXT in printed
    assert [line for line in printed.splitlines() if len(line) > 80] == []


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tdev-models {tdev_models.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_an_example_that_parses(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > 80] == []
    command = COMMANDS[name]
    assert f"example:\n  {command.example}\n" in printed
    assert "--json" in printed or name == "completion"
    assert "[TDEV_ENV]" in printed or not command.reaches_store
    if name not in ("local", "completion"):  # a command of its own, and one for a shell
        parser().parse_args(shlex.split(command.example)[1:])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), 4),
        (LeaseHeld("x"), 3),
        (InvalidTransition("x", "ACTIVE", "FAILED"), 3),
        (Throttled("x"), 5),
        (InvalidRequest("x", "y"), 64),
        (AccessDenied("x"), 1),
        (OSError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_expected_error_has_its_exit_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(options: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_loaded", lambda runs: fails)
    assert main(["workers"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == (code != 130)


@pytest.mark.parametrize(
    "command",
    [
        [*TDEV, "sessions", "--limit", "50", "--json"],
        [*TDEV, "sessions", "--limit", "50"],
        [*TDEV, "migrate", "plan", "--set", "like=dev"],
        [sys.executable, "-m", "tdev_models.migrations", "export", "--set", "like=prod"],
    ],
)
def test_a_reader_that_has_gone_is_no_error(strict_store: Settings, command: list[str]) -> None:
    for number in range(50 * ("sessions" in command)):
        save_pipeline_session(session_id=f"{'s' * 1500}{number}")
    environ = {
        **os.environ,
        "TDEV_ENV": strict_store.environment,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_DYNAMODB": str(strict_store.endpoint),
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as process:
        assert process.stdout
        assert process.stderr
        if "sessions" in command:
            process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""


def test_warnings_hold_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    assert logging.lastResort is not None
    record = logging.makeLogRecord({"msg": "session %s", "args": ("s\x1b[2J",)})
    assert logging.lastResort.format(record) == "session s\ufffd[2J"


def test_what_nohup_ignores_stays_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["config"]) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "failures" in printed
    assert "--since" in printed
    assert "--backfill-units" in printed  # of `migrate`, which parses its own arguments
    assert "rekey" in printed.split("iam", 1)[1]


def test_migrate_gets_its_arguments_and_gives_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def command(argv: list[str], prog: str) -> int:
        assert (argv, prog) == (["--help", "plan", "--env", "dev"], "tdev migrate")
        return 2

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=command))
    assert main(["migrate", "--help", "plan", "--env", "dev"]) == 2


def test_an_error_is_one_line_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert main(["local", "--data", str(tmp_path / "data.db"), "--port", free_port()]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: no local engine: ")
    assert printed.count("\n") == 1


def test_without_rich_the_demo_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoRich:
        @staticmethod
        def find_spec(name: str, *rest: object) -> None:
            if name == "rich":
                raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(sys, "meta_path", [NoRich, *sys.meta_path])
    for name in [*sys.modules]:
        if name == "tdev_models.cli.demo.story" or name.partition(".")[0] == "rich":
            monkeypatch.delitem(sys.modules, name)
    assert main(["demo", "a todo app"]) == 1
    assert "pip install 'tdev-models[cli]'" in capsys.readouterr().err


def test_importing_the_package_imports_no_command() -> None:
    program = "import sys, tdev_models; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    unwanted = {"tdev_models.cli", "rich", "rich_argparse", "shtab", "moto", "argparse"}
    assert unwanted & set(done.stdout.split()) == set()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@contextmanager
def local(data: Path, *more: str) -> Iterator[dict[str, str]]:
    """Run `tdev local`; yield what it says to export; end it as a service manager would."""
    arguments = ["--data", str(data), "--port", free_port(), *more]
    process = subprocess.Popen([*TDEV, "local", *arguments], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            printed = "".join(iter(process.stdout.readline, "# Ctrl-C ends it\n"))
            yield dict(re.findall(r"^export (\w+)=(.*)$", printed, re.M)) | {"printed": printed}
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_local_serves_the_tables_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (["saved"], []):
        with local(tmp_path / "local.db") as exported:
            for name in ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                monkeypatch.setenv(name, exported[name])
            with settings.use(endpoint=exported["AWS_ENDPOINT_URL_DYNAMODB"]):
                for session_id in given:
                    save_pipeline_session(session_id=session_id)
                if "nothing is kept" in exported["printed"]:
                    pytest.skip("moto stands in")
                assert get_pipeline_session("saved").status == "ACTIVE"


def test_local_exports_what_names_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDEV_ENV", "staging")
    monkeypatch.setenv("TDEV_TABLE_PREFIX", "mine")
    with local(tmp_path / "local.db") as exported:
        assert (exported["TDEV_ENV"], exported["TDEV_TABLE_PREFIX"]) == ("staging", "mine")


def test_local_says_whether_it_runs_and_ends(tmp_path: Path) -> None:
    def run(action: str) -> tuple[int, dict[str, object]]:
        done = subprocess.run(
            [*TDEV, "local", action, "--data", str(tmp_path / "local.db"), "--json"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    assert run("status") == (1, {"running": False})
    assert run("stop") == (0, {"stopped": False})
    process = subprocess.Popen(
        [*TDEV, "local", "--data", str(tmp_path / "local.db"), "--port", free_port(), "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        started = json.loads(process.stdout.readline())
        assert started["environ"]["AWS_DEFAULT_REGION"] == "us-east-1"
        code, status = run("status")
        assert (code, status["pid"], status["endpoint"]) == (0, process.pid, started["endpoint"])
        assert run("stop") == (0, {"stopped": True})
        assert process.wait(10) == 0
    assert run("status") == (1, {"running": False})


def test_local_names_commands_about_the_same_data(tmp_path: Path) -> None:
    data = tmp_path / "its own.db"

    def told(*arguments: str) -> list[str]:
        done = subprocess.run(
            [*TDEV, "local", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        (command,) = re.findall(r"'tdev (local.*)' (?:starts|ends)", done.stdout)
        return shlex.split(command)

    assert told("status", "--data", str(data)) == ["local", "--data", str(data)]
    with local(data):
        assert told("status", "--data", str(data)) == ["local", "stop", "--data", str(data)]


def test_the_engine_that_a_killed_local_left_behind_is_found_and_ended(tmp_path: Path) -> None:
    data = tmp_path / "local.db"
    process = subprocess.Popen(
        [*TDEV, "local", "--data", str(data), "--port", free_port(), "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        json.loads(process.stdout.readline())
        process.kill()
        process.wait(10)
    left = LocalState(data).running()
    if left is None:
        pytest.skip("moto stands in, and holds no lock")
    assert left["pid"] != process.pid
    assert main(["local", "stop", "--data", str(data)]) == 0
    assert LocalState(data).running() is None


PROGRAM = """
import sys
from tdev_models.sync import get_pipeline_session, save_pipeline_session
save_pipeline_session(session_id=sys.argv[1])
print(get_pipeline_session(sys.argv[1]).status)
sys.exit(7)
"""


def test_local_runs_a_command_in_an_engine_of_its_own_or_in_the_one_that_runs(
    tmp_path: Path,
) -> None:
    def run(name: str, *program: str) -> subprocess.CompletedProcess[str]:
        data = ["--data", str(tmp_path / "local.db"), "--port", free_port()]
        return subprocess.run(
            [*TDEV, "local", *data, "--", *program, name],
            capture_output=True,
            text=True,
            timeout=60,
        )

    alone = run("alone", sys.executable, "-c", PROGRAM)
    assert (alone.returncode, alone.stdout, alone.stderr) == (7, "ACTIVE\n", "")
    with local(tmp_path / "local.db") as exported:
        beside = run("beside", sys.executable, "-c", PROGRAM)
        assert (beside.returncode, beside.stdout, beside.stderr) == (7, "ACTIVE\n", "")
        with settings.use(endpoint=exported["AWS_ENDPOINT_URL_DYNAMODB"], region="us-east-1"):
            assert [one.session_id for one in list_pipeline_sessions(status="ACTIVE")] == [
                "beside",
                "alone",
            ]
    nothing = run("x", str(tmp_path / "nowhere"))
    assert nothing.returncode == 64
    assert nothing.stderr.startswith("error: command: ")
