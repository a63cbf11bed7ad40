"""The command: `python -m migrations`, and `tdev migrate` from a wheel."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import NoReturn

from tdev_models import settings
from tdev_models.errors import InvalidRequest, TdevError
from tdev_models.migrations import environments, report, spec
from tdev_models.migrations.apply import InProgress, Refused, Run, plan
from tdev_models.migrations.calls import Calls


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse exits with 2, which means "changes pending" here.
        self.print_usage(sys.stderr)
        self.exit(report.USAGE, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None, prog: str = "python -m migrations") -> int:
    """Run the command and return its exit code.

    0 clean or applied, 1 error, 2 changes pending, 3 needs `--allow` or impossible, 5 still in
    progress, 64 usage.
    """
    try:
        options = _parser(prog).parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        return _run(options)
    except InvalidRequest as error:
        return _failed(error, report.USAGE)
    except Refused as error:
        return _failed(error, report.REFUSED)
    except InProgress as error:
        return _failed(error, report.IN_PROGRESS)
    except TdevError as error:
        return _failed(error, report.ERROR)


def _failed(error: TdevError, code: int) -> int:
    sys.stderr.write(f"error: {error}\n")
    return code


def _run(options: argparse.Namespace) -> int:
    chosen = settings.current()
    if options.env:
        chosen = dataclasses.replace(chosen, environment=options.env)
    environment = environments.load(chosen.environment, options.config, dict(options.set))
    tables = spec.declared(chosen, environment)
    calls = Calls(chosen)
    planned = plan(calls, tables)
    changes = [change for of in planned for change in of.changes]
    code = report.exit_code(planned)
    sys.stdout.write("\n".join([*report.lines(changes), report.summary(changes)]) + "\n")
    if options.what != "apply" or code != report.PENDING:
        return code
    if not options.yes and not _agreed():
        return report.PENDING
    Run(calls).apply(planned)
    return report.CLEAN


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidRequest("--yes", "is needed where nobody can answer")
    return input("Apply? Only 'yes' is accepted: ") == "yes"


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="Create and update the tables.")
    parser.add_argument("what", choices=("plan", "apply", "status"))
    parser.add_argument("--env")
    parser.add_argument("--yes", action="store_true")
    parser.set_defaults(config=None, set=[])
    return parser
