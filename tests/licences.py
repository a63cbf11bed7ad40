"""The licences of what an installation brings: `python -m tests.licences > docs/licences.md`."""

from __future__ import annotations

from importlib.metadata import PackageMetadata, distribution

from packaging.requirements import Requirement

EXTRAS = ("", "cli", "web", "kms", "local", "otel")
HEAD = """# Licences of what is installed

This package is under the [MIT licence](../LICENSE) and ships no code of others. `pip install
tdev-models` brings what has no extra beside it; an extra brings what has its name. A test compares
this list with what is installed; `python -m tests.licences > docs/licences.md` renews it.

| package | licence | for |
|---|---|---|"""


def needed(package: str, extra: str) -> set[str]:
    """Return the packages that one asks for with an extra, and what they ask for in turn."""
    names, waiting = set[str](), [(package, extra)]
    while waiting:
        asking, its_extra = waiting.pop()
        for text in distribution(asking).requires or []:
            required = Requirement(text)
            if required.marker and not required.marker.evaluate({"extra": its_extra}):
                continue
            if required.name not in names:
                names.add(required.name)
                waiting += [(required.name, one) for one in required.extras or {""}]
    return {distribution(name).name.lower().replace("_", "-") for name in names}


def licence(metadata: PackageMetadata) -> str:
    """Return the licence as the package's metadata state it: an SPDX expression, or classifiers."""
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    stated = [
        text.rsplit(" :: ", 1)[1]
        for text in metadata.get_all("Classifier") or []
        if text.startswith("License :: OSI Approved :: ")
    ]
    return " or ".join(stated) or str(metadata["License"])


def lines() -> list[str]:
    """Return a line for each package, by name, with the extras that bring it."""
    wanted = dict[str, list[str]]()
    for extra in EXTRAS:
        for name in needed("tdev-models", extra):
            wanted.setdefault(name, []).append(extra)
    return [
        f"| {name} | {licence(distribution(name).metadata)} | "
        f"{'' if '' in extras else ', '.join(f'`{extra}`' for extra in extras)} |"
        for name, extras in sorted(wanted.items())
    ]


if __name__ == "__main__":
    print("\n".join([HEAD, *lines()]))
