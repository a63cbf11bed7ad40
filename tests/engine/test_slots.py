"""Large payloads wait for each other, and nobody waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest

from tdev_models import (
    Settings,
    get_agent_execution,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.dynamodb import chunks
from tdev_models.dynamodb.blocking_client import BlockingClient, drive
from tdev_models.dynamodb.slots import Slots
from tdev_models.errors import AccessDenied, Throttled
from tdev_models.retry import wait_until
from tdev_models.settings import Transport
from tests.conftest import allowed_only
from tests.engine.pipelines import incompressible

OUTPUT_BYTES = 100 * 1024


class Store:
    """A store that refuses the first try of each write of a chunk, when it is told to answer."""

    def __init__(self) -> None:
        self.answers, self.seconds = threading.Event(), 0.0
        self.refused, self.under_way, self.most = set[str](), 0, 0
        self.lock = threading.Lock()

    def wrap(self, send: Transport) -> Transport:
        async def slowed(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            key = str(request.get("Key"))
            if operation != "UpdateItem" or "#" not in key or "#worker:" in key:
                return await send(operation, request)
            with self.lock:
                self.under_way += 1
                self.most = max(self.most, self.under_way)
            try:
                await self._told_to_answer()
                if key not in self.refused:
                    self.refused.add(key)
                    raise Throttled("injected")
                return await send(operation, request)
            finally:
                with self.lock:
                    self.under_way -= 1

        return slowed

    async def _told_to_answer(self) -> None:
        def wait() -> None:
            self.answers.wait(30)
            time.sleep(self.seconds)

        if self.answers.is_set() and not self.seconds:
            return  # a blocking call in the loop's own thread must not suspend either
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a blocking call: it must not suspend
            wait()
        else:
            await asyncio.to_thread(wait)


@pytest.fixture
def slow(strict_store: Settings, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that does not answer writes of chunks before it is told to."""
    store = Store()
    changed = replace(strict_store, transport=lambda send: store.wrap(allowed_only(send)))
    monkeypatch.setattr(settings, "_configured", changed)
    return store


async def large(name: str) -> None:
    async with track_session(name) as session, session.agent("generation") as run:
        run.output = incompressible(name, OUTPUT_BYTES)


async def check(*names: str) -> None:
    for name in names:
        stored = await get_agent_execution(f"{name}-generation")
        assert stored.status == "COMPLETED"
        assert stored.output_data == incompressible(name, OUTPUT_BYTES)


async def all_slots_taken(slow: Store) -> None:
    assert await wait_until(lambda: slow.under_way == chunks.AT_ONCE, asyncio.sleep, 0.01, 30)


async def test_a_small_agent_ends_while_48_large_writers_are_throttled(slow: Store) -> None:
    async def small() -> None:
        async with track_session("small") as session, session.agent("parser") as run:
            run.output = "small"

    async with asyncio.TaskGroup() as group:
        for number in range(48):
            group.create_task(large(f"s{number}"))
        await all_slots_taken(slow)
        try:
            await asyncio.wait_for(small(), 10)
        finally:
            slow.answers.set()
    assert slow.most == chunks.AT_ONCE
    await check("s0", "s47")


