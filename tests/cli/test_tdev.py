"""The command `tdev`: its exit codes, and `tdev local`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tdev_models import cli, settings
from tdev_models.cli import engine, main
from tdev_models.sync import get_pipeline_session, save_pipeline_session

COMMANDS = ("demo", "local", "migrate", "metrics", "usage", "agents", "ab")
TDEV = [sys.executable, "-c", "import sys; from tdev_models.cli import main; sys.exit(main())"]


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["demo"], ["local", "--port", "x"], ["local", "extra"]]
)
def test_a_usage_error_exits_with_64(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 64
    assert "usage: tdev" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in printed] == []


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
    assert main(["local", "--data", str(tmp_path / "data.db")]) == 1
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
    unwanted = {"tdev_models.cli", "rich", "moto", "argparse"}
    assert unwanted & set(done.stdout.split()) == set()


@contextmanager
def local(data: Path) -> Iterator[dict[str, str]]:
    """Run `tdev local`; yield what it says to export; end it as a service manager would."""
    process = subprocess.Popen(
        [*TDEV, "local", "--data", str(data)], stdout=subprocess.PIPE, text=True
    )
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
