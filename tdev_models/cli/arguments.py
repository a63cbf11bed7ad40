"""The arguments of each command."""

from __future__ import annotations

import argparse
from pathlib import Path

from tdev_models.cli.parser import Parser, add_page, add_yes
from tdev_models.results import SessionStatus

DEFAULT_PORT = 8422
DEFAULT_DATA = Path(".tdev/local.db")
DEFAULT_REQUEST = "a todo app with React and a REST API"
READ_PRICE, WRITE_PRICE = 0.125, 0.625
"""USD for a million units, on demand, in us-east-1."""


def nothing(parser: Parser) -> None:
    """Declare nothing."""


def sessions(parser: Parser) -> None:
    """Declare which sessions, and how old."""
    parser.add_argument(
        "--status",
        type=str.upper,
        choices=[str(status) for status in SessionStatus],
        action="append",
        help="of this status; can be repeated (ACTIVE and FAILED, unless anything is given)",
    )
    parser.add_argument("--user", metavar="ID", help="of this user, whatever their status")
    parser.add_argument("--due", action="store_true", help="that wait to be resumed now")
    parser.add_argument("--all", action="store_true", help="of every status")
    parser.add_argument("--since", metavar="TIME", help="created since: '2 hours ago', ISO 8601")
    parser.add_argument("--older-than", metavar="TIME", help="created before: 90m, yesterday")
    add_page(parser, 20)


def show(parser: Parser) -> None:
    """Declare which session, and how much of it."""
    _add_session(parser)
    parser.add_argument(
        "--payloads",
        action="append",
        metavar="AGENT",
        help="in- and output of this agent, too; can be repeated",
    )
    parser.add_argument(
        "--tracebacks", action="store_true", help="the traceback of each failed attempt, too"
    )


def watch(parser: Parser) -> None:
    """Declare what to watch, and how often."""
    parser.add_argument("session", nargs="?", metavar="ID", help="a session; else all ACTIVE ones")
    parser.add_argument(
        "--poll", type=float, default=2.0, metavar="SECONDS", help="between reads (%(default)s)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=20,
        metavar="N",
        help="sessions shown, without ID (%(default)s)",
    )


def failures(parser: Parser) -> None:
    """Declare which failures."""
    parser.add_argument(
        "--since",
        default="24 hours ago",
        metavar="TIME",
        help="'2 hours ago', 90m, yesterday, ISO 8601 (%(default)s)",
    )
    parser.add_argument("--agent", metavar="NAME", help="of this agent")
    parser.add_argument("--open", action="store_true", help="only what is FAILED now")
    parser.add_argument("--each", action="store_true", help="one by one, not by message")
    add_page(parser, 100)


def resume(parser: Parser) -> None:
    """Declare which session, by which runner."""
    _add_session(parser)
    parser.add_argument("runner", help="module:function, called with the resumed session")
    _add_claim(parser)


def release(parser: Parser) -> None:
    """Declare which session, from whom."""
    _add_session(parser)
    _add_claim(parser)


def abandon(parser: Parser) -> None:
    """Declare which session, and why."""
    _add_session(parser)
    parser.add_argument("--reason", required=True, help="what others will read")
    add_yes(parser)


def rekey(parser: Parser) -> None:
    """Declare what to do besides."""
    parser.add_argument(
        "--delete-old",
        action="store_true",
        help="then delete large payloads that are under another key, or in clear where they are to "
        "be encrypted; only once every worker has the key and the same fields",
    )
    add_yes(parser)


def workers(parser: Parser) -> None:
    """Declare how many."""
    add_page(parser, 50, most=100)


def projects(parser: Parser) -> None:
    """Declare whose."""
    parser.add_argument("user", metavar="USER", help="the user's id")
    parser.add_argument(
        "--order", choices=("recent", "project_id"), default="recent", help="(%(default)s)"
    )
    add_page(parser, 20)


