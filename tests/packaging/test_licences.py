"""`docs/licences.md` says what an installation brings."""

from __future__ import annotations

from pathlib import Path

from tests import licences

LISTED = Path(__file__).parents[2] / "docs/licences.md"


def test_each_package_is_listed_with_its_licence() -> None:
    unlisted = set(licences.lines()) - set(LISTED.read_text(encoding="utf-8").splitlines())
    assert not unlisted, f"{unlisted}: python -m tests.licences > {LISTED}"


def test_nothing_asks_for_more_than_to_be_named_and_kept_apart() -> None:
    """GPL and AGPL would bind who uses the package; MPL binds its own files alone."""
    assert [line for line in licences.lines() if "GPL" in line and "LGPL" not in line] == []
