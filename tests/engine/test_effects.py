"""Side effects and checkpoints inside an agent: `run.once`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tdev_models import (
    Conflict,
    EffectInDoubt,
    InvalidRequest,
    LeaseLost,
    Settings,
    get_agent_executions,
    resume_pipeline,
    settings,
    sync,
    track_session,
)
from tests import raw
from tests.engine.pipelines import clock, files
from tests.faults import Died, Fault, injected

LATE = 61


class Mail:
    """A side effect that counts."""

    def __init__(self, result: Any = "sent") -> None:
        self.sent, self.result = 0, result

    def __call__(self) -> Any:
        self.sent += 1
        return self.result

    async def later(self) -> Any:
        await asyncio.sleep(0)
        return self()


@pytest.mark.parametrize("result", ["sent", None, {"id": [1]}, files(100_000)])
async def test_an_effect_happens_once_and_its_result_comes_back(
    store: Settings, result: Any
) -> None:
    mail = Mail(result)
    with pytest.raises(KeyError):
        async with track_session("s") as session, session.agent("parser", key=1) as run:
            assert await run.once("mail", mail.later) == result
            assert await run.once("mail", mail) == result
            raise KeyError
    async with await resume_pipeline("s") as resume, resume.agent("parser", key=1) as run:
        assert not run.done
        assert await run.once("mail", mail) == result
    assert mail.sent == 1


def test_the_blocking_form_is_the_same_without_await(store: Settings) -> None:
    mail = Mail()
    with pytest.raises(KeyError), sync.track_session("s") as session:
        with session.agent("parser") as run:
            assert run.once("mail", mail) == "sent"
            raise KeyError
    with sync.resume_pipeline("s") as resume, resume.agent("parser") as run:
        assert run.once("mail", mail) == "sent"
        with pytest.raises(InvalidRequest, match="is async"):
            run.once("other", mail.later)
    assert mail.sent == 1


async def test_effects_of_other_agents_keys_and_names_are_others(strict_store: Settings) -> None:
    mail = Mail()
    async with track_session("s") as session:
        for agent, key in (("parser", None), ("parser", "1"), ("search", None)):
            async with session.agent(agent, key=key) as run:
                await run.once("mail", mail)
                await run.once("other", mail)
    assert mail.sent == 6
    # No list shows them.
    names = {one.agent_name for one in await get_agent_executions("s")}
    assert names == {"parser", "parser@1", "search"}


async def test_what_is_returned_is_what_a_resume_returns(strict_store: Settings) -> None:
    async with track_session("s") as session, session.agent("parser") as run:
        assert await run.once("pair", lambda: (1, 2)) == [1, 2]


# Begin, reserve, store: a death at each, and what the next worker finds.
DEATHS = [
    ("dies", 2, "nothing"),
    ("dies-after", 2, "doubt"),
    ("dies", 3, "doubt"),
    ("dies-after", 3, "result"),
]


@pytest.mark.parametrize(("kind", "nth", "found"), DEATHS)
@pytest.mark.parametrize("in_doubt", ["raise", "run", "skip"])
async def test_an_effect_is_never_repeated_in_silence(
    strict_store: Settings, kind: str, nth: int, found: str, in_doubt: Any
) -> None:
    mail = Mail()
    with injected(Fault(kind, operation="TransactWriteItems", nth=nth)), pytest.raises(Died):
        async with track_session("s") as session, session.agent("parser") as run:
            await run.once("mail", mail)
    before = mail.sent
    assert before == (0 if nth == 2 else 1)
    with settings.use(strict_store, clock=clock(LATE)):
        async with await resume_pipeline("s") as resume, resume.agent("parser") as run:
            if (found, in_doubt) == ("doubt", "raise"):
                for _ in range(2):
                    with pytest.raises(EffectInDoubt, match=r"'mail' of parser in .* in_doubt="):
                        await run.once("mail", mail)
                assert mail.sent == before
                return
            expected = None if (found, in_doubt) == ("doubt", "skip") else "sent"
            for _ in range(2):  # and from then on it is settled
                assert await run.once("mail", mail, in_doubt=in_doubt) == expected
            assert await run.once("mail", mail) == expected
    again = found == "nothing" or (found, in_doubt) == ("doubt", "run")
    assert mail.sent - before == again


async def test_an_effect_that_raised_is_in_doubt(strict_store: Settings) -> None:
    def broken() -> None:
        raise ConnectionError("half-way")

    async with track_session("s") as session:
        with pytest.raises(ConnectionError):
            async with session.agent("parser") as run:
                await run.once("mail", broken)
        async with session.agent("parser") as run:
            with pytest.raises(EffectInDoubt):
                await run.once("mail", broken)
            assert await run.once("mail", Mail(), in_doubt="run") == "sent"


async def test_a_result_without_json_form_leaves_the_effect_in_doubt(
    strict_store: Settings,
) -> None:
    async with track_session("s") as session, session.agent("parser") as run:
        with pytest.raises(InvalidRequest, match=r"^result: object has no JSON form") as raised:
            await run.once("mail", object)
        assert "has happened" in raised.value.__notes__[0]
        with pytest.raises(EffectInDoubt):
            await run.once("mail", object)


@pytest.mark.parametrize("kind", ["resent", "unanswered", "missed", "conflict", "throttled"])
@pytest.mark.parametrize("nth", [2, 3])
async def test_a_faulty_request_of_an_effect_is_sent_again(
    strict_store: Settings, kind: str, nth: int
) -> None:
    mail = Mail()
    with injected(Fault(kind, operation="TransactWriteItems", nth=nth)):
        async with track_session("s") as session, session.agent("parser") as run:
            assert await run.once("mail", mail) == "sent"
    assert mail.sent == 1


async def test_a_reservation_whose_reply_was_lost_is_no_leave_after_a_takeover(
    strict_store: Settings,
) -> None:
    """The next owner finds the effect in doubt, and may run it: the former one must not, too."""
    mail = Mail()

    def taken_over() -> None:
        new = {"lease_token": {"S": "new"}, "fence": {"N": "2"}}
        raw.put_attribute(strict_store, "pipeline-sessions", "s", **new)

    with injected(Fault("resent", operation="TransactWriteItems", nth=2, between=taken_over)):
        with pytest.raises(LeaseLost):
            async with track_session("s") as session, session.agent("parser") as run:
                await run.once("mail", mail)
    assert raw.item(strict_store, "agent-executions", "s-parser", "parser#once#mail")
    assert mail.sent == 0


async def test_a_reservation_whose_reply_is_read_late_is_no_leave(strict_store: Settings) -> None:
    """A worker that was frozen there wakes after the next owner has run the effect."""
    mail, frozen = Mail(), [0.0]

    def taken_over() -> None:
        new = {"lease_token": {"S": "new"}, "fence": {"N": "2"}}
        raw.put_attribute(strict_store, "pipeline-sessions", "s", **new)
        frozen[0] = strict_store.lease_seconds

    fault = Fault("after", operation="TransactWriteItems", nth=2, between=taken_over)
    with settings.use(strict_store, clock=lambda: time.time() + frozen[0]), injected(fault):
        with pytest.raises(LeaseLost):
            async with track_session("s") as session, session.agent("parser") as run:
                await run.once("mail", mail)
    assert mail.sent == 0


async def test_a_reservation_that_took_long_is_made_once_more(strict_store: Settings) -> None:
    mail, late = Mail(), [0.0]

    def take_long() -> None:
        late[0] = strict_store.lease_seconds / 2

    fault = Fault("after", operation="TransactWriteItems", nth=2, between=take_long)
    with settings.use(strict_store, clock=lambda: time.time() + late[0]), injected(fault):
        async with track_session("s") as session, session.agent("parser") as run:
            assert await run.once("mail", mail) == "sent"
            assert await run.once("mail", mail) == "sent"
    assert mail.sent == 1


@pytest.mark.parametrize(
    ("was_in_doubt", "nth", "kind"),
    [
        *((False, 1, kind) for kind in ("before", "after", "resent")),
        (True, 1, "before"),  # this reservation is refused, and takes the doubt away from nobody
        *((True, 2, kind) for kind in ("before", "after", "resent")),
    ],
)
async def test_an_effect_that_is_cancelled_while_it_is_reserved_did_not_happen(
    strict_store: Settings, was_in_doubt: bool, nth: int, kind: str
) -> None:
    mail = Mail()

    async def cancelled() -> None:
        async with track_session("s") as session, session.agent("parser") as run:
            task = asyncio.current_task()
            assert task is not None
            if was_in_doubt:
                with pytest.raises(KeyError):
                    await run.once("mail", {}.popitem)
            fault = Fault(kind, operation="TransactWriteItems", nth=nth, between=task.cancel)
            with injected(fault, needed=False):
                run._client = track_session("x")._client
            await run.once("mail", mail, in_doubt="run" if was_in_doubt else "raise")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(cancelled())
    async with track_session("s") as session, session.agent("parser") as run:
        if was_in_doubt:
            with pytest.raises(EffectInDoubt):
                await run.once("mail", mail)
        else:
            assert await run.once("mail", mail) == "sent"
    assert mail.sent == (0 if was_in_doubt else 1)


async def test_a_lost_lease_reserves_nothing_and_stores_nothing(strict_store: Settings) -> None:
    mail = Mail()
    late: list[Any] = []

    async def taken_over() -> str:
        with settings.use(strict_store, clock=clock(LATE)):
            late.append(await resume_pipeline("s"))
        return mail()  # type: ignore[no-any-return]

    with pytest.raises(LeaseLost):
        async with track_session("s") as session, session.agent("parser") as run:
            await run.once("mail", taken_over)
    assert mail.sent == 1
    with settings.use(strict_store, clock=clock(LATE)):
        async with late[0], late[0].agent("parser") as run:
            with pytest.raises(EffectInDoubt):
                await run.once("mail", mail)
    with pytest.raises(LeaseLost):
        async with track_session("t") as session, session.agent("parser") as run:
            raw.put_attribute(strict_store, "pipeline-sessions", "t", lease_token={"S": "x"})
            await run.once("mail", mail)
    assert mail.sent == 1
    assert raw.item(strict_store, "agent-executions", "t-parser", "parser#once#mail") is None


async def test_of_two_that_run_a_doubtful_effect_again_one_wins(strict_store: Settings) -> None:
    """The second takes it over as it read it; the first's result does not overwrite."""
    mail = Mail()
    async with track_session("s") as session, session.agent("parser") as run:
        key = ("s-parser", "parser#once#mail")
        raw.put_attribute(strict_store, "agent-executions", *key, write_token={"S": "old"})

        def meanwhile() -> None:
            raw.put_attribute(strict_store, "agent-executions", *key, write_token={"S": "other"})

        # Begin, reserve (refused), take over.
        fault = Fault("before", operation="TransactWriteItems", nth=2, between=meanwhile)
        refused: list[str | None] = []
        watched = settings.use(on_request=lambda event: refused.append(event.error))
        with watched, injected(fault, needed=False):
            run._client = track_session("x")._client
        assert await run.once("mail", mail, in_doubt="run") == "sent"
        # Reserve and take over as it was are refused; take over as it is, and store.
        assert refused == [*2 * ["TransactionCanceledException"], None, None]

        def taken() -> str:
            raw.put_attribute(strict_store, "agent-executions", *key2, write_token={"S": "other"})
            return "mine"

        key2 = ("s-parser", "parser#once#two")
        with pytest.raises(Conflict, match="begun again"):
            await run.once("two", taken)
        assert "output_data" not in (raw.item(strict_store, "agent-executions", *key2) or {})


