"""`tdev failures`: what failed, grouped by message, or one by one."""

from __future__ import annotations

import argparse

from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import Screen, suggested
from tdev_models.cli.tables import Column, Table
from tdev_models.results import Failure
from tdev_models.sync import get_failed_executions
from tdev_models.views.attempts import worker
from tdev_models.views.failure_groups import Group, grouped, message
from tdev_models.views.moments import ago, fixed


def failures(options: argparse.Namespace) -> int:
    """Print what failed since a moment; recovered ones too, unless only open ones are wanted."""
    screen = Screen(options.json)
    since = fixed("--since", options.since)
    with screen.counting():
        page = get_failed_executions(
            since,
            options.agent,
            include_recovered=not options.open,
            limit=options.limit,
            cursor=options.cursor,
        )
        for failure in page:
            screen.line(failure.to_dict())
        of = f" of {options.agent}" if options.agent else ""
        title = f"Failures{of} since {options.since}"
        empty = f"No failures{of} since {options.since}."
        if options.each:
            screen.print(Table(title, EACH, page, empty))
        else:
            screen.print(Table(title, GROUPED, grouped(page), empty))
        outside = suggested(options, "sessions", "--status", "FAILED")
        screen.hint(f"What failed outside of agents: {outside}")
        if page.cursor is not None:
            screen.line({"cursor": page.cursor, "since": since})
            screen.hint(
                f"These are the newest {len(page)}. For more: --limit N, at most 1000; or "
                f"--since {since} --cursor {page.cursor}"
            )
    return DONE


GROUPED: list[Column[Group]] = [
    Column(head="count", cell=lambda one: str(len(one.failures)), kind="number"),
    Column(head="recovered", cell=lambda one: str(one.recovered), kind="number", drop=2),
    Column(head="agent", cell=lambda one: one.agent_name),
    Column(head="last", cell=lambda one: ago(one.failures[0].failed_at), kind="number", drop=1),
    Column(head="first", cell=lambda one: ago(one.failures[-1].failed_at), kind="number", drop=4),
    Column(head="message", cell=lambda one: one.message, least=33),
    Column(head="last session", cell=lambda one: one.failures[0].session_id or "", drop=3),
]
EACH: list[Column[Failure]] = [
    Column(head="session", cell=lambda one: one.session_id or one.execution_id, kind="name"),
    Column(head="agent", cell=lambda one: one.agent_name),
    Column(head="#", cell=lambda one: str(one.number), kind="number", drop=2),
    Column(head="ago", cell=lambda one: ago(one.failed_at), kind="number", drop=1),
    Column(head="recovered", cell=lambda one: "yes" if one.recovered else "", drop=3),
    Column(head="message", cell=message),
    Column(head="worker", cell=lambda one: worker(one.worker), drop=4),
]
