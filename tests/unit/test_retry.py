"""When something is tried again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from tdev_models import Settings, errors, retry, settings, sync
from tdev_models.errors import Conflict, TdevError, Throttled, Unavailable
from tdev_models.results import RequestEvent
from tdev_models.retry import (
    CONTENDED_TRIES,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Backoff,
    Turns,
    wait_until,
)
from tests.simulation.loop import VirtualLoop

FINAL = [
    errors.InvalidRequest("field", "wrong"),
    errors.ConfigurationError("no table"),
    errors.AccessDenied("no"),
    errors.ConditionFailed(None),
    errors.StoreError("Validation", 400, "wrong"),
    errors.ItemTooLarge("too large"),
]


@pytest.mark.parametrize("error", FINAL)
def test_what_trying_again_cannot_help_is_final(error: TdevError) -> None:
    assert Backoff(60).pause_after(error) is None, (
        f"FIRST_PAUSE_SECONDS of retry.py has {type(error).__name__}, so it is tried again; if "
        "that is meant, take it out of FINAL here"
    )


@pytest.mark.parametrize("kind", FIRST_PAUSE_SECONDS)
def test_pauses_double_up_to_the_longest_in_full_jitter(kind: type[TdevError]) -> None:
    rounds = []
    for _ in range(200):
        backoff = Backoff(60)
        rounds.append([pause(backoff, kind) for _ in range(9)])
    for number in range(9):
        limit = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS[kind] * 2**number)
        drawn = [pauses[number] for pauses in rounds]
        assert 0 <= min(drawn) < limit / 4
        assert limit * 3 / 4 < max(drawn) <= limit


def pause(backoff: Backoff, kind: type[TdevError]) -> float:
    seconds = backoff.pause_after(kind.__new__(kind))
    assert seconds is not None
    return seconds


def test_a_budget_is_a_number_of_seconds() -> None:
    assert Backoff(0).pause_after(Unavailable("again")) is None
    paused, backoff = 0.0, Backoff(0.2)
    while (seconds := backoff.pause_after(Unavailable("again"))) is not None:
        time.sleep(seconds)  # on a busy machine it takes longer
        paused += seconds
    assert paused <= 0.2
    assert backoff.attempts > 2


class Refusing:
    """A transport that refuses the first requests."""

    def __init__(self, error: TdevError, times: int) -> None:
        self.error, self.times, self.requests = error, times, list[Mapping[str, Any]]()

    def wrap(self, send: settings.Transport) -> settings.Transport:
        async def refusing(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            self.requests.append(request)
            if len(self.requests) <= self.times:
                raise self.error
            return await send(operation, request)

        return refusing


@pytest.mark.parametrize("error", [Conflict("x"), Throttled("x"), Unavailable("x")])
def test_a_request_is_sent_again_as_it_was_and_its_attempts_are_counted(
    strict_store: Settings, error: TdevError
) -> None:
    refusing, events = Refusing(error, 3), list[RequestEvent]()
    with settings.use(strict_store, transport=refusing.wrap, on_request=events.append):
        sync.save_pipeline_session(session_id="s")
    assert len(refusing.requests) == 4
    assert all(request == refusing.requests[0] for request in refusing.requests)
    (event,) = events
    assert (event.attempts, event.error) == (4, None)
    assert event.units > 0


def test_a_budget_that_is_spent_raises_the_last_error(strict_store: Settings) -> None:
    refusing, events = Refusing(Unavailable("gone"), 10**6), list[RequestEvent]()
    with settings.use(
        strict_store, transport=refusing.wrap, on_request=events.append, retry_seconds=0.2
    ):
        with pytest.raises(Unavailable, match="gone"):
            sync.get_pipeline_session("s")
    (event,) = events
    assert event.attempts == len(refusing.requests) > 1
    assert event.error == "Unavailable"
    assert event.seconds < 0.3


def test_waiting_ends_when_it_is_so_or_the_time_is_over() -> None:
    looks = iter([False, False, True])
    assert asyncio.run(wait_until(lambda: next(looks), asyncio.sleep, 0.001))
    assert not asyncio.run(wait_until(lambda: False, asyncio.sleep, 0.001, 0.01))


def test_a_seed_of_the_application_makes_no_two_workers_wait_alike() -> None:
    state = random.getstate()
    try:
        pauses = []
        for _ in range(2):
            random.seed(7)
            seeded = random.getstate()
            pauses.append(Backoff(60).pause_after(Throttled()))
            assert random.getstate() == seeded
        assert pauses[0] != pauses[1]
    finally:
        random.setstate(state)


@pytest.mark.parametrize("try_seconds", [0.001, 0.05, 0.2])
def test_of_many_writers_of_one_item_each_has_its_turn_however_long_a_try_takes(
    try_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = VirtualLoop()  # type: ignore[abstract]
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=loop.time))
    monkeypatch.setattr(retry, "DICE", random.Random(1))
    version, made = 0, 0

    async def write() -> None:
        nonlocal version, made
        seen = version
        turns = Turns(asyncio.sleep)
        while await turns.next():
            await asyncio.sleep(try_seconds)
            if seen == version:
                version, made = version + 1, made + 1
                return
            seen = version

    for _ in range(60):
        loop.create_task(write())
    loop.run(lambda: False, 600.0)
    assert made == 60


def test_a_write_that_had_no_turn_ends_without_another_pause() -> None:
    pauses: list[float] = []

    async def count() -> int:
        tries = 0
        turns = Turns(note)
        while await turns.next():
            tries += 1
        return tries

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    assert asyncio.run(count()) == CONTENDED_TRIES
    assert len(pauses) == CONTENDED_TRIES // 2 - 1
