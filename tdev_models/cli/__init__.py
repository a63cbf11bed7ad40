"""The command `tdev`."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tdev_models import settings
from tdev_models.cli import codes
from tdev_models.cli.commands import COMMANDS, FORWARDED, chosen_places, parser
from tdev_models.cli.logs import AsText
from tdev_models.errors import ConfigurationError, TdevError, plain

_EXTRAS = {"rich": "cli", "shtab": "cli", "jinja2": "web", "starlette": "web", "uvicorn": "web"}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code; `tdev --help` lists them."""
    arguments = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test's own stream
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if logging.lastResort is not None:  # what prints warnings
        logging.lastResort.setFormatter(AsText())
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (TdevError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return _without_reader()
        sys.stderr.write(f"error: {plain(str(error))}\n")
        return codes.code_of(error)
    except KeyboardInterrupt:
        return codes.INTERRUPTED
    return code


def _run(arguments: list[str]) -> int:
    if not arguments:
        parser().print_help()
        return codes.DONE
    if arguments[0] in FORWARDED:
        command, *rest = arguments
        return int(import_module(FORWARDED[command][0]).main(rest, prog=f"tdev {command}"))
    arguments, program = _with_program(arguments)
    try:
        options = parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    options.program = program
    for name in ("SIGTERM", "SIGHUP"):  # what was started is ended, as with Ctrl-C
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # by nohup
            signal.signal(number, signal.default_int_handler)
    run = _loaded(COMMANDS[options.command].runs)
    with settings.use(**places) if (places := chosen_places(options)) else contextlib.nullcontext():
        return int(run(options))


def _with_program(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take the command that `tdev local -- COMMAND` is to run from the arguments."""
    if arguments[0] != "local" or "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _loaded(runs: str) -> Callable[[Any], int]:
    module, _, function = runs.partition(":")
    with _extra():
        run: Callable[[Any], int] = getattr(import_module(f"{__name__}.{module}"), function)
    return run


@contextmanager
def _extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name not in _EXTRAS:
            raise
        extra = _EXTRAS[missing.name]
        raise ConfigurationError(
            f"this command needs {missing.name}: pip install 'tdev-models[{extra}]'"
        ) from None


def _without_reader() -> int:
    """End in silence: whoever read the output, as `head` does, has gone."""
    # Python flushes what is left at its exit, and would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return codes.NO_READER
