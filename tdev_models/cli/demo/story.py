"""The story of the demo: a worker is killed, two race for its session, one completes it."""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from tdev_models import configure, settings
from tdev_models.cli.codes import DONE, FAILED
from tdev_models.cli.demo import show
from tdev_models.cli.demo.bill import Bill
from tdev_models.cli.demo.checks import Check, Facts, Story, check
from tdev_models.cli.engine import Engine
from tdev_models.cli.local import prepare
from tdev_models.cli.screen import PipedConsole
from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.sync import (
    get_agent_execution,
    get_agent_executions,
    get_failed_sessions,
    get_pipeline_session,
    list_user_projects,
    query_metrics,
    record_download,
    save_user_project,
)

USER = "demo-user"
WORKER_SECONDS = 60
# Short enough to watch; the children read them too. What is empty counts as not set: the story is
# told of the usual agents and metrics, which nothing encrypts or lets expire.
_SETTINGS = {
    "TDEV_ENV": "dev",
    "TDEV_LEASE_SECONDS": "2",
    "TDEV_STALLED_AFTER_SECONDS": "4",
    "TDEV_AGENTS": "",
    "TDEV_AUTOMATIC_METRICS": "",
    "TDEV_KMS_KEY": "",
    "TDEV_KMS_FORMER_KEYS": "",
    "TDEV_KMS_STRICT": "",
    "TDEV_RETENTION_DAYS": "",
}


def run(options: argparse.Namespace) -> int:
    """Run the demo of one request; return 0 if all checks of what is stored hold.

    Raises:
        InvalidRequest: a price is below 0.
        TdevError: the engine, a worker or a call failed.
    """
    prices = {"read": options.read_price, "write": options.write_price}
    for name, price in prices.items():
        if not 0 <= price < 1e6:
            raise InvalidRequest(f"--{name}-price", "must be USD of a million units, from 0")
    console = PipedConsole(highlight=False, quiet=options.json)
    directory = Path(tempfile.mkdtemp(prefix="tdev-demo-"))
    kept = False
    try:
        with Engine.start(directory / "demo.db") as engine:
            os.environ.update(_SETTINGS)
            prepare(engine)
            console.print(f"{engine.name} answers on {engine.endpoint}")
            if engine.notice:
                console.print(f"[yellow]{engine.notice}[/]")
            story = _run(console, options.request, directory)
            checks = _show(console, story, directory, prices)
            right = show.checked(console, checks)
            if options.json:
                for one in checks:
                    sys.stdout.write(json.dumps(one.to_dict()) + "\n")
            if options.keep:
                engine.detach()
                kept = True
                show.further(console, engine, directory, story)
    finally:
        if not kept:
            shutil.rmtree(directory)
    return DONE if right else FAILED


def _run(console: Console, request: str, directory: Path) -> Story:
    session_id, bill = f"demo-{uuid.uuid4().hex[:8]}", directory / "bill"
    configure(on_request=Bill(bill, "the demo, reading back"))
    with _worker("worker 1, killed", bill, session_id, USER, request) as first:
        first.until("inside")
        os.kill(first.process.pid, signal.SIGKILL)
        died_of = -first.process.wait()
    left = get_pipeline_session(session_id)
    console.print(f"Worker 1 runs {session_id}; killed by signal {died_of} inside generation")

    killed_at = time.monotonic()
    with (
        _worker("worker 2", bill, session_id) as second,
        _worker("worker 3", bill, session_id) as third,
    ):
        racers = (second, third)
        for racer in racers:
            racer.until("found")
        console.print(
            f"Workers 2 and 3 find it {time.monotonic() - killed_at:.1f} s later, and race"
        )
        for racer in racers:
            racer.go()
        steps = [racer.until("claimed", "refused") for racer in racers]
        for number, (racer, step) in enumerate(zip(racers, steps, strict=True), 2):
            if step["step"] == "claimed":
                console.print(f"Worker {number} resumes at {step['start_agent']}, and completes it")
                racer.until("completed")
            else:
                console.print(f"Worker {number} is refused: {step['reason']}")
    if all(step["step"] == "refused" for step in steps):
        raise TdevError("both workers were refused")
    return Story(
        request=request,
        session_id=session_id,
        user_id=USER,
        pids=[worker.process.pid for worker in (first, *racers)],
        died_of=died_of,
        left=left,
        steps=steps,
    )


def _show(
    console: Console, story: Story, directory: Path, prices: Mapping[str, float]
) -> list[Check]:
    with settings.use(on_request=Bill(directory / "bill", "history and download")):
        file = _download(story, directory)
    session = get_pipeline_session(story.session_id)
    listed = get_agent_executions(story.session_id)
    facts = Facts(
        session=session,
        executions=[get_agent_execution(run.execution_id) for run in listed],
        projects=list_user_projects(story.user_id),
        metrics=query_metrics(
            "agent_execution_time", session.created_at, time.time() + 1, group_by="agent"
        ),
        stalled=get_failed_sessions(),
        file=file,
        bill=directory / "bill",
    )
    show.tables(console, facts, story, prices)
    return check(facts, story)


def _download(story: Story, directory: Path) -> Path:
    """Hand the zip to the user, and remember it; the download is reported twice."""
    outputs = {
        name: get_agent_execution(f"{story.session_id}-{name}").output_data
        for name in ("search", "download")
    }
    zipped = base64.b64decode(outputs["download"]["base64"])
    file = directory / str(outputs["download"]["file_name"])
    file.write_bytes(zipped)
    save_user_project(
        user_id=story.user_id,
        project_id=story.session_id,
        project_name=file.stem,
        description=story.request[:1000],
        tech_stack=list(outputs["search"].values()),
        file_path=str(file),
        size_mb=len(zipped) / 1e6,
    )
    for _ in range(2):
        record_download(story.user_id, story.session_id, download_id="the first")
    return file


class _Worker:
    """A worker process that says each step as a line of JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def until(self, *steps: str) -> dict[str, Any]:
        """Return the next of these steps."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message: dict[str, Any] = json.loads(line)
            if message["step"] in steps:
                return message
        raise TdevError(f"a worker ended before it was {' or '.join(steps)}")

    def go(self) -> None:
        """Send the line that a worker waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()


@contextmanager
def _worker(*arguments: object) -> Iterator[_Worker]:
    with ExitStack() as ending:  # SIGTERM may come between any two lines of this
        process = subprocess.Popen(
            [sys.executable, "-m", "tdev_models.cli.demo.worker", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        ending.enter_context(process)
        ending.callback(process.kill)
        limit = threading.Timer(WORKER_SECONDS, process.kill)
        ending.callback(limit.cancel)
        limit.start()
        yield _Worker(process)
