"""The command: `python -m migrations` in a checkout, `tdev migrate` when installed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import textwrap
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tdev_models import settings
from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.migrations import cost, declared, environments, report
from tdev_models.migrations.apply import Run
from tdev_models.migrations.backfill import Backfill, Function, load
from tdev_models.migrations.calls import RUN_SECONDS, Calls, InProgress
from tdev_models.migrations.declared import Table
from tdev_models.migrations.diff import ALLOWABLE
from tdev_models.migrations.environments import Environment
from tdev_models.migrations.export import cloudformation
from tdev_models.migrations.live import Live, read
from tdev_models.migrations.plan import Planned, Refused, plan, stop_if_refused, undeclared
from tdev_models.settings import Settings

_COMMANDS = """\
Create and update the tables: read the live state, show a plan, apply it.

  plan      show what apply would change
  apply     show it, ask, and change it
  status    show the state of each table, and what apply would change
  backfill  give the rows of TABLE what they lack: module:function is given each
            row and returns the attributes to set
  export    print the tables as a template of CloudFormation; nothing is sent
"""
_KINDS = textwrap.fill(
    ", ".join(sorted(ALLOWABLE)),
    78,
    initial_indent="  ",
    subsequent_indent="  ",
    break_on_hyphens=False,
)
_NOTES = f"""\
kinds of --allow:
{_KINDS}

exit codes:
    0  clean, or applied
    1  error
    2  changes pending: plan, status, and apply or backfill with --dry-run or
       answered with no
    3  refused: a change needs --allow, or is impossible
    5  still in progress: run again
   64  wrong usage
  130  interrupted: run again to go on
  141  who read the output has gone
