"""The command: `python -m migrations` in a checkout, `tdev migrate` when installed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from tdev_models import settings
from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.migrations import declared, environments, report
from tdev_models.migrations.apply import Planned, Refused, Run, plan, undeclared
from tdev_models.migrations.calls import RUN_SECONDS, Calls, InProgress
from tdev_models.migrations.diff import ALLOWABLE
from tdev_models.migrations.environments import Environment
from tdev_models.settings import Settings

_CODES = """\
exit codes:
  0  clean, or applied
  1  error
  2  changes pending (plan, status, apply --dry-run, apply answered with no)
  3  refused: a change needs --allow, or is impossible
  5  still in progress: run again
  64 wrong usage
"""


class Parser(argparse.ArgumentParser):
    """A parser that exits with 64: argparse's own 2 means "changes pending" here."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and exit."""
        self.print_usage(sys.stderr)
        self.exit(report.USAGE, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None, prog: str = "python -m migrations") -> int:
    """Run `plan`, `apply` or `status` and return the exit code (see `--help`)."""
    try:
        options = _parser(prog).parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        return _run(options)
    except TdevError as error:
        codes = {
            InvalidRequest: report.USAGE,
            Refused: report.REFUSED,
            InProgress: report.IN_PROGRESS,
        }
        code = codes.get(type(error), report.ERROR)
        sys.stderr.write(f"error: {error}\n")
        if options.json:
            sys.stdout.write(json.dumps({"error": str(error), "exit_code": code}, indent=2) + "\n")
        return code


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an environment and change its settings."""
    parser.add_argument("--env", metavar="NAME", help="dev, prod or one of --config (TDEV_ENV)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with a section for each environment",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one setting of the environment, such as backup_days=7",
    )


def chosen_environment(options: argparse.Namespace) -> tuple[Settings, Environment]:
    """Return the settings and the environment that the options choose.

    Raises:
        InvalidRequest: an unknown environment or setting, or a wrong value.
    """
    chosen = settings.current()
    if options.env:
        chosen = dataclasses.replace(chosen, environment=options.env)
    return chosen, environments.load(chosen.environment, options.config, dict(options.set))


def _run(options: argparse.Namespace) -> int:
    chosen, profile = chosen_environment(options)
    tables = declared.tables(chosen, profile)
    _check_names(options, [table.short for table in tables])
    tables = [table for table in tables if not options.table or table.short in options.table]
    calls = Calls(chosen)
    applies = options.what == "apply"
    planned = plan(calls, tables, options.allow, whole=applies)
    others = [] if options.table else undeclared(calls, tables)
    code = report.exit_code(planned)

    if not options.json:
        sys.stdout.write(report.as_text(planned, others, options.what == "status") + "\n")
    for text in _warnings(profile, planned):
        sys.stderr.write(f"{text}\n")
    if applies and not options.dry_run and code in (report.PENDING, report.IN_PROGRESS):
        code = _apply(options, calls, planned, code)
    if options.json:
        sys.stdout.write(report.as_json(chosen.environment, planned, others, code) + "\n")
    return code


def _apply(options: argparse.Namespace, calls: Calls, planned: list[Planned], code: int) -> int:
    # Ask even without a pending change: a table that is being created may turn out to have some.
    if not options.yes and not _agreed():
        return code
    total = sum(change.pending for table in planned for change in table.changes)
    progress = report.Progress(sys.stderr, calls, total)
    run = Run(calls, options.allow, options.timeout, progress.step, progress.wait)
    sent = run.apply(planned)
    sys.stderr.write(f"Applied with {sent} calls. The tables are as declared.\n")
    return report.CLEAN


def _check_names(options: argparse.Namespace, tables: list[str]) -> None:
    for table in options.table:
        if table not in tables:
            raise InvalidRequest("--table", f"{table!r} is not one of {', '.join(tables)}")
    for name in options.allow:
        kind, _, rest = name.partition(":")
        table, _, index = rest.partition("/")
        if kind not in ALLOWABLE or table not in tables or kind.endswith("index") != bool(index):
            kinds = ", ".join(sorted(ALLOWABLE))
            raise InvalidRequest("--allow", f"{name!r} is not KIND:TABLE[/INDEX]; kinds: {kinds}")


def _warnings(profile: Environment, planned: list[Planned]) -> list[str]:
    texts = [f"error: {denial}" for table in planned for denial in table.live.denied]
    if profile.alarms and not profile.alarm_topic:
        texts.append("warning: the alarms notify nobody: set alarm_topic to an SNS topic")
    return texts


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidRequest("--yes", "is required, since the input is no terminal to ask on")
    return input("Apply? Only 'yes' is accepted: ") == "yes"


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Create and update the tables: read the live state, show a plan, apply it.",
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("plan", "apply", "status"))
    add_environment(parser)
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="TABLE",
        help="only this table; can be repeated",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND:TABLE[/INDEX]",
        help=f"allow one destructive change: {', '.join(sorted(ALLOWABLE))}",
    )
    parser.add_argument("--json", action="store_true", help="write the plan as JSON")
    apply = parser.add_argument_group("apply")
    apply.add_argument("--yes", action="store_true", help="apply without asking")
    apply.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, every row too; change nothing",
    )
    apply.add_argument(
        "--timeout",
        type=_seconds,
        default=RUN_SECONDS,
        metavar="SECONDS",
        help=f"how long the run may take in all ({RUN_SECONDS:.0f})",
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value  # a word without quotes
