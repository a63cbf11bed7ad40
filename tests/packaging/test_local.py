"""`pip install 'tdev-models[local]'` and nothing more: a moto that runs, and is not large."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_MEGABYTES = 200

_ROUND_TRIP = """
from tdev_models.sync import get_pipeline_session, track_session
with track_session("s") as session, session.agent("parser", "x" * 100_000) as run:
    run.output = list(range(10_000))
print(get_pipeline_session("s").status)
"""


@pytest.fixture(scope="module")
def venv(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("local") / "venv"
    source = place.parent / "source"  # a copy: what is built leaves files behind
    shutil.copytree(checkout, source, symlinks=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check"]
    tested = place / "constraints.txt"
    pinned = re.findall(r"^[\w.-]+==[^ ;]+", (ROOT / "requirements/run.txt").read_text(), re.M)
    tested.write_text("\n".join(pinned))
    install += ["--constraint", str(tested), f"{source}[local]"]
    subprocess.run([str(place / "bin/python"), *install], check=True)
    return place


@pytest.fixture
def environ(venv: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What leads to a running `tdev local` that found neither dynoxide nor npm."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    alone = {"PATH": str(venv / "bin"), "HOME": str(tmp_path), "TDEV_ENV": "local"}
    with subprocess.Popen(
        [str(venv / "bin/tdev"), "local", "--port", port],
        cwd=tmp_path,
        env=alone,
        stdout=subprocess.PIPE,
        text=True,
    ) as local:
        assert local.stdout
        lines = [local.stdout.readline() for _ in range(8)]
        assert lines[0].startswith("# moto with the tables"), lines
        exports = dict(line.removeprefix("export ").strip().split("=") for line in lines[2:])
        yield {**alone, **exports}
        local.send_signal(signal.SIGTERM)
        assert local.wait(10) == 0


def test_moto_stands_in_with_what_the_extra_brings(venv: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [str(venv / "bin/python"), "-W", "error", "-c", _ROUND_TRIP],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("COMPLETED\n", "")


def test_the_extra_is_not_large(venv: Path) -> None:
    files = (Path(folder) / name for folder, _, names in os.walk(venv) for name in names)
    size = sum(path.lstat().st_size for path in files)
    assert size < MOST_MEGABYTES * 1024 * 1024
