"""`tdev sessions`, `tdev workers`, `tdev projects`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import Screen, suggested
from tdev_models.cli.tables import Column, Table, status
from tdev_models.errors import InvalidRequest
from tdev_models.results import Page, Project, Session, SessionStatus, Worker
from tdev_models.sync import (
    get_failed_sessions,
    list_pipeline_sessions,
    list_user_projects,
    list_workers,
)
from tdev_models.views.moments import OPEN, ago, due, fixed, local, resumable
from tdev_models.views.numbers import short

_AGES = ("since", "older_than")


def sessions(options: argparse.Namespace) -> int:
    """Print sessions: those that are open, of a status, of a user, or due."""
    screen = Screen(options.json)
    with screen.counting():
        pages = _pages(options)
        found = [session for _, page in pages for session in page]
        if not (options.due or options.user or len(pages) == 1):
            found = sorted(found, key=lambda one: one.created_at or 0, reverse=True)
        for session in found:
            screen.line(session.to_dict())
        what = " and ".join(label for label, _ in pages)
        screen.print(Table(f"Sessions, {what}", COLUMNS, found, f"No sessions, {what}."))
        for label, page in pages:
            which = ["--due"] if options.due else ["--status", label]
            which = [f"--user={options.user}"] if options.user else which
            _print_more(screen, options, page.cursor, "sessions", *which, of=label)
    return DONE


def _pages(options: argparse.Namespace) -> list[tuple[str, Page[Session]]]:
    """Return each list that is asked for, with what it is of."""
    if options.since is not None:
        options.since = fixed("--since", options.since)
    if options.older_than is not None:
        options.older_than = fixed("--older-than", options.older_than)
    ages: dict[str, Any] = {"created_after": options.since, "created_before": options.older_than}
    asked = [options.due, options.user is not None, bool(options.status), options.all]
    if sum(asked) > 1:
        raise InvalidRequest("--status", "give one of --status, --user, --due and --all")
    paging: dict[str, Any] = {"limit": options.limit, "cursor": options.cursor}
    if options.due:
        if any(ages.values()):
            raise InvalidRequest("--due", "takes no age: the longest due come first")
        return [("due", get_failed_sessions(**paging))]
    if options.user is not None:
        page = list_pipeline_sessions(user_id=options.user, **paging, **ages)
        return [(f"of user {options.user}", page)]
    statuses = tuple(SessionStatus) if options.all else options.status or OPEN
    if options.cursor and len(statuses) > 1:
        raise InvalidRequest("--cursor", "belongs to one --status, or to --user")
    return [(str(one), list_pipeline_sessions(status=one, **paging, **ages)) for one in statuses]


def _print_more(
    screen: Screen, options: argparse.Namespace, cursor: str | None, *command: str, **more: str
) -> None:
    """Print where the next page begins, and the command that shows it, of the same tables."""
    if cursor is None:
        return
    names = ("limit", *_AGES)
    given = {name: str(value) for name in names if (value := getattr(options, name, None))}
    ages = {name: given[name] for name in _AGES if name in given}
    screen.line({"cursor": cursor, **more, **ages})
    words = [word for name in given for word in (f"--{name.replace('_', '-')}", given[name])]
    words += ["--cursor", cursor]
    # An id may begin with a dash.
    words += ["--", options.user] if options.command == "projects" else []
    screen.hint(f"More: {suggested(options, *command, *words)}")


def workers(options: argparse.Namespace) -> int:
    """Print the workers, those that beat last first."""
    screen = Screen(options.json)
    with screen.counting():
        page = list_workers(limit=options.limit, cursor=options.cursor)
        for worker in page:
            screen.line(worker.to_dict())
        screen.print(Table("Workers", WORKERS, page, "No worker is registered."))
        _print_more(screen, options, page.cursor, "workers")
    return DONE


def projects(options: argparse.Namespace) -> int:
    """Print the projects of one user."""
    screen = Screen(options.json)
    with screen.counting():
        page = list_user_projects(
            options.user, order=options.order, limit=options.limit, cursor=options.cursor
        )
        for project in page:
            screen.line(project.to_dict())
        title = f"Projects of {options.user}"
        screen.print(Table(title, PROJECTS, page, f"User {options.user} has no projects."))
        command = ("projects", "--order", options.order)
        _print_more(screen, options, page.cursor, *command)
    return DONE


def _done(session: Session) -> str:
    return "" if session.progress is None else f"{int(session.progress)}"


def _at(session: Session) -> str:
    return session.failed_agent or session.current_agent or ""


COLUMNS: list[Column[Session]] = [
    Column(head="session", cell=lambda one: one.session_id, kind="name"),
    Column(head="status", cell=lambda one: status(one.status)),
    Column(head="age", cell=lambda one: ago(one.created_at), kind="number"),
    Column(head="at", cell=lambda one: _at(one), drop=1),
    Column(head="done", cell=_done, kind="number", drop=3),
    Column(head="due", cell=resumable, kind="number", drop=2),
    Column(head="resumes", cell=lambda one: _count(one.resume_count), kind="number", drop=6),
    Column(head="user", cell=lambda one: one.user_id or "", drop=5),
    Column(head="project", cell=lambda one: one.project_name or "", drop=7),
    Column(head="type", cell=lambda one: one.pipeline_type or "", drop=8),
    Column(head="last failure", cell=lambda one: one.error_message or "", drop=4),
]
WORKERS: list[Column[Worker]] = [
    Column(head="worker", cell=lambda one: one.name, kind="name"),
    Column(head="state", cell=lambda one: status(one.state)),
    Column(head="sessions", cell=lambda one: str(one.sessions), kind="number"),
    Column(head="up", cell=lambda one: ago(one.started_at), kind="number", drop=1),
    Column(head="lease ends", cell=lambda one: _lease(one), kind="number", drop=2),
    Column(head="release", cell=lambda one: one.release or "", drop=3),
]
PROJECTS: list[Column[Project]] = [
    Column(head="project", cell=lambda one: one.project_id, kind="name"),
    Column(head="name", cell=lambda one: one.project_name or "", drop=1),
    Column(
        head="downloads", cell=lambda one: _count(one.download_count) or "0", kind="number", drop=2
    ),
    Column(head="size MB", cell=lambda one: short(one.size_mb), kind="number", drop=3),
    Column(head="last accessed", cell=lambda one: local(one.last_accessed), drop=4),
    Column(head="made of", cell=lambda one: _made_of(one), drop=5),
]


def _count(number: float | None) -> str:
    return f"{int(number)}" if number else ""


def _lease(worker: Worker) -> str:
    if worker.died_at is not None:
        return f"died {ago(worker.died_at)} ago"
    left = due(worker.lease_expires)
    return left if left.startswith("in") else f"{ago(worker.lease_expires)} ago"


def _made_of(project: Project) -> str:
    stack = project.tech_stack or ()
    return ", ".join(map(str, stack)) if isinstance(stack, list | tuple) else json.dumps(stack)
