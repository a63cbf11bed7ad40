"""`python -m tests.fuzz [COUNT [SEED]]`: random, structured and hostile input, a million times.

Each goes to a public call, to a parser, or is a damaged row that a call reads. It is a violation if

- an exception is no TdevError,
- InvalidRequest is raised after a request was sent,
- one input takes longer than a second, or 100 MB.

Prints the counts, and up to three violations of each place; exits with 1 if there is one.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from tdev_models import AGENTS, Settings, settings, sync
from tdev_models.dynamodb import chunks, cursors
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.encryption import decrypt, encrypt
from tdev_models.errors import InvalidRequest, TdevError, Unavailable
from tdev_models.json_decoding import decode
from tdev_models.metrics.totals import unpack
from tdev_models.models import TABLES
from tdev_models.security.fields import Place

MOST_SECONDS, MOST_KB = 1.0, 100 * 1024
# It waits for what earlier calls began.
NOT_CALLED = {"flush_metrics"}
# It would go on for ever.
NOT_GIVEN = {"poll_seconds"}


class Colour(Enum):
    RED = "red"


class Broken:
    """Refuses everything that Python may ask of an object."""

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise ZeroDivisionError


SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 9, 10, 100, 1001, 2**63, -(2**200), 10**400),
    *(0.0, -0.0, 0.5, 1e-70, 1e70, 1e308, math.nan, math.inf, -math.inf, 1.8e9),
    *("", " ", "s", "#", "a#b", "é", "\0", "\ud800", "x" * 3000, "x" * 400_000, "-".join(AGENTS)),
    *(
        "p-parser",
        "FAILED",
        "ACTIVE",
        "parser",
        "2026-01-01",
        "9999-12-31T24:00",
        "{}",
        "[[",
        "NaN",
    ),
    *("[" * 5000, '{"a":' * 300 + "1" + "}" * 300, "[]," * 5000, '"' + "\\" * 999 + '"'),
    *(b"", b"\xff" * 10, Decimal("1.5"), Decimal("NaN"), Decimal("1e400"), 1j, timedelta(days=1)),
    *(
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        UUID(int=5),
        PurePosixPath("/x"),
        Colour.RED,
    ),
    *(object(), Broken(), lambda: 1, range(3), AGENTS, {1, "a"}, frozenset({2}), ..., Colour),
)
# An index holds no item without its keys.
INDEX_KEYS: dict[str, Any] = {
    "status": {"S": "FAILED"},
    "worker_id": {"S": "#worker:w"},
    **{
        name: {"N": "1.7e9"}
        for name in ("due_at", "created_at", "start_time", "failed_at", "last_accessed")
    },
}
FIELDS = sorted({name for model in TABLES for name in model.get_attributes()} | {"timestamp"})
KEYS = (*FIELDS, 1, 1.5, True, None, (1, 2), "x")
ROW_TEXTS = [scalar for scalar in SCALARS if isinstance(scalar, str) and len(scalar) < 6000]


# What a call may well be given, so that more than its first check is met.
PLAUSIBLE: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("session_id", "project_id", "user_id", "unit_id", "download_id"), ("s", "é")),
    **dict.fromkeys(("agent_name", "agent", "from_agent"), ("parser", "search@7")),
    **dict.fromkeys(
        ("start", "since", "older_than"), (1.6999e9, datetime(2023, 11, 13, tzinfo=UTC))
    ),
    **dict.fromkeys(("name", "metric", "metric_name"), ("agent_execution_time", "m")),
    **dict.fromkeys(("input_data", "output_data"), ("{}", '[1, {"a": null}]', "x" * 100_000)),
    "execution_id": ("p-parser", "p"),
    "end": (1.7e9, datetime(2023, 11, 15, tzinfo=UTC)),
    "status": ("ACTIVE", "FAILED", "COMPLETED", "RUNNING"),
    "runner": (print, lambda session: None),
    "function": (print,),
    "weights": ({"a": 1, "b": 2},),
    "limit": (1, 1000),
    "a": ("a",),
    "b": ("b",),
    "experiment": ("e",),
    "reason": ("why",),
    "group_by": ("hour", "day", "agent", "dimension"),
    "percentiles": ((50, 99.9),),
    "concurrency": (1, 3),
    "max_attempts": (1, 12),
    "value": (1, 0.5),
    "accepts": (bool, None),
    "stop": (None,),
    "cursor": (None,),
}


def pick(dice: random.Random, choices: Sequence[Any]) -> Any:
    """Return one of the choices; quicker than `choice`, which is most of what this would do."""
    return choices[int(dice.random() * len(choices))]


def value(dice: random.Random, depth: int = 0) -> Any:
    """Return a random value, nested at times; seldom wide on more than its first level."""
    if depth > 3 or dice.random() < 0.7:
        return pick(dice, SCALARS)
    wide = depth == 0 or dice.random() < 0.02
    size = pick(dice, (0, 1, 3, 40) if wide else (0, 1, 3))
    if dice.random() < 0.5:
        return [value(dice, depth + 1) for _ in range(size)]
    return {pick(dice, KEYS): value(dice, depth + 1) for _ in range(size)}


def deep(dice: random.Random) -> Any:
    """Return a value that is nested deep, or holds itself."""
    made: Any = dice.choice(SCALARS)
    for _ in range(dice.choice((150, 250, 5000))):
        made = [made] if dice.random() < 0.5 else {"a": made}
    if isinstance(made, list) and dice.random() < 0.3:
        made.append(made)
    return made


def argument(dice: random.Random, name: str, wild: float) -> Any:
    """Return what to give as an argument, or as a field; `wild` is how likely it is wrong."""
    if dice.random() > wild:
        return pick(dice, PLAUSIBLE.get(name, (None,)))
    return deep(dice) if dice.random() < 0.02 else value(dice)


class Wire:
    """A transport that sends nothing: it answers with damaged rows, or not at all."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.sent = dice, 0

    def wrap(self, send: settings.Transport) -> settings.Transport:
        async def answer(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            self.sent += 1
            if operation == "Query":
                keys = INDEX_KEYS if "IndexName" in request else {}
                rows = [row(self.dice) | keys for _ in range(self.dice.randrange(4))]
                return {"Items": rows, "Count": len(rows)}
            if operation == "GetItem":
                return {"Item": row(self.dice)}
            if operation == "TransactGetItems":
                return {"Responses": [{"Item": row(self.dice)} for _ in request["TransactItems"]]}
            raise Unavailable("nobody there")

        return answer


def row(dice: random.Random) -> dict[str, Any]:
    """Return an item as a hostile writer leaves it: keys of some table, and anything else."""
    made: dict[str, Any] = {
        name: {"S": dice.choice(ROW_TEXTS)}
        for name in ("session_id", "execution_id", "agent_name", "user_id", "project_id", "date")
    }
    made["metric_name"] = {"S": dice.choice(("m##1##w", "m", "#" * 9, "a#b#x#c#d"))}
    for name in dice.sample(FIELDS, 8):
        kind, what = dice.choice(
            [
                ("S", dice.choice(ROW_TEXTS)),
                ("N", dice.choice(("1", "-5", "1.5", "1e125", "1700000000.123456789"))),
                ("B", dice.randbytes(dice.randrange(40))),
                ("BOOL", True),
                ("NULL", True),
                ("L", [{"S": "x"}]),
                ("M", {"0": {"M": {"number": {"N": "1"}}}}),
                ("M", {"x": {"S": "no attempt"}}),
            ]
        )
        made.setdefault(name, {kind: what})
    return made


def calls() -> list[Callable[[random.Random], Any]]:
    """Return what makes a call of each public function."""

    def of(function: Callable[..., Any]) -> Callable[[random.Random], Any]:
        parameters = inspect.signature(function).parameters.values()

        def call(dice: random.Random) -> Any:
            arguments: list[Any] = []
            keywords: dict[str, Any] = {}
            wild = pick(dice, (0.1, 0.3, 1.0))
            for parameter in parameters:
                if parameter.name in NOT_GIVEN:
                    continue
                made = argument(dice, parameter.name, wild)
                if parameter.kind is parameter.VAR_KEYWORD:
                    keywords |= {
                        name: argument(dice, name, wild) for name in dice.sample(FIELDS, 2)
                    }
                elif parameter.kind is parameter.POSITIONAL_ONLY:
                    arguments.append(made if isinstance(made, dict) else {"session_id": made})
                elif parameter.default is parameter.empty or dice.random() < 0.5:
                    keywords[parameter.name] = made
            result = function(*arguments, **keywords)
            return result.__enter__() if function is sync.track_session else result

        return call

    functions = [getattr(sync, name) for name in sync.__all__ if name not in NOT_CALLED]
    return [of(function) for function in functions if inspect.isfunction(function)]


def parsers() -> list[Callable[[random.Random], Any]]:
    """Return what gives hostile input to each parser."""
    client = BlockingClient.for_settings()

    def text(dice: random.Random) -> str:
        return "".join(dice.choices('[]{},:"\\ 0129.eE-+nulltrfasé\ud800', k=dice.randrange(200)))

    def bomb(dice: random.Random) -> str:
        return dice.choice(("[", "[],", '{"":', '"\\"', "1,", "\\u0000")) * dice.randrange(20_000)

    def envelope(dice: random.Random) -> str:
        known = {"codec": "zlib", "key": "a#", "chunks": 1, "size": 9, "sha256": "0" * 64}
        return json.dumps({**known, dice.choice([*known]): dice.choice((-1, 10**9, "x", None, []))})

    def forged_cursor(dice: random.Random) -> object:
        queries = (
            ("list_workers", client.sessions.name),
            ("get_failed_sessions", client.sessions.name, True),
            ("get_agent_executions", client.executions.name, "p"),
        )
        asked: tuple[Callable[..., Any], ...]
        asked = (
            sync.list_workers,
            sync.get_failed_sessions,
            partial(sync.get_agent_executions, "p"),
        )
        position: dict[str, Any] = {
            "session_id": {"S": "s"},
            "status": {"S": dice.choice(("WORKER", "FAILED"))},
            "due_at": {"N": "1"},
        }
        position[dice.choice([*position])] = dice.choice((1, None, [], {"S": ""}, {"N": "x"}))
        body = dice.choice((position, {"at": {"FAILED": position}, "bounds": 1}, [position]))
        number = dice.randrange(3)
        # As `encode` makes it, with its checksum.
        cursor = cursors.encode(queries[number], body)  # type: ignore[arg-type]
        return asked[number](cursor=cursor)

    def json_text(dice: random.Random) -> object:
        try:
            return decode(dice.choice((text, bomb))(dice))
        except ValueError:
            return None  # what it promises

    return [
        json_text,
        lambda dice: cursors.decode(("query",), dice.choice((text(dice), value(dice))), bool),
        forged_cursor,
        lambda dice: unpack(b"\x01" + dice.randbytes(dice.randrange(300))),
        lambda dice: drive(chunks.read(client, "e", dice.choice((text(dice), envelope(dice))))),
        lambda dice: Settings.from_env({"TDEV_" + dice.choice(("ENV", "AGENTS")): text(dice)}),
    ]


def messages() -> Callable[[random.Random], Any]:
    """Return what reads an encrypted field that was changed, cut, or made up."""
    client, place = BlockingClient.for_settings(), Place("agent-executions", ("e", "a"), "x")
    message = drive(encrypt(client, place, b"text"))

    def read(dice: random.Random) -> Any:
        at, end = sorted(dice.sample(range(len(message)), 2))
        changed = (
            message[:at] + dice.randbytes(dice.randrange(4)) + message[at + dice.randrange(4) :],
            message[:at] + message[end:],
            message[at:end],
            dice.randbytes(end),
        )
        return drive(decrypt(client, place, dice.choice(changed)))

    return read


def tried(
    targets: Sequence[Callable[[random.Random], object]],
    dice: random.Random,
    wire: Wire,
    met: Counter[str],
) -> tuple[float, str, str]:
    """Return how long one input took, what is wrong with what came of it, and where."""
    wire.sent = 0
    begun, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem, place = "", ""
    try:
        dice.choice(targets)(dice)
        met["accepted"] += 1
    except TdevError as error:
        met[type(error).__name__] += 1
        if isinstance(error, InvalidRequest) and wire.sent:
            problem = f"InvalidRequest after {wire.sent} requests: {error}"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((str(f) for f in reversed(frames) if "tdev_models" in f.filename), "")
        problem = f"{type(error).__name__}: {error} {place}"
    seconds = time.process_time() - begun  # others may be at work beside it
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if grown > MOST_KB:
        problem = problem or f"took {grown / 1024:.0f} MB"
    return seconds, problem, place


def main(count: int, seed: int, kms_key: str | None = None) -> int:
    dice = random.Random(seed)
    wire, violations = Wire(dice), 0
    met, places = Counter[str](), Counter[str]()
    made = Settings(
        region="us-east-1",
        transport=wire.wrap,
        retry_seconds=0,
        owner_retry_seconds=0,
        automatic_metrics=False,
        kms_key=kms_key,
    )
    with settings.use(made), quiet():
        targets = [*calls(), *parsers(), *([messages()] * 9 if kms_key else [])]
        for number in range(count):
            state = dice.getstate()
            seconds, problem, place = tried(targets, dice, wire, met)
            if seconds > MOST_SECONDS:  # or the machine stood still for a moment
                dice.setstate(state)
                seconds, problem, place = tried(targets, dice, wire, met)
            if seconds > MOST_SECONDS:
                problem = problem or f"took {seconds:.1f} s"
            if problem:
                violations += 1
                if places[place] < 3:
                    print(f"input {number} of seed {seed}: {problem[:400]}", flush=True)
                places[place] += 1
    figures = ", ".join(f"{name} {times:,}" for name, times in sorted(met.items()))
    print(f"{count:,} inputs of seed {seed}: {figures}; {violations} violations")
    return 1 if violations else 0


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: each row that is passed over would be."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    count, seed = arguments + [1_000_000, 1][len(arguments) :]
    sys.exit(main(count, seed))