async def test_an_effect_whose_result_came_meanwhile_is_not_run_again(
    strict_store: Settings,
) -> None:
    mail = Mail()
    async with track_session("s") as session, session.agent("parser") as run:
        key = ("s-parser", "parser#once#mail")
        raw.put_attribute(strict_store, "agent-executions", *key, write_token={"S": "old"})

        def meanwhile() -> None:
            done = {"output_data": {"S": '"theirs"'}, "end_time": {"N": "1"}}
            raw.put_attribute(strict_store, "agent-executions", *key, **done)

        fault = Fault("before", operation="TransactWriteItems", nth=2, between=meanwhile)
        with injected(fault, needed=False):
            run._client = track_session("x")._client
        assert await run.once("mail", mail, in_doubt="run") == "theirs"
    assert mail.sent == 0


async def test_once_belongs_into_the_block_of_a_running_agent(strict_store: Settings) -> None:
    mail = Mail()
    with pytest.raises(KeyError):
        async with track_session("s") as session:
            run = session.agent("parser")
            with pytest.raises(InvalidRequest, match="belongs inside"):
                await run.once("mail", mail)
            async with run:
                for wrong in ("", "a#b", 7):
                    with pytest.raises(InvalidRequest, match=r"^name: "):
                        await run.once(wrong, mail)  # type: ignore[arg-type]
                with pytest.raises(InvalidRequest, match=r"^in_doubt: "):
                    await run.once("mail", mail, in_doubt="maybe")  # type: ignore[arg-type]
                with pytest.raises(InvalidRequest, match=r"^function: "):
                    await run.once("mail", 7)  # type: ignore[arg-type]

                async def nested() -> None:
                    await run.once("mail", mail)

                with pytest.raises(InvalidRequest, match="is running already"):
                    await run.once("mail", nested)
            with pytest.raises(InvalidRequest, match="belongs inside"):
                await run.once("mail", mail)
            raise KeyError
    async with await resume_pipeline("s") as resume, resume.agent("parser") as run:
        with pytest.raises(InvalidRequest, match="is done"):
            await run.once("mail", mail)
    assert mail.sent == 0
