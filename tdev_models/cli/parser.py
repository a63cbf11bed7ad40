"""How the arguments of every command are declared: help, examples, variables, usage errors."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from tdev_models.cli.codes import USAGE


def _formatter() -> type[argparse.HelpFormatter]:
    try:
        from rich_argparse import RawDescriptionRichHelpFormatter as Rich
    except ModuleNotFoundError:  # without the extra `cli`
        return argparse.RawDescriptionHelpFormatter
    Rich.text_markup = Rich.help_markup = False
    Rich.group_name_formatter = str
    return Rich


class Parser(argparse.ArgumentParser):
    """A parser whose errors exit with 64: argparse's own 2 means "changes pending" here."""

    def __init__(self, *, example: str = "", **more: Any) -> None:
        epilog = example and f"example:\n  {example}"
        super().__init__(
            **{"epilog": epilog, "formatter_class": _formatter(), "allow_abbrev": False, **more}
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: error: {message}; --help shows an example\n")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which tables are meant, each with its variable."""
    group = parser.add_argument_group("where")
    group.add_argument("--env", metavar="NAME", help="whose tables: dev, prod, ... [TDEV_ENV]")
    group.add_argument("--region", metavar="NAME", help="AWS region [AWS_REGION]")
    group.add_argument(
        "--endpoint", metavar="URL", help="another than AWS [AWS_ENDPOINT_URL_DYNAMODB]"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Add `--yes`."""
    parser.add_argument("--yes", action="store_true", help="do it without asking")


def add_page(parser: argparse.ArgumentParser, limit: int, most: int = 1000) -> None:
    """Add the options of a list."""
    parser.add_argument(
        "--limit",
        type=int,
        default=limit,
        metavar="N",
        help=f"1 to {most} lines (%(default)s)",
    )
    parser.add_argument("--cursor", help="of the page before, as it printed it")
