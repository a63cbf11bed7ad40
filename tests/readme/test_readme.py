"""The README says what is so: its examples run, its tables are the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import tdev_models
from tdev_models import Settings, errors, sync
from tdev_models.models import TABLES

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def run(store: Settings, code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "TDEV_ENV": store.environment,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_DYNAMODB": str(store.endpoint),
        },
    ).stdout


def test_every_example_runs_as_it_stands(store: Settings) -> None:
    orchestrator, worker, workers, on_call, last_night, calls, traced, experiment = EXAMPLES
    assert len([line for line in orchestrator.splitlines() if line.strip()]) == 12
    assert "status='COMPLETED'" in run(store, orchestrator)
    sync.save_pipeline_session(session_id="s", status="FAILED", error_message="why")
    sync.update_agent_execution(
        execution_id="s-generation", status="FAILED", error_message="no model"
    )
    assert run(store, on_call) == "s FAILED None why\ns-generation no model\n"
    assert "completed=['s']" in run(store, worker)
    assert sync.get_pipeline_session("s").status == "COMPLETED"
    assert run(store, workers) == ""  # who has nothing to run has said so
    with sync.track_session("runs"):
        assert re.fullmatch(r"\S+:\d+:\w+ ALIVE \d None\n", run(store, workers))
    assert run(store, last_night).startswith("s generation None True\n")
    assert run(store, calls) == "COMPLETED 36 0.05\n"
    assert run(store, traced) == ""
    verdict = run(store, experiment)
    assert re.match(r"(new takes|Success|Values|Not enough data to tell) ", verdict), verdict


def section(title: str) -> str:
    match = re.search(rf"\n## {title}\n(.*?)(\n## |\Z)", README, re.S)
    assert match
    return match[1]


def test_every_table_and_index_is_listed() -> None:
    rows = {
        match[1]: match[2] for match in re.finditer(r"\n\| `([\w-]+)` \|(.*)", section("Tables"))
    }
    tables = {model.Meta.table for model in TABLES}  # type: ignore[attr-defined]
    assert set(rows) == tables, "list every table in README.md, under Tables"
    for model in TABLES:
        listed = set(re.findall(r"`([\w-]+-index)`", rows[model.Meta.table]))  # type: ignore[attr-defined]
        assert listed == set(model._indexes), f"list {model.Meta.table}'s indexes in README.md"  # type: ignore[attr-defined]


def test_every_error_is_listed() -> None:
    listed = set(re.findall(r"\n\| `(\w+)` \|", section("Errors")))
    public = {
        name
        for name in tdev_models.__all__
        if isinstance(kind := getattr(tdev_models, name), type)
        and issubclass(kind, errors.TdevError)
    }
    assert listed == public - {"TdevError"}, "list every error in README.md, under Errors"


def test_every_variable_is_listed() -> None:
    rows = "\n".join(re.findall(r"^\|.*", section("Environment"), re.MULTILINE))
    listed = set(re.findall(r"`((?:TDEV|AWS)_\w+)`", rows))
    read = set(re.findall(r"(?:TDEV|AWS)_\w+", Settings.from_env.__doc__ or ""))
    assert listed == read, "README.md, under Environment, is to list what Settings.from_env reads"
