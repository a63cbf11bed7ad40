"""Worker processes of the tests: `python -m tests.workers race|freeze ...`."""

from __future__ import annotations

import json
import sys
import time

from tdev_models import LeaseLost, configure, sync
from tests.conftest import allowed_only


def tell(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def race(*names: str) -> None:
    """Claim every session at the same moment as everyone else, and tell which were won."""
    tell(ready=True)
    begin = float(sys.stdin.readline())
    won = []
    for number, name in enumerate(names):
        time.sleep(max(0.0, begin + 0.02 * number - time.time()))
        if sync.resume_pipeline(name):
            won.append(name)
    tell(won=won)


def freeze(name: str, write: str) -> None:
    """Do two agents, be frozen inside the third, write when awake, tell what was raised."""
    try:
        with sync.track_session(name) as session:
            for agent in ("nl_input", "ui_selection"):
                with session.agent(agent) as run:
                    run.output = 1
            with session.agent("parser") as run:
                tell(inside="parser")
                sys.stdin.readline()
                late_write(session, write)
                run.output = "late"
    except LeaseLost:
        tell(raised="LeaseLost")
    else:
        tell(raised=None)


def late_write(session: sync.Tracker, write: str) -> None:
    name = session.session_id
    if write == "session":
        sync.save_pipeline_session(session_id=name, project_name="late")
    elif write == "end":
        sync.save_pipeline_session(session_id=name, status="FAILED")
    elif write == "progress":
        sync.save_pipeline_session(session_id=name, progress=9)
    elif write == "execution":
        sync.update_agent_execution(execution_id=f"{name}-parser", output_data=["late"])
    elif write == "other-execution":
        sync.update_agent_execution(execution_id=f"{name}-assembly", status="COMPLETED")
    elif write == "heartbeat":
        time.sleep(1)
    else:
        assert write == "leave"


if __name__ == "__main__":
    configure(transport=allowed_only)
    if sys.argv[1] == "race":
        race(*sys.argv[2:])
    else:
        freeze(*sys.argv[2:])
