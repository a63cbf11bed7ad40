"""The nine agents of the demo: small and deterministic, and what they make is an application.

Each takes the request and the outputs of the agents before it, and returns what JSON can hold.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from tdev_models.cli.demo import templates
from tdev_models.results import AGENTS

Output: TypeAlias = dict[str, Any]
Agent: TypeAlias = Callable[[str, Mapping[str, Any]], Output]


class Component(NamedTuple):
    """One part that an application may have: its place, what it provides, and its files."""

    slot: str
    provides: frozenset[str]
    files: Mapping[str, str]


CATALOGUE = {
    "react-pages": Component(
        "ui", frozenset({"react", "page", "search", "dark"}), {"app.js": templates.REACT_APP}
    ),
    "vue-pages": Component(
        "ui", frozenset({"vue", "page", "search", "dark"}), {"app.js": templates.VUE_APP}
    ),
    "rest-api": Component(
        "api",
        frozenset({"rest", "auth", "search"}),
        {"api.py": templates.REST_API, "client.js": templates.CLIENT + templates.REST_CALLS},
    ),
    "graphql-api": Component(
        "api",
        frozenset({"graphql", "auth", "search"}),
        {"api.py": templates.GRAPHQL_API, "client.js": templates.CLIENT + templates.GRAPHQL_CALLS},
    ),
    "python-server": Component(
        "server", frozenset({"python", "auth"}), {"server.py": templates.SERVER}
    ),
    "sqlite-store": Component(
        "store", frozenset({"database", "search"}), {"store.py": templates.STORE}
    ),
}

LIBRARIES = {
    "react": {
        "react": "https://esm.sh/react@19",
        "react-dom/client": "https://esm.sh/react-dom@19/client",
    },
    "vue": {"vue": "https://esm.sh/vue@3/dist/vue.esm-browser.prod.js"},
}

# What the words of a request ask for. No component provides Node, Docker and the like.
FEATURES = {
    "graphql": "graphql|gql",
    "rest": "rest|restful",
    "auth": "auth|authentication|login|password|users?|accounts?|secure",
    "search": "search|find|filter|searchable",
    "dark": "dark|night",
    "database": "database|db|sqlite|persistent|saved?",
    "node": "node|nodejs|express",
    "mobile": "mobile|ios|android",
    "docker": "docker|kubernetes",
    "payment": "payments?|checkout|stripe",
    "realtime": "realtime|websockets?|live",
}

ENTITIES = {
    "todos": ("todos?|tasks?|checklist", ["title", "due"]),
    "posts": ("blogs?|posts?|articles?|news", ["title", "body"]),
    "comments": ("comments?|reviews?|discussion", ["author", "body"]),
    "products": ("shop|stores?|products?|catalog(?:ue)?|inventory", ["name", "price"]),
    "messages": ("chats?|messages?|messenger|forum", ["sender", "body"]),
    "notes": ("notes?|notebook|wiki|journal|diary", ["title", "body"]),
    "recipes": ("recipes?|cooking|cookbook", ["name", "ingredients"]),
    "events": ("events?|calendar|bookings?|meetings?", ["title", "date"]),
    "contacts": ("contacts?|crm|customers?", ["name", "email"]),
    "expenses": ("expenses?|budget|invoices?", ["purpose", "amount"]),
}


# How a file of each kind names another file, or a library, that it needs.
IMPORTS = {
    ".py": r"^(?:from|import) (\w+)",
    ".js": r'^import .* from "(?:\./)?(.+)";',
    ".html": r'src="(.+)"',
}


def nl_input(request: str, outputs: Mapping[str, Any]) -> Output:
    """Normalise the text and split it into words."""
    text = " ".join(unicodedata.normalize("NFKC", request).split())
    words = re.findall(r"\w+", re.sub(r"(?<=\w)\.(?=js\b)", "", text.lower()))
    return {"text": text, "words": words}


def ui_selection(request: str, outputs: Mapping[str, Any]) -> Output:
    """Choose the UI framework that the text names first, else React."""
    words = [word.removesuffix("js") for word in outputs["nl_input"]["words"]]
    named = [word for word in words if word in LIBRARIES]
    return {"framework": named[0] if named else "react", "named": bool(named)}


def parser(request: str, outputs: Mapping[str, Any]) -> Output:
    """Find what the application is about and what it must do."""
    words = outputs["nl_input"]["words"]
    asked = {name for name, pattern in FEATURES.items() if _mentions(pattern, words)}
    if "graphql" not in asked:
        asked.add("rest")
    entities = {
        name: fields for name, (words_, fields) in ENTITIES.items() if _mentions(words_, words)
    }
    wanted = {"page", "python", "database", outputs["ui_selection"]["framework"]} | asked
    return {"entities": entities or {"items": ["title"]}, "features": sorted(wanted)}


def component_decision(request: str, outputs: Mapping[str, Any]) -> Output:
    """List, for each place of the application, the components that come into question."""
    wanted = set(outputs["parser"]["features"])
    slots: dict[str, list[str]] = {}
    for name, component in CATALOGUE.items():
        if component.provides & wanted:
            slots.setdefault(component.slot, []).append(name)
    return slots


def match_rate(request: str, outputs: Mapping[str, Any]) -> Output:
    """Score each candidate by the share of the wanted features that it provides."""
    wanted = set(outputs["parser"]["features"])
    names = [name for slot in outputs["component_decision"].values() for name in slot]
    rates = {name: round(len(CATALOGUE[name].provides & wanted) / len(wanted), 3) for name in names}
    missing = wanted.difference(*(CATALOGUE[name].provides for name in names))
    return {
        "rates": rates,
        "overall": round(1 - len(missing) / len(wanted), 3),
        "missing": sorted(missing),
    }


def search(request: str, outputs: Mapping[str, Any]) -> Output:
    """Pick the best candidate of each place; the catalogue's first among equals."""
    rates = outputs["match_rate"]["rates"]
    return {
        slot: max(names, key=rates.__getitem__)
        for slot, names in outputs["component_decision"].items()
    }


