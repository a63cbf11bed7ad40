"""The command `tdev`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from tdev_models.errors import ConfigurationError, TdevError

USAGE = 64

# Commands that parse their own arguments.
_FORWARDED = {
    "migrate": ("tdev_models.migrations.command", "create and update the tables"),
    "iam": ("tdev_models.migrations.iam", "print the policy of each role"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse exits with 2, which means "changes pending" to `tdev migrate`.
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 error, 64 usage, 130 interrupted.

    `tdev migrate` has codes of its own.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in _FORWARDED:
        command, *rest = arguments
        return int(import_module(_FORWARDED[command][0]).main(rest, prog=f"tdev {command}"))
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    for name in ("SIGTERM", "SIGHUP"):  # what was started is ended, as with Ctrl-C
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        return _RUN.get(options.command, _report)(options)
    except (TdevError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _demo(options: argparse.Namespace) -> int:
    with _rich():
        from tdev_models.cli.demo.story import run
    return run(options.request, options.keep)


def _report(options: argparse.Namespace) -> int:
    with _rich():
        from tdev_models.cli.reports import run
    return run(options)


@contextmanager
def _rich() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name != "rich":
            raise
        raise ConfigurationError(
            "this command prints with rich: pip install 'tdev-models[cli]'"
        ) from None


def _local(options: argparse.Namespace) -> int:
    from tdev_models.cli.local import run

    return run(options.data, options.port)


def _recover(options: argparse.Namespace) -> int:
    from tdev_models.cli.recover import run

    chosen = {
        "older_than": timedelta(seconds=options.older_than),
        "max_attempts": options.max_attempts,
        "backoff_seconds": options.backoff,
        "concurrency": options.concurrency,
    }
    return run(options.runner, options.poll if options.watch else None, chosen)


_RUN = {"demo": _demo, "local": _local, "recover": _recover}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tdev", description="The memory of the T-Developer pipeline.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a pipeline run that is killed, resumed, and shown")
    demo.add_argument("request", help='what to build: "a todo app with React and a REST API"')
    demo.add_argument("--keep", action="store_true", help="leave the engine and its data")

    local = commands.add_parser("local", help="a DynamoDB engine on this machine, with the tables")
    local.add_argument("--port", type=int, help="on 127.0.0.1 (default: a free one)")
    local.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        default=Path(".tdev/local.db"),
        help="where the data is kept (default: %(default)s)",
    )

    recover = commands.add_parser("recover", help="resume failed and stalled sessions")
    recover.add_argument("runner", help="module:function, called with each resumed session")
    recover.add_argument("--watch", action="store_true", help="go on until SIGTERM or Ctrl-C")
    for name, kind, default, meaning in (
        ("--poll", float, 10.0, "seconds between two rounds, with --watch"),
        ("--older-than", float, 0.0, "leave out sessions updated in the last N seconds"),
        ("--max-attempts", int, 12, "resumes in a row without progress before it is abandoned"),
        ("--backoff", float, 30.0, "seconds to wait after a first failure, at most"),
        ("--concurrency", int, 1, "sessions at once"),
    ):
        recover.add_argument(
            name, type=kind, default=default, metavar="N", help=f"{meaning} (%(default)s)"
        )
    _add_reports(commands)
    for name, (_, purpose) in _FORWARDED.items():
        commands.add_parser(name, help=purpose)
    return parser


def _add_reports(commands: argparse._SubParsersAction[_Parser]) -> None:
    metrics = commands.add_parser("metrics", help="one metric, by hour, day, agent or dimension")
    metrics.add_argument("name", help="of the metric: agent_execution_time")
    metrics.add_argument("--agent", help="only this agent's samples")
    metrics.add_argument("--dimension", help="only samples of this dimension")
    metrics.add_argument("--by", choices=("hour", "day", "agent", "dimension"), default="day")
    usage = commands.add_parser("usage", help="sessions, how far they get, technologies, downloads")
    agents = commands.add_parser("agents", help="runs, failures, retries and times of each agent")
    ab = commands.add_parser("ab", help="one variant of an agent against another")
    for name in ("agent", "a", "b"):
        ab.add_argument(name)
    ab.add_argument("--metric", default="agent_execution_time", help="default: %(default)s")
    ab.add_argument(
        "--effect",
        type=float,
        default=0.05,
        help="the size of effect that 'needed' is for (default: %(default)s)",
    )
    for report in (metrics, usage, agents, ab):
        report.add_argument(
            "--days", type=float, default=7, help="how far back (default: %(default)s)"
        )
        report.add_argument(
            "--start", metavar="TIME", help="ISO 8601, local without a zone; instead of --days"
        )
        report.add_argument("--end", metavar="TIME", help="the same (default: now)")
        report.add_argument("--json", action="store_true", help="for machines")
