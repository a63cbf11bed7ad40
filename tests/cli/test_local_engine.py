"""The embedded engine: where its binary comes from, and how it runs and ends."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tdev_models.cli import engine
from tdev_models.cli.engine import Engine
from tdev_models.errors import ConfigurationError

# Stands for the binary: same arguments, answers on its port, may refuse to start.
DYNOXIDE = f"""#!{sys.executable}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "broken" in " ".join(sys.argv):
    sys.exit("error: first line\\nerror: not a database")
HTTPServer(("127.0.0.1", int(sys.argv[3])), BaseHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole PATH; the cache is empty."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TDEV_DYNOXIDE", raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return directory


@pytest.fixture
def dynoxide(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that TDEV_DYNOXIDE names."""
    own = program(path.parent / "own", DYNOXIDE)
    monkeypatch.setenv("TDEV_DYNOXIDE", str(own))
    return own


def program(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o755)
    return file


def npm(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an npm on PATH that packs the stand-in; return the file that counts its calls."""
    binary = program(path.parent / "binary", DYNOXIDE)
    tarball, calls = path.parent / "release.tgz", path.parent / "calls"
    with tarfile.open(tarball, "w:gz") as archive:
        archive.add(binary, "package/dynoxide")
        archive.add(binary, "package/other")
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    monkeypatch.setattr(engine, "SHA512", digest)
    monkeypatch.setattr(engine, "SHA256", hashlib.sha256(binary.read_bytes()).hexdigest())
    program(
        path / "npm",
        f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("cp", path="/bin:/usr/bin")} '
        f"{tarball} dynoxide.tgz\n",
    )
    return calls


def answers(endpoint: str) -> bool:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def test_the_engine_of_this_machine_answers_and_ends_with_the_block() -> None:
    with Engine.start() as running:
        assert answers(running.endpoint)
        assert not running.keeps_data
    assert not answers(running.endpoint)


def test_a_dynoxide_of_ones_own_comes_first(
    path: Path, dynoxide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = npm(path, monkeypatch)
    with Engine.start() as running:
        assert running.name == "dynoxide"
        assert not running.notice
    assert not calls.exists()


def test_npm_fetches_the_pinned_release_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = npm(path, monkeypatch)
    for _ in range(2):
        with Engine.start() as running:
            assert running.name == "dynoxide"
    assert calls.read_text() == "pack --loglevel=error @dynoxide/linux-x64@1.2.1\n"
    cached = engine.cache_directory() / "dynoxide-1.2.1"
    assert [file.name for file in cached.iterdir()] == ["dynoxide"]


def test_a_cached_program_that_was_changed_is_fetched_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, witness = npm(path, monkeypatch), path.parent / "witness"
    with Engine.start():
        pass
    cached = engine.cache_directory() / "dynoxide-1.2.1" / "dynoxide"
    program(cached, f"#!/bin/sh\necho run > {witness}\n")
    with Engine.start() as running:
        assert running.name == "dynoxide"
    assert len(calls.read_text().splitlines()) == 2
    program(cached, f"#!/bin/sh\necho run > {witness}\n")
    (path / "npm").unlink()
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="dynoxide is not the pinned one"):
        Engine.start()
    assert not witness.exists()


def test_a_dynoxide_on_path_is_not_run_for_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(path / "dynoxide", f"#!/bin/sh\necho run > {path.parent / 'witness'}\n")
    npm(path, monkeypatch)
    with Engine.start() as running:
        assert running.name == "dynoxide"
    assert not (path.parent / "witness").exists()


def test_another_tarball_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm(path, monkeypatch)
    monkeypatch.setattr(engine, "SHA512", "expected")
    with pytest.raises(ConfigurationError, match="not expected: not run"):
        Engine.start()
    assert not list((engine.cache_directory() / "dynoxide-1.2.1").iterdir())


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "#!/bin/sh\necho npm error code E404 >&2\necho more >&2\nexit 1\n",
            r"npm could not fetch dynoxide \(npm error code E404\)",
        ),
        (
            f"#!{sys.executable}\nimport time\ntime.sleep(30)\n",
            "did not bring dynoxide within 0.2 s",
        ),
    ],
)
def test_without_the_release_or_moto_both_remedies_are_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    program(path / "npm", script)
    monkeypatch.setattr(engine, "NPM_SECONDS", 0.2 if "sleep" in script else 120)
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=why) as refused:
        Engine.start()
    assert "npm" in str(refused.value)
    assert "tdev-models[local]" in str(refused.value)


def test_moto_stands_in_and_says_that_nothing_is_kept(path: Path, tmp_path: Path) -> None:
    with Engine.start(tmp_path / "data.db") as running:
        assert (running.name, running.keeps_data) == ("moto", False)
        assert "nothing is kept" in running.notice
        assert answers(running.endpoint)


def test_a_second_engine_on_the_same_file_is_refused_while_the_first_lives(
    dynoxide: Path, tmp_path: Path
) -> None:
    data = tmp_path / "new" / "data.db"
    with Engine.start(data) as running:
        assert running.keeps_data
        with pytest.raises(ConfigurationError, match="another engine is running on"):
            Engine.start(data)
        running.detach()
    try:
        with pytest.raises(ConfigurationError, match="another engine is running on"):
            Engine.start(data)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        os.waitpid(running.pid, 0)
    with Engine.start(data):
        pass


def test_a_detached_engine_outlives_its_starter(dynoxide: Path) -> None:
    program_text = (
        "from tdev_models.cli.engine import Engine\n"
        "with Engine.start() as running:\n"
        "    running.detach()\n"
        "    print(running.pid, running.endpoint)\n"
    )
    starter = subprocess.run(
        [sys.executable, "-c", program_text], capture_output=True, text=True, timeout=30, check=True
    )
    pid, endpoint = starter.stdout.split()
    assert answers(endpoint)
    os.kill(int(pid), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while answers(endpoint):
        assert time.monotonic() < deadline


def test_a_port_in_use_is_refused(dynoxide: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ConfigurationError, match="in use; choose another with --port"),
    ):
        Engine.start(port=other.getsockname()[1])


def test_the_engines_last_words_are_the_error(dynoxide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="dynoxide did not start: error: not a database"):
        Engine.start(tmp_path / "broken.db")


def test_an_engine_that_ignores_sigterm_is_killed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = DYNOXIDE.replace("import", "import signal; signal.signal(15, signal.SIG_IGN)\nimport", 1)
    monkeypatch.setenv("TDEV_DYNOXIDE", str(program(path / "dynoxide", deaf)))
    monkeypatch.setattr(engine, "END_SECONDS", 0.2)
    with Engine.start() as running:
        assert answers(running.endpoint)
    assert not answers(running.endpoint)
