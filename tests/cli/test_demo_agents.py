"""The demo's agents: what they make of a request is deterministic, differs, and runs."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tdev_models.cli.demo.agents import RUN
from tdev_models.results import AGENTS

TODO = "a todo app with React and a REST API"
BLOG = "Ein Blog: a blog with comments, search and login, Vue.js and a GraphQL API on Node.js, dark"


def run(request: str) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    for name, agent in RUN.items():
        # What a resumed run sees: the outputs as they were stored.
        outputs[name] = json.loads(json.dumps(agent(request, outputs)))
    return outputs


def unpack(outputs: Mapping[str, Any], directory: Path) -> None:
    packed = base64.b64decode(outputs["download"]["base64"])
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(directory)


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """Run the generated server; yield its address."""
    process = subprocess.Popen(
        [sys.executable, "server.py", "0"],
        cwd=directory,
        env={**os.environ, "APP_TOKEN": "open sesame"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            process.kill()


def call(method: str, url: str, body: Any = None, token: str = "open sesame") -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), method=method)
    request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.loads(answer.read())


def test_the_agents_are_the_pipelines_nine_in_its_order() -> None:
    assert tuple(RUN) == AGENTS


def test_the_same_request_always_gives_the_same_bytes() -> None:
    assert run(TODO) == run(TODO)


def test_each_agent_says_something_else_of_another_request() -> None:
    todo, blog = run(TODO), run(BLOG)
    assert [name for name in AGENTS if todo[name] == blog[name]] == []
    assert todo["parser"]["entities"] == {"todos": ["title", "due"]}
    assert list(blog["parser"]["entities"]) == ["posts", "comments"]
    assert (todo["ui_selection"]["framework"], blog["ui_selection"]["framework"]) == (
        "react",
        "vue",
    )
    assert (todo["search"]["api"], blog["search"]["api"]) == ("rest-api", "graphql-api")
    assert blog["match_rate"]["missing"] == ["node"]
    assert todo["match_rate"]["overall"] == 1


@pytest.mark.parametrize(
    "request_text", ["", "할 일 앱", "<script>@TITLE@</script> {} %s \\", "x " * 5000]
)
def test_any_text_becomes_an_application(request_text: str) -> None:
    assert run(request_text)["assembly"]["manifest"]


def test_assembly_refuses_what_does_not_fit_together() -> None:
    outputs = run(TODO)
    files = outputs["generation"]["files"]
    for path, text, problem in (
        ("api.py", "import stores\n", "imports stores"),
        ("app.js", 'import { x } from "./gone.js";\n', "imports gone.js"),
        ("app.js", 'import { createApp } from "vue";\n', "imports vue"),
        ("schema.json", "{", "Expecting"),
    ):
        broken = {**outputs, "generation": {"files": {**files, path: text}}}
        with pytest.raises(ValueError, match=problem):
            RUN["assembly"](TODO, broken)
    with pytest.raises(SyntaxError):
        RUN["assembly"](TODO, {**outputs, "generation": {"files": {"a.py": "def"}}})


def test_the_generated_rest_api_works(tmp_path: Path) -> None:
    unpack(run(TODO), tmp_path)
    with server(tmp_path) as address:
        added = call("POST", f"{address}/api/todos", {"title": "Milk", "due": "today"})
        assert added == {"id": 1, "title": "Milk", "due": "today"}
        assert call("GET", f"{address}/api/todos") == [added]
        assert call("GET", f"{address}/api/todos?q=bread") == []
        with pytest.raises(urllib.error.HTTPError, match="400"):
            call("GET", f"{address}/api/sqlite_master").close()
        with urllib.request.urlopen(f"{address}/app.js", timeout=5) as page:
            assert b"react" in page.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            call("GET", f"{address}/server.py").close()


def test_the_generated_graphql_api_works_for_who_has_the_token(tmp_path: Path) -> None:
    unpack(run(BLOG), tmp_path)
    with server(tmp_path) as address:

        def ask(query: str, **token: str) -> Any:
            return call("POST", f"{address}/graphql", {"query": query}, **token)

        add = 'mutation { add_posts(title: "He said \\"hi\\"", body: "{ x }") { id } }'
        assert ask(add) == {"data": {"add_posts": {"id": 1}}}
        assert ask('{ posts(search: "HI") { title } }') == {
            "data": {"posts": [{"title": 'He said "hi"'}]}
        }
        assert ask("{ comments { id } }") == {"data": {"comments": []}}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask("{ posts { id } }", token="guess")
