"""A public call is in every place where it must be, under the same name."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tdev_models as tdev
from tdev_models import calls, sync
from tests.chaos import test_sweep as sweep

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tdev_models"
README = (ROOT / "README.md").read_text()
TYPING = (ROOT / "tests/typing/test_types.py").read_text()
SERVICES = sorted(
    path for room in ("services", "metrics") for path in (PACKAGE / room).glob("*.py")
)
SEND_NOTHING = {"assign_variant", "flush_metrics", "handle_sigterm"}


def bound(module: ModuleType) -> set[str]:
    """Return the functions of services and metrics that a module offers."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__.startswith(("tdev_models.services.", "tdev_models.metrics."))
    }


def exported(module: ModuleType) -> set[str]:
    """Return the functions that `from module import *` offers, without the settings'."""
    names = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    return names - {"configure"}


def only_in_services() -> set[str]:
    """Return the functions that take a client and that no other of the package calls."""
    used: set[str] = set()
    takes_client: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        if path not in (PACKAGE / "calls.py", PACKAGE / "sync.py"):
            used |= {node.id for node in nodes if isinstance(node, ast.Name)}
            used |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        if path in SERVICES:
            takes_client |= {
                node.name
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and [one.arg for one in (*node.args.posonlyargs, *node.args.args)][:1] == ["client"]
            }
    return {name for name in takes_client - used if not name.startswith("_")}


def readme_calls() -> dict[str, list[str]]:
    """Return the calls of the README's table, with their parameters."""
    match = re.search(r"\n\| call \|.*?\n\n", README, re.S)
    assert match
    cells = [row.split(" | ")[0] for row in match[0].splitlines()]
    calls = re.findall(r"`(\w+)\((.*?)\)`", "".join(cells))
    return {name: re.findall(r"\w+", parameters) for name, parameters in calls}


PLACES: dict[str, set[str]] = {
    "tdev_models/calls.py, as awaitable(...)": bound(calls),
    "__all__ of tdev_models/__init__.py": exported(tdev),
    "tdev_models/sync.py, as blocking(...)": bound(sync),
    "__all__ of tdev_models/sync.py": exported(sync),
    "CALLS or READS of tests/chaos/test_sweep.py": SEND_NOTHING
    | {name.partition(",")[0] for name in (*sweep.CALLS, *sweep.READS)},
    "the table of calls in README.md": readme_calls().keys() - {"configure"},
    "right_uses of tests/typing/test_types.py": set(re.findall(r"\btdev\.([a-z]\w+)\(", TYPING)),
    "right_blocking_uses there": set(re.findall(r"\bsync\.([a-z]\w+)\(", TYPING)),
}
CALLS = sorted({*only_in_services(), *(name for names in PLACES.values() for name in names)})


@pytest.mark.parametrize("call", CALLS)
def test_a_public_call_is_everywhere(call: str) -> None:
    missing = [place for place, names in PLACES.items() if call not in names]
    assert not missing, (
        f"{call} is missing in: {'; '.join(missing)}. Add it there, or take it out everywhere: a "
        "function of services that nothing calls and nobody can import is dead"
    )


@pytest.mark.parametrize("call", CALLS)
def test_both_modules_bind_the_same_service_under_its_own_name(call: str) -> None:
    services = [inspect.unwrap(getattr(module, call)) for module in (tdev, sync)]
    assert services[0] is services[1], f"{call} is bound to another service in each module"
    assert services[0].__name__ == call, f"{call} is bound to {services[0].__name__}"


@pytest.mark.parametrize("call", CALLS)
def test_the_readme_names_the_parameters(call: str) -> None:
    parameters: Any = inspect.signature(getattr(tdev, call)).parameters
    assert readme_calls()[call] == list(parameters), (
        f"name the parameters of {call} as they are in README.md's table of calls"
    )


def test_errors_and_settings_need_no_pynamodb() -> None:
    program = (
        "import sys, tdev_models; from tdev_models import *; tdev_models.configure(region='x')\n"
    )
    light = program.replace("from tdev_models import *", "tdev_models.NotFound")
    check = "print('pynamodb' in sys.modules, 'track_session' in dir(tdev_models))"
    for source, loaded in ((light, "False True"), (program, "True True")):
        done = subprocess.run(
            [sys.executable, "-c", source + check], check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == loaded


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tdev_models' has no attribute 'nothing'"):
        tdev.nothing  # type: ignore[attr-defined]  # noqa: B018
