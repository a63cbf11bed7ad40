"""The wheel, built from a clean copy and used outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "tdev"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out), str(copy)],
        check=True,
    )
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as pip would install it."""
    place = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where only the wheel, and not the checkout, has the package."""
    start = f"import sys; sys.path.insert(0, {str(site)!r}); "
    start += "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]; "
    code, *rest = arguments
    return subprocess.run(
        [sys.executable, "-I", "-c", start + code, *rest],
        cwd=site,
        text=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "HOME": str(site)},
    )


def test_the_wheel_has_one_top_level_name_and_all_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"tdev_models"}
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tdev_models").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    source |= {
        f"tdev_models/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*.py")
    }
    assert names == source | {"tdev_models/py.typed"}


def test_migrations_load_under_their_one_name(site: Path) -> None:
    done = run(
        site, "import tdev_models.migrations as m; print(m.__file__, 'migrations' in sys.modules)"
    )
    assert done.stderr == ""
    assert done.stdout.split() == [str(site / "tdev_models/migrations/__init__.py"), "False"]


def test_the_core_imports_no_extra(site: Path) -> None:
    done = run(
        site,
        "import tdev_models, tdev_models.sync; "
        "print({name.split('.')[0] for name in sys.modules} & "
        "{'rich', 'moto', 'boto3', 'flask', 'asyncio', 'tests', 'argparse'} )",
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("set()", "{'argparse'}")


def test_every_extra_is_bounded() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    for requirement in "\n".join(groups).split("\n"):
        assert not requirement or (">=" in requirement and ",<" in requirement), requirement