def recover(parser: Parser) -> None:
    """Declare the runner, and how to recover."""
    parser.add_argument("runner", help="module:function, called with each resumed session")
    parser.add_argument("--watch", action="store_true", help="go on until SIGTERM or Ctrl-C")
    for name, kind, default, meaning in (
        ("--poll", float, 10.0, "seconds between two rounds, with --watch"),
        ("--older-than", float, 0.0, "leave out sessions updated in the last N seconds"),
        ("--max-attempts", int, 12, "resumes in a row without progress before it is abandoned"),
        ("--backoff", float, 30.0, "seconds to wait after a first failure, at most"),
        ("--concurrency", int, 1, "sessions at once"),
    ):
        parser.add_argument(
            name, type=kind, default=default, metavar="N", help=f"{meaning} (%(default)s)"
        )


def report(parser: Parser) -> None:
    """Declare the range of a report."""
    since = parser.add_mutually_exclusive_group()
    since.add_argument("--days", type=float, default=7, help="how far back (%(default)s)")
    since.add_argument("--start", metavar="TIME", help="since: '2 days ago', ISO 8601; not --days")
    parser.add_argument("--end", metavar="TIME", help="until (now)")


def metrics(parser: Parser) -> None:
    """Declare which metric, and its groups."""
    parser.add_argument("name", help="of the metric: agent_execution_time")
    parser.add_argument("--agent", help="only this agent's samples")
    parser.add_argument("--dimension", help="only samples of this dimension")
    parser.add_argument(
        "--by", choices=("hour", "day", "agent", "dimension"), default="day", help="(%(default)s)"
    )
    report(parser)


def ab(parser: Parser) -> None:
    """Declare which variants of which agent."""
    for name, meaning in (
        ("agent", "the agent"),
        ("a", "the variant to compare with"),
        ("b", "the variant that is compared"),
    ):
        parser.add_argument(name, help=meaning)
    parser.add_argument("--metric", default="agent_execution_time", help="(%(default)s)")
    parser.add_argument(
        "--weights", metavar="A=N,B=N", help="by which they were assigned: old=9,new=1 (equal)"
    )
    parser.add_argument(
        "--effect",
        type=float,
        default=0.05,
        help="the size of effect that 'needed' is for (%(default)s)",
    )
    report(parser)


def ui(parser: Parser) -> None:
    """Declare where the page is, and whether it may act."""
    parser.add_argument(
        "--port", type=int, default=8423, metavar="N", help="on 127.0.0.1; 0: any (%(default)s)"
    )
    parser.add_argument(
        "--act",
        action="store_true",
        help="let who has the token that is printed release and abandon sessions",
    )


def page_report(parser: Parser) -> None:
    """Declare the file, its range and its language."""
    report(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="which is overwritten"
    )
    parser.add_argument("--language", choices=("en", "ko"), default="en", help="(%(default)s)")
    parser.add_argument(
        "--ab",
        nargs="+",
        action="append",
        default=[],
        metavar=("AGENT A B", "WEIGHTS"),
        help="variant B of an agent against A, and where they were assigned unevenly by which "
        "weights: old=9,new=1; can be repeated",
    )


def demo(parser: Parser) -> None:
    """Declare what to build, and at which price."""
    parser.add_argument(
        "request", nargs="?", default=DEFAULT_REQUEST, help="what to build (%(default)s)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the engine and its data")
    for name, price in (("read", READ_PRICE), ("write", WRITE_PRICE)):
        parser.add_argument(
            f"--{name}-price",
            type=float,
            default=price,
            metavar="USD",
            help=f"of a million {name} units; on demand in us-east-1: %(default)s",
        )


def local(parser: Parser) -> None:
    """Declare what to do with the engine."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("start", "status", "stop"),
        default="start",
        help="start one and stay (unless given otherwise), say whether it runs, end it; or "
        "'-- COMMAND': run a command with the environment set, in an engine that runs or its own",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        metavar="N",
        help="on 127.0.0.1 (%(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        default=DEFAULT_DATA,
        help="where the data is kept (%(default)s)",
    )


def completion(parser: Parser) -> None:
    """Declare the shell."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="yours")


def _add_session(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="ID", help="the session's id")


def _add_claim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-agent", metavar="NAME", help="begin again at this agent")
    parser.add_argument(
        "--force", action="store_true", help="from a live owner, or though it is ABANDONED"
    )
    add_yes(parser)
