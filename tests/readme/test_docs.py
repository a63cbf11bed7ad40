"""The documents for developers name what there is: modules, attributes, terms, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdev_models.models import TABLES, BaseModel

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
MODULES = sorted(
    path.stem if path.stem != "__init__" else path.parent.name
    for package in (".", "services", "workers", "metrics", "dynamodb", "security")
    for path in (ROOT / "tdev_models" / package).glob("*.py")
)


@pytest.mark.parametrize("module", MODULES)
def test_the_map_has_every_module(module: str) -> None:
    drawn = ARCHITECTURE.partition("## The map")[2].partition("\n## ")[0]
    assert re.search(rf"\b{module}\b", drawn), f"draw {module} in the map of docs/architecture.md"


@pytest.mark.parametrize("model", TABLES)
def test_every_attribute_is_explained(model: type[BaseModel]) -> None:
    table = model.Meta.table  # type: ignore[attr-defined]
    section = ARCHITECTURE.partition(f"### {table}\n")[2].partition("\n##")[0]
    stored = {attribute.attr_name for attribute in model.get_attributes().values()}
    missing = {name for name in stored if not re.search(rf"\b{name}\b", section)}
    assert not missing, f"say what {missing} of {table} is for, in docs/architecture.md"


def test_every_index_is_explained() -> None:
    for model in TABLES:
        table = model.Meta.table  # type: ignore[attr-defined]
        section = ARCHITECTURE.partition(f"### {table}\n")[2].partition("\n##")[0]
        for index in model._indexes.values():
            keys = ", ".join(f"`{key.attr_name}`" for key in model.key_attributes(index) if key)
            assert f"`{index.Meta.index_name}` ({keys})" in section, (
                f"name `{index.Meta.index_name}` ({keys}) of {table} in docs/architecture.md"
            )


def test_the_glossary_has_the_terms_of_the_architecture_in_order() -> None:
    terms = re.findall(r"\n\| \*\*(.+?)\*\* \|", GLOSSARY)
    assert terms == sorted(terms)
    used = set(re.findall(r"(?<!\*)\*([a-z' ]+)\*(?!\*)", ARCHITECTURE)) - {"italics"}
    assert used
    assert {term.removesuffix("s") for term in used} <= set(terms), "explain it in the glossary"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_path_leads_somewhere(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    paths = re.findall(r"`((?:tdev_models|tests|docs|benchmarks)/[\w./-]+)`", text)
    gone = [link for link in links if not (document.parent / link).exists()]
    gone += [path for path in paths if not (ROOT / path).exists()]
    assert not gone


def test_each_attack_has_a_test_that_is_there() -> None:
    rows = re.findall(r"\n\| (?!attack|-)(.+)", (ROOT / "docs/attacks.md").read_text())
    named = [re.search(r"`(tests/[\w/]+\.py)::(\w+)` \|$", row) for row in rows]
    gone = [
        row
        for row, test in zip(rows, named, strict=True)
        if not (test and f"def {test[2]}(" in (ROOT / test[1]).read_text())
    ]
    assert rows
    assert not gone
