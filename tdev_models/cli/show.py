"""`tdev show`: one session, its agents against time, its errors, and its payloads on demand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tdev_models import settings
from tdev_models.cli import timeline
from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import Screen
from tdev_models.cli.tables import status
from tdev_models.errors import plain
from tdev_models.models.execution import agent_of
from tdev_models.results import Execution, Failure, Page, Session
from tdev_models.sync import (
    get_agent_execution,
    get_agent_executions,
    get_failed_executions,
    get_pipeline_session,
)
from tdev_models.views.attempts import lack_texts
from tdev_models.views.moments import OPEN, ago, due, duration, local, resumable
from tdev_models.views.numbers import short

MOST_EXECUTIONS = 1000


def show(options: argparse.Namespace) -> int:
    """Print one session."""
    screen = Screen(options.json)
    with screen.counting():
        session = get_pipeline_session(options.session)
        executions = get_agent_executions(options.session, attempts=True, limit=MOST_EXECUTIONS)
        screen.line(session.to_dict(), kind="session")
        for execution in executions:
            screen.line(execution.to_dict(), kind="execution")
        wanted = options.tracebacks or lack_texts(executions)
        found = _failures(options.session) if wanted else Page()
        screen.print(*facts(session), "", timeline.of(session, executions))
        screen.print(*errors(executions, found))
        if executions.cursor is not None:
            screen.line({"cursor": executions.cursor}, kind="executions")
            screen.print(f"The first {len(executions)} executions.")
        if options.tracebacks:
            for failure in found:
                screen.line(failure.to_dict(), kind="failure")
            _print_tracebacks(screen, found)
        for name in options.payloads or ():
            _print_payloads(screen, executions, session, name)
    return DONE


def _failures(session_id: str) -> Page[Failure]:
    return get_failed_executions(session_id=session_id, include_recovered=True, limit=1000)


def facts(session: Session) -> Iterator[RenderableType]:
    """Yield what is known of a session, in a few lines."""
    agents = len(settings.current().agents)
    done = f"{int(session.progress or 0)} of {agents} agents"
    yield Text.assemble(
        (plain(session.session_id), "bold"), "  ", status(session.status), f"  {done}"
    )
    yield from _joined(
        f"created {local(session.created_at)}, {ago(session.created_at)} ago",
        _lasted(session),
        session.resume_count and f"resumes {int(session.resume_count)}",
    )
    yield from _joined(
        session.user_id and f"user {session.user_id}",
        session.project_name and f"project {session.project_name}",
        session.pipeline_type,
        session.release and f"release {session.release}",
    )
    if session.status in OPEN:
        yield from _work(session)
    yield from _joined(
        session.input_tokens and f"{int(session.input_tokens)} tokens in",
        session.output_tokens and f"{int(session.output_tokens)} tokens out",
        session.cost_usd and f"cost ${short(session.cost_usd)}",
        session.budget_usd and f"budget ${short(session.budget_usd)}",
    )
    if session.error_message:
        at = f" at {session.failed_agent}" if session.failed_agent else ""
        yield Text(f"last failure{at}: {plain(session.error_message)}", style="red")


def _work(session: Session) -> Iterator[Text]:
    """Yield who runs it, or when it can be resumed."""
    yield from _joined(
        session.current_agent and f"at {session.current_agent}",
        (when := resumable(session)) and f"due {when}",
        session.deadline and f"its agent's time is over {due(session.deadline)}",
        session.lease_owner and f"worker {session.lease_owner}",
        session.fence and f"claim {int(session.fence)}",
    )


def _lasted(session: Session) -> str | None:
    if not session.created_at or not session.last_updated:
        return None
    if session.status == "ACTIVE":
        return f"changed {ago(session.last_updated)} ago"
    return f"lasted {duration(session.last_updated - session.created_at)}"


def _joined(*parts: Any) -> Iterator[Text]:
    if present := [plain(str(part)) for part in parts if part]:
        yield Text(" · ".join(present))


def errors(executions: Sequence[Execution], failures: Sequence[Failure] = ()) -> Iterator[Text]:
    """Yield each error of each attempt, with its message: that of `failures` where they have it."""
    messages = {(one.agent_name, one.number): one.error_message for one in failures}
    attempts = [
        (attempt.end_time or 0, execution.agent_name, attempt.number, message)
        for execution in executions
        for attempt in execution.attempts
        if (message := messages.get((execution.agent_name, attempt.number), attempt.error_message))
    ]
    if attempts:
        yield Text("\nErrors", style="bold")
    for ended, name, number, message in sorted(attempts):
        yield Text.assemble((f"{plain(name)} #{number} {ago(ended)} ago: ", "red"), plain(message))


def _print_tracebacks(screen: Screen, failures: Sequence[Failure]) -> None:
    if not failures:
        screen.print("\nNo failed attempt is kept.")
    for failure in reversed(failures):
        title = (
            f"\n{plain(failure.agent_name)} #{failure.number}"
            f" by {plain(failure.worker or 'unknown')}"
            f"{', recovered' * failure.recovered}"
        )
        screen.print(Text(title, style="bold"))
        text = failure.traceback or failure.error_message or "(no message)"
        screen.whole("\n".join(map(plain, text.splitlines())))


def _print_payloads(
    screen: Screen, executions: Sequence[Execution], session: Session, name: str
) -> None:
    """Print the in- and output of one agent: with each key, where it ran with keys alone."""
    found = {one.agent_name: one.execution_id for one in executions}
    keyed = [one for one in found if agent_of(one) == name]
    for run in [name] if name in found or not keyed else keyed:
        execution = get_agent_execution(found.get(run, f"{session.session_id}-{run}"), run)
        screen.line(
            {"input_data": execution.input_data, "output_data": execution.output_data},
            kind="payloads",
            agent_name=run,
        )
        for field in ("input", "output"):
            screen.print(Text(f"\n{field} of {plain(run)}", style="bold"))
            text = json.dumps(execution[f"{field}_data"], indent=2, ensure_ascii=False)
            screen.whole("\n".join(map(plain, text.splitlines())))