"""


class Parser(argparse.ArgumentParser):
    """A parser that exits with 64: argparse's own 2 means "changes pending" here."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and exit."""
        self.print_usage(sys.stderr)
        self.exit(report.USAGE, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None, prog: str = "python -m migrations") -> int:
    """Run one of the commands and return the exit code (see `--help`)."""
    try:
        options = parser(prog).parse_intermixed_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        try:
            code = _run(options)
        except (TdevError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            code = _failed(options, error)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, as `head` does, has gone
        # Python flushes what is left at its exit, and would fail again.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return report.NO_READER
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: nothing is half done; run again to go on\n")
        return report.INTERRUPTED


def _failed(options: argparse.Namespace, error: Exception) -> int:
    """Say why a run has failed and return its exit code."""
    codes: dict[type[Exception], int] = {
        InvalidRequest: report.USAGE,
        Refused: report.REFUSED,
        InProgress: report.IN_PROGRESS,
    }
    code = codes.get(type(error), report.ERROR)
    text = "; ".join([str(error), *getattr(error, "__notes__", ())])
    _say("error", text)
    if options.json:
        sys.stdout.write(json.dumps({"error": text, "exit_code": code}, indent=2) + "\n")
    return code


def add_environment(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose an environment and change its settings."""
    parser.add_argument("--env", metavar="NAME", help="dev, prod or one of --config (TDEV_ENV)")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"TOML file with a section for each environment (default: {environments.FILE} of this"
        " folder, or of the nearest one above)",
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
    """Return the settings and the environment that the options choose, and note the file used.

    Raises:
        InvalidRequest: an unknown environment or setting, or a wrong value.
    """
    chosen = settings.current()
    if options.env is not None:  # an empty one, of a variable that is not set, is no choice of dev
        chosen = dataclasses.replace(chosen, environment=options.env)
    options.config = options.config or environments.find_file(Path.cwd())
    return chosen, environments.load(chosen.environment, options.config, dict(options.set))


def _run(options: argparse.Namespace) -> int:
    chosen, profile = chosen_environment(options)
    allowed = {*options.allow, *profile.allow}
    tables = _chosen_tables(options, allowed, declared.tables(chosen, profile))
    if options.what == "export":
        sys.stdout.write(json.dumps(cloudformation(tables), indent=2) + "\n")
        return report.CLEAN
    function = load(options.more[1]) if options.more else None
    calls = Calls(chosen, options.backfill_units)
    place = calls.place(profile.account, profile.region)
    if function:
        if not options.json:
            _show(report.where(chosen.environment, place, options.config))
        return _backfill(options, calls, tables[0], function)
    planned = plan(calls, tables, allowed, rows=options.rows != "none")
    others = [] if options.table else undeclared(calls, tables)
    code = report.exit_code(planned)

    def as_json() -> str:
        return report.as_json(chosen.environment, place, planned, others, code) + "\n"

    if not options.json:
        _show(report.where(chosen.environment, place, options.config))
        if options.what != "status":
            _show(cost.as_text(tables))
        _show(report.as_text(planned, others, options.what == "status"))
    # On a terminal the plan has just shown what it refuses.
    _say_errors(planned, refusals=not sys.stdout.isatty())
    if profile.alarms and not profile.alarm_topic:
        _say("warning", "the alarms notify nobody: set alarm_topic to an SNS topic")
    if options.expect:  # before --out, which may name the same file
        _stop_if_changed(options.expect, json.loads(as_json()))
    if options.out:
        options.out.write_text(as_json(), "utf-8")
    if code in (report.PENDING, report.IN_PROGRESS):
        code = _go_on(options, calls, allowed, planned, code)
    if options.json:
        sys.stdout.write(as_json())
    return code


def _go_on(
    options: argparse.Namespace,
    calls: Calls,
    allowed: set[str],
    planned: list[Planned],
    code: int,
) -> int:
    """Check the rows, and apply the plan, as the options say; return the exit code."""
    applies = options.what == "apply" and not options.dry_run
    # Ask even without a pending change: a table that is being created may turn out to have some.
    if applies and not options.yes and not _agreed():
        return code
    total = sum(change.pending for table in planned for change in table.changes)
    progress = report.Progress(sys.stderr, calls, total)
    rows = options.rows or ("all" if options.what == "apply" else "sample")
    run = Run(calls, allowed, options.timeout, rows, progress.step, progress.wait)
    if not applies:
        with _telling_where_to_go_on(run):
            run.check_rows(planned)
        _say_errors(planned, refusals=True)
        return report.exit_code(planned)
    with _telling_where_to_go_on(run):
        sent = run.apply(planned)
    progress.write_line(f"Applied with {sent} call{'s' * (sent != 1)}. The tables are as declared.")
    return report.CLEAN


def _backfill(options: argparse.Namespace, calls: Calls, table: Table, function: Function) -> int:
    live = read(calls, table, Live(), ("table",))
    stop_if_refused(live, [])
    if not live.description:
        raise TdevError(f"there is no table {table.name}")
    if live.made_or_deleted:
        status = live.description["TableStatus"]
        raise InProgress(f"{table.name} is {status}; run again once it is not")
    if not options.dry_run and not options.yes and not _agreed():
        return report.PENDING
    progress = report.Progress(sys.stderr, calls, 0)
    deadline = time.monotonic() + options.timeout
    work = Backfill(calls, table, live, function, deadline, options.dry_run, progress.wait)
    work.begun = _begun(options.rows)
    with _telling_where_to_go_on(work):
        work.run()
    progress.write_line("; ".join([work.done, *work.samples]))
    code = report.PENDING if options.dry_run and work.filled else report.CLEAN
    if options.json:
        sys.stdout.write(json.dumps({"summary": work.done, "exit_code": code}, indent=2) + "\n")
    return code


def _begun(rows: str | None) -> tuple[int, int] | None:
    """Return the DONE and the PARTS of `--rows TABLE:DONE/PARTS`; None of another choice."""
    done, _, total = (rows or "").partition(":")[2].partition("/")
    return (int(done), int(total)) if total.isdecimal() and done.isdecimal() else None


@contextmanager
def _telling_where_to_go_on(work: Run | Backfill) -> Iterator[None]:
    """Say with which `--rows` another run goes on, however this one ends before its end."""
    try:
        yield
    except BaseException as error:
        if work.goes_on and work.goes_on not in str(error):
            _say("notice", f"--rows {work.goes_on} goes on where this run ends")
        raise


def _chosen_tables(
    options: argparse.Namespace, allowed: set[str], declared_tables: list[Table]
) -> list[Table]:
    """Return the tables that the options name, or all; check those and other names."""
    if len(options.more) != 2 * (options.what == "backfill"):
        raise InvalidRequest("backfill", "takes TABLE and module:function, others take neither")
    if options.more and options.table:
        raise InvalidRequest("--table", "backfill takes its table without this option")
    options.table += options.more[:1]
    for name in ("allow", "out", "expect"):
        if options.what in ("backfill", "export") and getattr(options, name):
            raise InvalidRequest(f"--{name}", f"is not for {options.what}")
    _check_names(options, allowed, [table.short for table in declared_tables])
    return [one for one in declared_tables if not options.table or one.short in options.table]


def _check_names(options: argparse.Namespace, allowed: set[str], tables: list[str]) -> None:
    for table in options.table:
        if table not in tables:
            raise InvalidRequest("--table", f"{table!r} is not one of {', '.join(tables)}")
    words = ("all",) if options.what == "backfill" else ("sample", "all", "none")
    if (rows := options.rows or "all") not in words:
        part, total = _begun(rows) or (0, 0)
        if rows.partition(":")[0] not in (options.table or tables) or part >= total:
            usable = ", ".join(words)
            raise InvalidRequest("--rows", f"use {usable}, or TABLE:DONE/PARTS as printed")
    for name in sorted(allowed):
        kind, _, rest = name.partition(":")
        table, _, index = rest.partition("/")
        if kind not in ALLOWABLE or table not in tables or kind.endswith("index") != bool(index):
            kinds = ", ".join(sorted(ALLOWABLE))
            raise InvalidRequest("--allow", f"{name!r} is not KIND:TABLE[/INDEX]; kinds: {kinds}")


def _stop_if_changed(file: Path, now: dict[str, Any]) -> None:
    """Refuse what the plan that was written to a file has not; what is done of that may be gone."""
    try:
        then = json.loads(file.read_text("utf-8"))
        places = ("environment", "account", "region", "endpoint")
        new = [f"{name} {now[name]}" for name in places if now[name] != then[name]]
        reviewed = [key for change in then["changes"] for key in _keys(change, "+")]
        new += [
            change["line"]
            for change in now["changes"]
            if change["symbol"] != "=" and not any(key in reviewed for key in _keys(change, "+~"))
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidRequest("--expect", f"{file} holds no plan of --out: {error}") from error
    if new:
        raise Refused(f"not in the plan of {file}: {'; '.join(new)}")


def _keys(change: dict[str, Any], by_result: str) -> Iterator[list[Any]]:
    """Yield what tells a change from others: with these symbols also what it makes.

    So a run finds what an earlier one has half made in the plan that makes it.
    """
    made = [change[value] for value in ("table", "target", "after")]
    yield [change["symbol"], change["before"], *made]
    if change["symbol"] in by_result:
        yield made


def _say_errors(planned: list[Planned], refusals: bool) -> None:
    """Write what the role may not read and, if asked, what is refused."""
    for table in planned:
        for denial in table.live.denied:
            _say("error", denial)
        for change in table.changes:
            if refusals and change.symbol == "!":
                _say("error", report.line(change)[2:])


def _show(text: str) -> None:
    sys.stdout.write(report.for_screen(text, sys.stdout) + "\n")
    sys.stdout.flush()


def _say(kind: str, text: str) -> None:
    """Write an error or a warning; where GitHub runs the command, as its annotation."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        sys.stderr.write(f"::{kind}::{escaped}\n")
    else:
        sys.stderr.write(report.for_screen(f"{kind}: {text}", sys.stderr) + "\n")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidRequest("--yes", "is required, since the input is no terminal to ask on")
    # Not to the output, which may be a file, and JSON.
    sys.stderr.write("Apply? Only 'yes' is accepted: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == "yes"


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description=_COMMANDS,
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("plan", "apply", "status", "backfill", "export"))
    parser.add_argument(
        "more", nargs="*", default=[], metavar="TABLE module:function", help="of backfill"
    )
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
        help="allow one destructive change, of a kind named below; can be repeated",
    )
    parser.add_argument(
        "--json", action="store_true", help="write the plan as JSON, or what a backfill did"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the plan to a file, for --expect"
    )
    parser.add_argument(
        "--rows",
        metavar="HOW",
        help="which rows to check before a new index or TTL: sample (plan), all (apply), none; or"
        " TABLE:DONE/PARTS, as a run that was stopped prints it, a backfill too",
    )
    parser.add_argument(
        "--backfill-units",
        type=_units,
        default=0,
        metavar="UNITS",
        help="read, fill and index rows at so many units a second (half of the table's; on-demand"
        " tables are not paced without it)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=RUN_SECONDS,
        metavar="SECONDS",
        help=f"how long the run may take in all ({RUN_SECONDS:.0f})",
    )
    parser.add_argument(
        "--format",
        choices=("cloudformation",),
        default="cloudformation",
        help="of export; the only one",
    )
    apply = parser.add_argument_group("apply")
    apply.add_argument("--yes", action="store_true", help="apply without asking")
    apply.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, every row too; change nothing",
    )
    apply.add_argument(
        "--expect", type=Path, metavar="FILE", help="refuse what the plan of --out has not"
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


def _units(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of units, at least 1")
    return int(text)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    if name == "account" and value.isdecimal():  # a shell takes the quotes that TOML would need
        return name, value
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value  # a word without quotes
