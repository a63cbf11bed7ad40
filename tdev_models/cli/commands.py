"""Every command: its purpose, its arguments, an example, and the function that runs it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import tdev_models
from tdev_models.cli import arguments
from tdev_models.cli.codes import TEXT
from tdev_models.cli.parser import Parser, add_json, add_store

DESCRIPTION = """\
The memory of the T-Developer pipeline: see every run, act on it.

TDEV_ENV names the tables; AWS_REGION, AWS_PROFILE and the like say which
account. 'tdev config' shows what is set, 'tdev doctor' what is wrong. NO_COLOR
turns colours off, COLUMNS sets the width.
"""


class Command(NamedTuple):
    """One command.

    Attributes:
        purpose: what it does, in a line.
        runs: `module:function` in this package; imported when it runs.
        example: a line to copy.
        add: declares its arguments.
        reaches_store: it takes `--env`, `--region` and `--endpoint`.
    """

    purpose: str
    runs: str
    example: str
    add: Callable[[Parser], None]
    reaches_store: bool = True


COMMANDS = {
    "sessions": Command(
        "which sessions there are: open, of a status, of a user, or due",
        "lists:sessions",
        "tdev sessions --status FAILED --older-than 2h",
        arguments.sessions,
    ),
    "show": Command(
        "one session: its agents against time, errors, tokens and cost",
        "show:show",
        "tdev show todo-1 --payloads generation",
        arguments.show,
    ),
    "watch": Command(
        "one session live, or all that are ACTIVE",
        "watch:watch",
        "tdev watch todo-1 --poll 1",
        arguments.watch,
    ),
    "failures": Command(
        "what failed, by message; recovered ones too",
        "failures:failures",
        'tdev failures --since "2 hours ago" --agent generation',
        arguments.failures,
    ),
    "resume": Command(
        "run what is left of one session here, with your runner",
        "actions:resume",
        "tdev resume todo-1 my_app.pipeline:run",
        arguments.resume,
    ),
    "release": Command(
        "let the next worker take a session at once, backoff or not",
        "actions:release",
        "tdev release todo-1 --force",
        arguments.release,
    ),
    "abandon": Command(
        "end a session for good, whoever owns it",
        "actions:abandon",
        'tdev abandon todo-1 --reason "the user gave up"',
        arguments.abandon,
    ),
    "workers": Command(
        "who works: alive, draining, silent or dead",
        "lists:workers",
        "tdev workers",
        arguments.workers,
    ),
    "projects": Command(
        "the projects of one user", "lists:projects", "tdev projects u1", arguments.projects
    ),
    "doctor": Command(
        "what is wrong with the set-up, and what to do about it",
        "doctor:doctor",
        "tdev doctor --env prod",
        arguments.nothing,
    ),
    "config": Command(
        "what is set, and from where", "config:config", "tdev config --json", arguments.nothing
    ),
    "rekey": Command(
        "encrypt what is stored under TDEV_KMS_KEY; run again, it goes on",
        "rekey:rekey",
        "tdev rekey --env prod --delete-old",
        arguments.rekey,
    ),
    "recover": Command(
        "a worker that resumes failed and stalled sessions",
        "recover:run",
        "tdev recover my_app.pipeline:run --watch --concurrency 4",
        arguments.recover,
    ),
    "usage": Command(
        "sessions, how far they get, technologies, downloads",
        "reports:run",
        "tdev usage --days 30",
        arguments.report,
    ),
    "agents": Command(
        "runs, failures, retries and times of each agent",
        "reports:run",
        "tdev agents --start yesterday",
        arguments.report,
    ),
    "metrics": Command(
        "one metric, by hour, day, agent or dimension",
        "reports:run",
        "tdev metrics agent_cost_usd --by agent",
        arguments.metrics,
    ),
    "ab": Command(
        "one variant of an agent against another",
        "reports:run",
        "tdev ab search old new --metric agent_execution_time",
        arguments.ab,
    ),
    "ui": Command(
        "all of it as a page in the browser, live, on this machine alone",
        "ui:ui",
        "tdev ui --port 8423",
        arguments.ui,
    ),
    "report": Command(
        "the page's views of some days, in one file that needs no network",
        "report:report",
        "tdev report --days 30 --out report.html",
        arguments.page_report,
    ),
    "demo": Command(
        "a pipeline run that is killed, resumed, shown and checked",
        "demo.story:run",
        'tdev demo "a blog with Vue and a GraphQL API"',
        arguments.demo,
        reaches_store=False,
    ),
    "local": Command(
        "a DynamoDB engine on this machine, with the tables",
        "local:run",
        "tdev local -- python my_app.py",
        arguments.local,
        reaches_store=False,
    ),
    "completion": Command(
        "a script by which your shell completes commands",
        "completion:completion",
        'eval "$(tdev completion bash)"',
        arguments.completion,
        reaches_store=False,
    ),
}

# Commands that parse their own arguments: module, and purpose.
FORWARDED = {
    "migrate": ("tdev_models.migrations.command", "create and update the tables"),
    "iam": ("tdev_models.migrations.iam", "print the policy of each role"),
}


def parser(*, forwarded: bool = False) -> Parser:
    """Return the parser of the whole command, with the arguments of those forwarded if asked."""
    whole = Parser(prog="tdev", description=DESCRIPTION, epilog=TEXT)
    whole.add_argument(
        "--version", action="version", version=f"tdev-models {tdev_models.__version__}"
    )
    # With `prog` it formats nothing, and so imports no rich.
    commands = whole.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", prog=whole.prog
    )
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name, help=command.purpose, description=command.purpose, example=command.example
        )
        command.add(one)
        if command.reaches_store:
            add_store(one)
        if name != "completion":
            add_json(one)
    for name, (module, purpose) in FORWARDED.items():
        own = [import_module(module).parser(f"tdev {name}")] if forwarded else []
        commands.add_parser(name, help=purpose, parents=own, add_help=not own)
    return whole


def chosen_places(options: argparse.Namespace) -> dict[str, str]:
    """Return the settings that options change."""
    names = {"env": "environment", "region": "region", "endpoint": "endpoint"}
    return {
        setting: value
        for name, setting in names.items()
        if (value := getattr(options, name, None)) is not None
    }
