"""`tdev watch`: one session, live by one read a poll, or all that are ACTIVE."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tdev_models.cli import timeline
from tdev_models.cli.codes import DONE, FAILED
from tdev_models.cli.lists import COLUMNS
from tdev_models.cli.screen import Screen, place
from tdev_models.cli.show import MOST_EXECUTIONS, facts
from tdev_models.cli.tables import Table
from tdev_models.errors import InvalidRequest, plain
from tdev_models.results import Execution, Session, SessionStatus
from tdev_models.sync import get_agent_executions, get_pipeline_session, list_pipeline_sessions
from tdev_models.views.watched import Watched


def watch(options: argparse.Namespace) -> int:
    """Show how one session goes on until it has ended, or which are ACTIVE until Ctrl-C.

    Returns 1 where the session ended otherwise than COMPLETED.
    """
    if not 0.1 <= options.poll <= 3600:
        raise InvalidRequest("--poll", "must be 0.1 to 3600 seconds")
    if options.limit < 1:
        raise InvalidRequest("--limit", "must be at least 1")
    screen = Screen(options.json)
    if options.session is None:
        return _watch_all(screen, options)
    return _watch_one(screen, options)


def _watch_one(screen: Screen, options: argparse.Namespace) -> int:
    live = screen.console.is_terminal
    printed: Session | None = None
    drawing = timeline.Timeline(())
    with Live(console=screen.console, auto_refresh=False) as display:
        for session, executions in progress(options.session, options.poll):
            if live:
                drawing = timeline.of(session, executions)
                display.update(_fitting(screen.console, session, drawing), refresh=True)
            elif session != printed:
                screen.line(session.to_dict())
                done, at = int(session.progress or 0), plain(session.current_agent or "")
                screen.print(f"{session.status} {done} {at}".rstrip())
            printed = session
        if live and printed:
            display.update(_drawn(printed, drawing))  # it stays, as long as it is
    return DONE if printed and printed.status == SessionStatus.COMPLETED else FAILED


def _drawn(session: Session, drawing: timeline.Timeline, left_out: int = 0) -> Group:
    """Return the screen of a session."""
    note = [Text(f"{left_out} earlier attempts do not fit.", style="dim")] * bool(left_out)
    return Group(place(), *facts(session), "", *note, drawing)


def _fitting(console: Console, session: Session, drawing: timeline.Timeline) -> Group:
    """Return the screen of a session without the attempts for which there is no room.

    `Live` would cut the last ones off: those that run.
    """
    rows, left_out = drawing.rows, 0
    while True:
        shown = _drawn(session, timeline.Timeline(rows[left_out:]), left_out)
        over = len(console.render_lines(shown)) - console.height
        if over <= 0 or left_out >= len(rows) - 1:
            return shown
        left_out = min(left_out + over, len(rows) - 1)


def progress(session_id: str, poll_seconds: float) -> Iterator[tuple[Session, Sequence[Execution]]]:
    """Yield a session and its executions at each poll, until it has ended."""
    watched = Watched(get_pipeline_session(session_id))
    while True:
        yield watched.session, watched.executions
        if watched.has_ended:
            return
        time.sleep(poll_seconds)
        if watched.is_behind:
            watched.saw_executions(get_agent_executions(session_id, limit=MOST_EXECUTIONS))
        else:
            watched.saw_session(get_pipeline_session(session_id))


def _watch_all(screen: Screen, options: argparse.Namespace) -> int:
    seen: dict[str, Session] = {}
    live = screen.console.is_terminal
    with Live(console=screen.console, auto_refresh=False) as display:
        while True:
            found = {session.session_id: session for session in _active()}
            if live:
                newest = [*found.values()][: options.limit]
                title = f"ACTIVE sessions, {len(newest)} of {len(found)}"
                table = Table(title, COLUMNS, newest, "No session is ACTIVE.")
                display.update(Group(place(), table), refresh=True)
            for change, ids in (("began", found.keys() - seen), ("left", seen.keys() - found)):
                for session_id in sorted(ids):
                    session = found.get(session_id) or seen[session_id]
                    screen.line({"change": change, **session.to_dict()})
                    if not live:
                        screen.whole(f"{change} {plain(session_id)}")
            seen = found
            time.sleep(options.poll)


def _active() -> Iterator[Session]:
    """Yield every ACTIVE session: of a part of them nobody could say which have left."""
    cursor: str | None = None
    while True:
        page = list_pipeline_sessions(
            status=SessionStatus.ACTIVE, limit=1000, cursor=cursor, progress=False
        )
        yield from page
        if (cursor := page.cursor) is None:
            return
