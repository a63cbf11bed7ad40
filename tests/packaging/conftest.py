"""The checkout without what is made in it, and what is built of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_THE_PROJECT = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".cache",
    ".hypothesis",
)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "tdev"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=NOT_THE_PROJECT)
    return copy


@pytest.fixture(scope="session")
def sdist(checkout: Path) -> Path:
    """The sdist unpacked."""
    out = checkout.parent / "dist"
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(out), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        members.extractall(out, filter="data")
    return out / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, where `tdev_models/migrations` is a link, and one of the sdist."""
    out = tmp_path_factory.mktemp("dist")
    source = out / "source"  # a copy: what is built leaves files behind
    shutil.copytree(request.getfixturevalue(request.param), source, symlinks=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(source)],
        check=True,
    )
    (path,) = out.glob("*.whl")
    return path
