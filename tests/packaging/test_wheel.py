"""What is published, built from a clean copy and used outside the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from configparser import ConfigParser
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
HOME = "https://github.com/t-developer/tdev-models"


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
    source |= {
        str(path.relative_to(ROOT))
        for kind in ("templates", "static")
        for path in (ROOT / "tdev_models" / "web" / kind).iterdir()
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
        "{'rich', 'moto', 'boto3', 'flask', 'aws_encryption_sdk', 'asyncio', 'tests', 'argparse', "
        "'starlette', 'jinja2', 'uvicorn'})",
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("set()", "{'argparse'}")


def needed(name: str, extras: Iterable[str] = ("",)) -> set[str]:
    """Return the distributions that one needs, itself too."""
    found: set[str] = {canonicalize_name(name)}
    for text in distribution(name).requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": one}) for one in extras):
            found |= needed(wanted.name, wanted.extras or ("",))
    return found


def test_the_extra_web_adds_at_most_10_mb() -> None:
    added = needed("tdev-models", ["web"]) - needed("tdev-models")
    assert {"starlette", "jinja2", "uvicorn"} <= added
    files = [file for name in added for file in distribution(name).files or ()]
    size = sum(
        Path(str(file.locate())).stat().st_size
        for file in files
        if file.suffix != ".pyc" and Path(str(file.locate())).exists()
    )
    assert 1e6 < size <= 10e6, size


def test_an_sdist_has_what_the_checkout_has(checkout: Path, sdist: Path) -> None:
    wanted = {path.relative_to(checkout) for path in checkout.rglob("*") if path.is_file()}
    made = {path.relative_to(sdist) for path in sdist.rglob("*") if path.is_file()}
    assert wanted - made == set()
    ours = {path for path in made - wanted if not path.match("*.egg-info/*")}
    migrations = {
        Path("tdev_models") / path
        for path in wanted
        if path.match("migrations/*.py") and len(path.parts) == 2
    }
    assert ours - migrations <= {Path("PKG-INFO")}


def test_the_tests_of_an_unpacked_sdist_run(sdist: Path) -> None:
    check = "import tdev_models, sys; print(tdev_models.__file__)"
    used = subprocess.run(
        [sys.executable, "-c", check], cwd=sdist, check=True, capture_output=True, text=True
    )
    assert used.stdout.strip() == str(sdist / "tdev_models/__init__.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/unit"],
        cwd=sdist,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_metadata_name_licence_author_and_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        fields = message_from_bytes(archive.read(name))
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert (fields["Author"], fields["License-Expression"]) == ("T-Developer", "MIT")
    assert fields["License-File"] == "LICENSE"
    assert len(licences) == 1
    assert fields["Keywords"]
    pages = dict(page.split(", ") for page in fields.get_all("Project-URL", []))
    assert fields["Home-page"] == HOME
    assert pages.keys() == {"Documentation", "Changelog", "Issues"}


def test_links_of_the_long_description_lead_somewhere_from_any_page() -> None:
    """PyPI knows no other files, and gives headings no ids."""
    text = (ROOT / "README.md").read_text()
    headings = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    links = re.findall(r"\]\((.*?)\)", text)
    assert links
    for link in links:
        assert link.startswith(HOME), link
        page, _, heading = link.removeprefix(HOME).partition("#")
        assert (
            heading in headings
            if heading
            else (ROOT / re.sub("^/(blob|raw)/main/", "", page)).exists()
        ), link


def test_the_floor_that_is_tested_is_the_floor_that_is_required() -> None:
    (floor,) = re.findall(r"^FLOOR := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    required = re.findall(r"botocore>=([\d.]+)", (ROOT / "setup.cfg").read_text())
    assert floor.removesuffix(".0") in required


def test_every_extra_is_bounded() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    groups = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    for requirement in "\n".join(groups).split("\n"):
        assert not requirement or (">=" in requirement and ",<" in requirement), requirement
