"""The processes of a run: one for each client, and the server that they ask."""

from __future__ import annotations

import compileall
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.clients import items

ROOT = Path(__file__).parents[2]
Measured: TypeAlias = dict[str, float]
Found: TypeAlias = dict[str, dict[str, list[Measured]]]
"""What was measured, by `OPERATION AT_ONCE` and by client, a round after the other."""


@dataclass(frozen=True)
class Client:
    """A row of the tables.

    Attributes:
        name: as the tables have it.
        module: what of this package has its operations.
        variant: which way the module shall go.
        environment: of which of `make bench`'s environments; this one when it has none.
        awaits: whether it runs in an event loop; else in threads.
        imports: the statement that brings it.
    """

    name: str
    module: str
    variant: str = "-"
    environment: str = ""
    awaits: bool = True
    imports: str = "import tdev_models.calls"

    @property
    def python(self) -> str:
        """The interpreter of its environment."""
        if not self.environment:
            return sys.executable
        return str(ROOT / f".venv-bench-{self.environment}" / "bin" / "python")


OURS = "tdev_models_client"
CLIENTS = (
    Client("this package, async", OURS, "async"),
    Client("this package, blocking", OURS, "blocking", awaits=False),
    Client("this package over botocore", OURS, "botocore"),
    Client(
        "PynamoDB",
        "pynamodb_client",
        awaits=False,
        imports="import pynamodb.models, botocore.session",
    ),
    Client("boto3", "boto3_client", awaits=False, imports="import boto3"),
    Client(
        "aiobotocore",
        "aiobotocore_client",
        "-",
        "aiobotocore",
        imports="import aiobotocore.session",
    ),
    Client(
        "aiodynamo",
        "aiodynamo_client",
        "-",
        "aiodynamo",
        imports="import aiodynamo.client, aiodynamo.http.aiohttp",
    ),
    Client("pydynox, models", "pydynox_client", "models", "pydynox", imports="import pydynox"),
    Client(
        "pydynox, dictionaries", "pydynox_client", "as_dict", "pydynox", imports="import pydynox"
    ),
)


def environment(certificate: str | None = None) -> dict[str, str]:
    """Return the variables of a client's process: nothing of the user's AWS configuration."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS", "TDEV"))
    }
    trusted = {"AWS_CA_BUNDLE": certificate, "SSL_CERT_FILE": certificate} if certificate else {}
    return {
        **kept,
        **trusted,
        "AWS_ACCESS_KEY_ID": items.KEY_ID,
        "AWS_SECRET_ACCESS_KEY": items.SECRET,
        "AWS_DEFAULT_REGION": items.REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process behind the block."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended; see its error above")
    return line


@contextmanager
def stub(seconds: float = 0.0, tls: Sequence[str] = ()) -> Iterator[str]:
    """Start a stub, and yield its endpoint."""
    command = [sys.executable, "-m", "benchmarks.clients.stub", str(seconds), *tls]
    with ended(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)) as process:
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        yield f"{scheme}://{host}:{int(first_line(process))}"


class Runner:
    """One client's process.

    Attributes:
        operations: what it can do.
    """

    def __init__(self, client: Client, endpoint: str, certificate: str | None, stack: ExitStack):
        command = [client.python, "-m", "benchmarks.clients.runner"]
        self._process = stack.enter_context(
            ended(
                subprocess.Popen(
                    [*command, client.module, client.variant, endpoint],
                    cwd=ROOT,
                    env=environment(certificate),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        )
        self.operations: list[str] = json.loads(first_line(self._process))

    def ask(self, operation: str, at_once: int, seconds: float) -> Measured:
        """Let it run an operation, and return what that took."""
        assert self._process.stdin
        self._process.stdin.write(f"{operation} {at_once} {seconds}\n")
        self._process.stdin.flush()
        measured: Measured = json.loads(first_line(self._process))
        return measured


def interleaved(
    endpoint: str,
    clients: Sequence[Client],
    cases: Sequence[tuple[str, int]],
    rounds: int,
    seconds: float,
    certificate: str | None = None,
) -> Found:
    """Measure each case (an operation, how many at once) with each client, in turns."""
    found: Found = {}
    with ExitStack() as stack:
        runners = {one.name: Runner(one, endpoint, certificate, stack) for one in clients}
        for operation, at_once in cases:
            able = [name for name, one in runners.items() if operation in one.operations]
            found[f"{operation} {at_once}"] = {name: [] for name in able}
        for number in range(rounds + 1):
            for operation, at_once in cases:
                rows = found[f"{operation} {at_once}"]
                for name in random.sample([*rows], len(rows)):
                    # The first round is the first use of everything.
                    measured = runners[name].ask(operation, at_once, seconds if number else 0)
                    if number:
                        rows[name].append(measured)
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def in_flight(endpoint: str, clients: Sequence[Client], at_once: int, rounds: int) -> Found:
    """Measure the memory of a fresh process with one get, and with so many at once."""
    counts = (1, at_once)
    found: Found = {f"get {count}": {one.name: [] for one in clients} for count in counts}
    for _ in range(rounds):
        for client in random.sample(clients, len(clients)):
            with ExitStack() as stack:
                runner = Runner(client, endpoint, None, stack)
                for count in counts:
                    found[f"get {count}"][client.name].append(runner.ask("get", count, 0))
    return found


_SAVING = (OURS, "pynamodb_client")
_BLOCKING = "operations({endpoint!r}, {variant!r})[{operation!r}]()"
_AWAITING = """import asyncio
async def main():
    await (await operations({endpoint!r}, {variant!r}))[{operation!r}]()
asyncio.run(main())"""


def starts(endpoint: str, clients: Sequence[Client], rounds: int) -> Found:
    """Measure fresh interpreters: one that imports a client, and one that makes its first call."""
    for folder in ("tdev_models", "benchmarks"):  # as the installed ones have their bytecode
        compileall.compile_dir(ROOT / folder, quiet=1)
    found: Found = {
        "import": {one.name: [] for one in clients},
        "first get": {one.name: [] for one in clients},
        "first save": {one.name: [] for one in clients if one.module in _SAVING},
    }
    for number in range(rounds + 1):
        for client in random.sample(clients, len(clients)):
            programs = {"import": client.imports}
            first = f"from benchmarks.clients.{client.module} import operations\n"
            first += _AWAITING if client.awaits else _BLOCKING
            for operation in ("get", "save"):
                if client.name in found[f"first {operation}"]:
                    programs[f"first {operation}"] = first.format(
                        endpoint=endpoint, variant=client.variant, operation=operation
                    )
            bare = _fresh(client, "pass")
            for name, program in programs.items():
                took = _fresh(client, program)
                if number:
                    used = {key: took[key] - bare[key] for key in took}
                    found[name][client.name].append(used)
    return found


def _fresh(client: Client, program: str) -> Measured:
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [client.python, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{client.name}: {program}\n{done.stderr}")
    took, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"milliseconds": round(used * 1e3, 1), "wall_milliseconds": round(took * 1e3, 1)}


def versions(clients: Sequence[Client]) -> dict[str, Any]:
    """Return the version of each client that is measured."""
    found = {}
    for name, client in {one.module.removesuffix("_client"): one for one in clients}.items():
        program = f"from importlib.metadata import version; print(version({name!r}))"
        done = subprocess.run(
            [client.python, "-c", program], check=True, capture_output=True, text=True
        )
        found[name] = done.stdout.strip()
    return found
