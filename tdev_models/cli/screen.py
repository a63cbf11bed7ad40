"""What a command prints: a screen for people, or JSON lines for machines."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from tdev_models import settings
from tdev_models.errors import InvalidRequest
from tdev_models.results import RequestEvent

READS = ("GetItem", "Query", "TransactGetItems")


class PipedConsole(Console):
    """A console whose reader may go: `main` ends the command then, where Rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Raise the error that Rich has caught."""
        raise BrokenPipeError


class Cost:
    """How many requests there were, and their units: an `on_request` hook, of any thread.

    Attributes:
        reads: the read units so far.
        writes: the write units so far.
    """

    def __init__(self) -> None:
        self._requests, self.reads, self.writes = 0, 0.0, 0.0
        self._lock = threading.Lock()

    def __call__(self, event: RequestEvent) -> None:
        """Count one request."""
        with self._lock:
            self._requests += 1
            if event.operation in READS:
                self.reads += event.units
            else:
                self.writes += event.units

    def __str__(self) -> str:
        units = [f"{self.reads:g} read units"] * bool(self.reads)
        units += [f"{self.writes:g} write units"] * bool(self.writes)
        requests = f"{self._requests} request{'s' * (self._requests != 1)}"
        return ", ".join([requests, *units])


class Screen:
    """The screen of one command.

    Attributes:
        json: whether machines read it; then only `line` prints.
        console: what it is printed on.
    """

    def __init__(self, as_json: bool) -> None:
        self.json = as_json
        # On a terminal `Live` would break lines of JSON at its width.
        is_terminal = False if as_json else None
        # Names and messages are the users' own: nothing in them is markup.
        self.console = PipedConsole(
            markup=False, emoji=False, highlight=False, force_terminal=is_terminal
        )
        self._cost = Cost()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Print where the calls inside go, and afterwards what they have cost."""
        self.print(place())
        with settings.use(on_request=self._cost):
            yield
        self.print(Text(str(self._cost), style="dim"))

    def line(self, record: Mapping[str, Any], **more: Any) -> None:
        """Print one record as a line of JSON."""
        if self.json:
            sys.stdout.write(json.dumps({**more, **record}, default=str) + "\n")
            sys.stdout.flush()

    def hint(self, text: str) -> None:
        """Print what to type next, in one line however long, so that it can be copied."""
        self.whole(text, "dim")

    def whole(self, text: str, style: str = "") -> None:
        """Print lines as long as they are: to break them would change JSON, or code."""
        if not self.json:
            self.console.print(Text(text, style=style), soft_wrap=True)

    def print(self, *what: RenderableType) -> None:
        """Print for people."""
        if not self.json:
            for one in what:
                self.console.print(Text(one) if isinstance(one, str) else one)


def place() -> Text:
    """Return which tables are meant; production is marked."""
    chosen = settings.current()
    tables = f"{chosen.table_name('*')} on {chosen.endpoint or chosen.region or 'AWS'}"
    if chosen.environment == "prod":
        return Text.assemble((" PROD ", "bold white on red"), f" {tables}")
    return Text(tables, style="dim")


def suggested(options: argparse.Namespace, *words: str) -> str:
    """Return a command to copy, about the tables that the options name."""
    places = {name: getattr(options, name, None) for name in ("env", "region", "endpoint")}
    where = [word for name, value in places.items() if value for word in (f"--{name}", value)]
    # What follows "--" stands at the end.
    at = words.index("--") if "--" in words else len(words)
    return shlex.join(["tdev", *words[:at], *where, *words[at:]])


def agreed(question: str, yes: bool) -> bool:
    """Ask whether to do what cannot be undone; production wants its name typed.

    Raises:
        InvalidRequest: there is nobody to ask.
    """
    if yes:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidRequest("--yes", "is required, since the input is no terminal to ask on")
    environment = settings.current().environment
    wanted = "prod" if environment == "prod" else "yes"
    sys.stderr.write(f"{place().plain}\n{question}\nType '{wanted}' to do it: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == wanted