def generation(request: str, outputs: Mapping[str, Any]) -> Output:
    """Write the files of the application: path to text."""
    parsed, chosen = outputs["parser"], outputs["search"].values()
    libraries = LIBRARIES[outputs["ui_selection"]["framework"]]
    dark = "dark" in parsed["features"]
    title = " and ".join(parsed["entities"]).capitalize()
    schema = {
        "entities": parsed["entities"],
        "search": "search" in parsed["features"],
        "auth": "auth" in parsed["features"],
    }
    files = {path: text for name in chosen for path, text in CATALOGUE[name].files.items()}
    files["schema.json"] = json.dumps(schema, indent=2) + "\n"
    files["index.html"] = _filled(
        templates.PAGE,
        title=html.escape(title),
        back="#111" if dark else "#fff",
        fore="#eee" if dark else "#111",
        imports=json.dumps(libraries),
    )
    files["README.md"] = _filled(
        templates.README,
        title=title,
        request=outputs["nl_input"]["text"],
        parts=", ".join(chosen),
        libraries=", ".join(libraries.values()),
    )
    return {"files": dict(sorted(files.items()))}


def assembly(request: str, outputs: Mapping[str, Any]) -> Output:
    """Check that the files fit together, and list them with size and checksum.

    Raises:
        ValueError: a JSON file does not parse, or a file imports what is not there.
        SyntaxError: a Python file does not compile.
    """
    files: dict[str, str] = outputs["generation"]["files"]
    known = {*files, *(path.removesuffix(".py") for path in files), *sys.stdlib_module_names}
    known.update(LIBRARIES[outputs["ui_selection"]["framework"]])
    imports = 0
    for path, text in files.items():
        kind = Path(path).suffix
        if kind == ".json":
            json.loads(text)
        elif kind == ".py":
            compile(text, path, "exec")
        for target in re.findall(IMPORTS[kind], text, re.M) if kind in IMPORTS else []:
            imports += 1
            if target not in known:
                raise ValueError(f"{path} imports {target}, which is not there")
    manifest = {
        path: {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for path, text in files.items()
    }
    return {"manifest": manifest, "imports_checked": imports}


def download(request: str, outputs: Mapping[str, Any]) -> Output:
    """Pack the files; the same files always make the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in outputs["generation"]["files"].items():
            entry = zipfile.ZipInfo(path)  # dated 1980
            archive.writestr(entry, text, zipfile.ZIP_DEFLATED)
    content = packed.getvalue()
    return {
        "file_name": "-".join([*outputs["parser"]["entities"], "app.zip"]),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "base64": base64.b64encode(content).decode(),
    }


RUN: dict[str, Agent] = {name: globals()[name] for name in AGENTS}
"""The agents in the order in which the pipeline runs them."""


def _mentions(pattern: str, words: list[str]) -> bool:
    return any(re.fullmatch(pattern, word) for word in words)


def _filled(template: str, **values: str) -> str:
    return re.sub("@([A-Z]+)@", lambda match: values[match[1].lower()], template)
