"""What is given, however large or hostile, gives a short error soon, and takes little memory."""

from __future__ import annotations

import inspect
import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from tdev_models import Settings, settings, sync
from tdev_models.errors import InvalidRequest, TdevError, Unavailable, shown
from tdev_models.json_form import text_of

MOST_CHARACTERS = 2000
HUGE = "x" * 100_000_000
LARGE = "x" * 5_000_000  # to every argument of every call
WRONG: dict[str, Any] = {
    "text": LARGE,
    "key": {LARGE: 1},
    "list": [LARGE],
    "bytes": LARGE.encode(),
    "digits": 10**5000,
}
CALLS = [
    name
    for name in sync.__all__
    if inspect.isfunction(getattr(sync, name)) and name != "flush_metrics"
]


def nothing_is_sent(send: settings.Transport) -> settings.Transport:
    async def refuse(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
        raise Unavailable("nobody there")

    return refuse


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("name", CALLS)
def test_a_huge_argument_gives_a_short_error(name: str, what: str) -> None:
    function, wrong = getattr(sync, name), WRONG[what]
    made = Settings(
        region="us-east-1",
        transport=nothing_is_sent,
        retry_seconds=0,
        owner_retry_seconds=0,
        automatic_metrics=False,
    )
    plain = {"function": print, "runner": print, "poll_seconds": None}
    with settings.use(made):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in plain:
                continue
            arguments, keywords = [], dict[str, Any]()
            for other in inspect.signature(function).parameters.values():
                given = wrong if other is parameter else plain.get(other.name, "s")
                if other.kind is other.VAR_KEYWORD:
                    keywords |= {"metadata": given} if other is parameter else {}
                elif other.kind is other.POSITIONAL_ONLY:
                    arguments.append(given if other is parameter else {})
                elif other is parameter or other.default is other.empty:
                    keywords[other.name] = given
            begun = time.monotonic()
            problem = ""
            try:
                result = function(*arguments, **keywords)
                if name == "track_session":
                    result.__enter__()
            except TdevError as error:
                problem = f"{error}{error!r}"
            assert len(problem) < 2 * MOST_CHARACTERS, f"{parameter.name}: {len(problem)}"
            assert time.monotonic() - begun < 2, parameter.name


def test_a_huge_name_of_a_field_is_shown_short() -> None:
    with pytest.raises(InvalidRequest, match="unknown field") as refused:
        sync.save_pipeline_session({"session_id": "s", HUGE: 1})
    assert len(str(refused.value)) < MOST_CHARACTERS
    assert len(refused.value.field) < MOST_CHARACTERS


def test_a_huge_setting_is_shown_short() -> None:
    for field in ("prefix", "endpoint", "environment", "release"):
        with pytest.raises(InvalidRequest) as refused:
            Settings(**{field: HUGE})  # type: ignore[arg-type]
        assert len(str(refused.value)) < MOST_CHARACTERS


@pytest.mark.parametrize("number", ["1e400", "-1e400", "[1, 2e999]", '{"a": 1E309}'])
def test_a_number_that_no_float_holds_is_no_json(number: str) -> None:
    with pytest.raises(InvalidRequest, match="larger than any number"):
        text_of("output_data", number)


def test_what_is_shown_of_a_value_is_all_that_is_looked_at() -> None:
    class Text(str):
        __slots__ = ()

    tracemalloc.start()
    for one in (HUGE, HUGE.encode(), bytearray(HUGE, "ascii"), Text(HUGE)):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert len(shown(one)) < MOST_CHARACTERS
        assert tracemalloc.get_traced_memory()[1] - before < 10_000
    tracemalloc.stop()
    assert shown(10**5000) == "<int of 5,000 digits>"
