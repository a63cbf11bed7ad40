"""One worker process of the demo; it says each step as a line of JSON.

`run` begins the session, and waits inside `generation` to be killed. `recover` waits until the
session shows as stalled, and for a line to go; then it tries to claim the session and ends it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdev_models import configure
from tdev_models.cli.demo.agents import RUN
from tdev_models.cli.demo.bill import Bill
from tdev_models.sync import (
    Tracker,
    flush_metrics,
    get_failed_sessions,
    resume_pipeline,
    track_session,
)

KILLED_IN = "generation"
SECONDS = 30


def begin(session_id: str, user_id: str, request: str) -> None:
    """Run a new session until the process is killed."""

    def wait_inside(agent: str) -> None:
        if agent == KILLED_IN:
            flush_metrics()  # or metrics that are not yet written are lost with the process
            say("inside", agent=agent)
            sys.stdin.read()
            raise SystemExit("the demo is gone")

    with track_session(
        session_id,
        user_id=user_id,
        project_name=request[:100],
        pipeline_type="SIMPLE",
        metadata={"request": request},
    ) as tracker:
        work(tracker, request, wait_inside)


def recover(session_id: str) -> None:
    """Find the stalled session, try to claim it, and complete it when claimed."""
    deadline = time.monotonic() + SECONDS
    while not (stalled := [s for s in get_failed_sessions() if s.session_id == session_id]):
        if time.monotonic() > deadline:
            raise SystemExit(f"{session_id} did not show as stalled within {SECONDS} s")
        time.sleep(0.5)
    say("found")
    sys.stdin.readline()
    resume = resume_pipeline(session_id)
    if not resume:
        say("refused", reason=resume.reason)
        return
    say(
        "claimed",
        fence=resume.owned.fence,
        start_agent=resume.start_agent,
        outputs=[*resume.outputs],
    )
    with resume:
        work(resume, stalled[0].metadata["request"], lambda agent: None)
    flush_metrics()  # after the next line the demo ends this process
    say("completed")


def work(tracker: Tracker, request: str, before: Callable[[str], None]) -> None:
    """Run the agents that have not ended, each on the outputs of those before it."""
    for name, agent in RUN.items():
        with tracker.agent(name, {"request": request, "outputs_of": [*tracker.outputs]}) as run:
            if not run.done:
                before(name)
                run.output = agent(request, tracker.outputs)


def say(step: str, **facts: Any) -> None:
    """Tell the demo what was done."""
    sys.stdout.write(json.dumps({"step": step, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    who, file, *arguments = sys.argv[1:]
    configure(on_request=Bill(Path(file), who))
    (begin if len(arguments) > 1 else recover)(*arguments)