async def test_who_waits_while_others_are_stored_is_not_given_up(
    slow: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_WRITE_SECONDS", 1.0)
    slow.seconds = 0.2
    slow.answers.set()
    names = [f"s{number}" for number in range(12)]
    await asyncio.gather(*map(large, names))
    await check(*names)


def test_a_blocking_call_in_an_event_loop_does_not_wait_for_its_tasks(slow: Store) -> None:
    output = {"code": incompressible("bare", OUTPUT_BYTES)}

    async def mixed() -> None:
        tasks = [asyncio.create_task(large(f"s{number}")) for number in range(6)]
        await all_slots_taken(slow)
        slow.answers.set()
        sync.update_agent_execution(
            execution_id="bare-parser", status="COMPLETED", output_data=output
        )
        assert sync.get_agent_execution("bare-parser").output_data == output
        await asyncio.gather(*tasks)
        await check("s0", "s5")
        ended.set()

    ended = threading.Event()
    threading.Thread(target=asyncio.run, args=[mixed()], daemon=True).start()
    assert ended.wait(20)


@pytest.mark.parametrize("error", [AccessDenied, KeyboardInterrupt])
def test_a_payload_of_which_a_chunk_is_refused_is_given_up_though_others_are_throttled(
    error: type[BaseException], strict_store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, seen = threading.Barrier(chunks.AT_ONCE), set[str]()

    def refusing(send: Transport) -> Transport:
        async def refuse(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            number = str(request.get("Key")).rpartition("#")[2][:5]
            if operation != "UpdateItem" or number not in ("00001", "00002", "00003", "00004"):
                return await send(operation, request)
            if number not in seen:
                seen.add(number)
                begun.wait(20)
            if number == "00001":
                raise error("injected")
            raise Throttled("injected")

        return refuse

    monkeypatch.setattr(chunks, "CHUNK_WRITE_SECONDS", 20.0)
    changed = replace(strict_store, transport=refusing)
    monkeypatch.setattr(settings, "_configured", changed)
    output, before = {"code": incompressible("s", 8 * chunks.CHUNK_BYTES)}, time.monotonic()
    with pytest.raises(error, match="injected"):
        sync.update_agent_execution(execution_id="s-parser", output_data=output)
    assert time.monotonic() - before < 15, "it waits for as long as the others are tried"


def test_a_job_that_nobody_waits_for_waits_for_no_slot() -> None:
    client, slots = BlockingClient.for_settings(Settings(region="us-east-1")), Slots(1)

    async def waits() -> None:
        async with slots.taken(client):
            pass

    async def fails() -> None:
        raise ValueError("injected")

    async def both() -> None:
        async with slots.taken(client):  # as another call's chunk that is throttled for long
            with pytest.raises(ValueError, match="injected"):
                await client.gather([waits, fails], 2)
        ended.set()

    ended = threading.Event()
    threading.Thread(target=drive, args=[both()], daemon=True).start()
    assert ended.wait(20)


def test_a_loop_that_was_stopped_keeps_nobody_waiting(slow: Store) -> None:
    output = {"code": incompressible("x", OUTPUT_BYTES)}
    loop = asyncio.new_event_loop()

    async def begun() -> list[asyncio.Task[Any]]:
        tasks = [
            asyncio.create_task(
                update_agent_execution(execution_id=f"s{number}-parser", output_data=output)
            )
            for number in range(6)
        ]
        await all_slots_taken(slow)
        return tasks

    tasks = loop.run_until_complete(begun())
    slow.answers.set()
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(
            sync.update_agent_execution, execution_id="s-parser", output_data=output
        )
        wait([other], 20)
        is_done = other.done()
        loop.run_until_complete(asyncio.gather(*tasks))  # they go on
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert is_done
    assert sync.get_agent_execution("s5-parser").output_data == output


async def test_threads_and_tasks_wait_alike_and_who_is_cancelled_keeps_no_slot(
    slow: Store,
) -> None:
    def blocking(name: str) -> None:
        with sync.track_session(name) as session, session.agent("generation") as run:
            run.output = incompressible(name, OUTPUT_BYTES)

    tasks = [asyncio.create_task(large(f"s{number}")) for number in range(6)]
    thread = asyncio.create_task(asyncio.to_thread(blocking, "thread"))
    await all_slots_taken(slow)
    await asyncio.sleep(0.2)
    for task in tasks[:4]:  # some of them sent, some of them waiting
        task.cancel()
    await asyncio.wait(tasks[:4])
    slow.answers.set()
    await asyncio.gather(*tasks[4:], thread)
    slow.answers.clear()
    last = [asyncio.create_task(large(f"t{number}")) for number in range(4)]
    await all_slots_taken(slow)
    slow.answers.set()
    await asyncio.gather(*last)
    await check("s4", "s5", "thread", "t3")
