"""Live progress over server-sent events."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2
import pytest

from tdev_models import (
    AccessDenied,
    Settings,
    get_pipeline_session,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    web,
)
from tdev_models.results import RequestEvent, Session
from tdev_models.web import live
from tests.web.conftest import Client, served


@pytest.fixture
def requests(strict_store: Settings, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the page reads; what a session writes is sent with other settings."""
    counted: Counter[str] = Counter()

    def count(event: RequestEvent) -> None:
        counted[event.operation] += 1

    made = replace(strict_store, on_request=count)
    monkeypatch.setattr(settings, "_configured", made)
    monkeypatch.setattr(live, "SESSION_SECONDS", 0.2)
    return counted


@asynccontextmanager
async def events(address: str, path: str) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
    """Yield the events of a stream: name and data."""

    async def read(answer: httpx2.Response) -> AsyncIterator[tuple[str, str]]:
        name, data = "message", list[str]()
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field.startswith("data"):
                data.append(value)
            elif not line:
                yield name, "\n".join(data)
                data = []

    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        base_url=address, timeout=30, limits=limits, verify=False
    ) as client:
        async with client.stream("GET", path) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield read(answer)


async def test_a_run_is_seen_progressing_and_ending(
    strict_store: Settings, requests: Counter[str]
) -> None:
    seen: list[tuple[str, str]] = []

    async def watch(address: str) -> None:
        async with events(address, "/session/live?session_id=s") as stream:
            async for name, data in stream:
                progress = re.search(r"(\d)/9", data)
                status = re.search(r'class="status (\w+)"', data)
                if progress and status and (status[1], progress[1]) not in seen:
                    seen.append((status[1], progress[1]))
                if name == "end":
                    seen.append(("end", ""))

    with served(web.app()) as address:
        with pytest.raises(KeyError), settings.use(strict_store):
            async with track_session("s") as session:
                async with session.agent("nl_input") as run:
                    watching = asyncio.create_task(watch(address))
                    await asyncio.sleep(1)
                    run.output = {}
                async with session.agent("ui_selection"):
                    await asyncio.sleep(1)
                    raise KeyError("no such component")
        await asyncio.wait_for(watching, 10)
    assert seen == [("ACTIVE", "0"), ("ACTIVE", "1"), ("FAILED", "1"), ("end", "")]


async def test_200_watchers_cost_one_read_a_poll(
    strict_store: Settings, requests: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watchers, polls, all_there = 200, Counter[int](), asyncio.Event()
    with settings.use(strict_store):
        async with track_session("s") as session:
            async with session.agent("nl_input") as run:
                with served(web.app()) as address:
                    # Until all are there the poll is slow.
                    monkeypatch.setattr(live, "SESSION_SECONDS", 0.5)

                    async def watch(number: int) -> None:
                        async with events(address, "/api/events?session_id=s") as stream:
                            async for _, data in stream:
                                assert json.loads(data)["session"]["status"] == "ACTIVE"
                                polls[number] += 1
                                if len(polls) == watchers:
                                    all_there.set()

                    tasks = [asyncio.create_task(watch(number)) for number in range(watchers)]
                    await asyncio.wait_for(all_there.wait(), 60)
                    before, begun = requests.total(), polls.total()
                    await asyncio.sleep(3)
                    reads, sent = requests.total() - before, polls.total() - begun
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                    assert 4 <= reads <= 7
                    assert sent >= (reads - 2) * watchers
                    await asyncio.sleep(1)
                    # With the last watcher the poll has ended.
                    before = requests.total()
                    await asyncio.sleep(1.2)
                    assert requests.total() == before
                run.output = {}


async def test_a_list_is_live(
    strict_store: Settings, requests: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LIST_SECONDS", 0.2)
    with served(web.app()) as address:
        async with events(address, "/sessions/live?show=ACTIVE") as stream:
            assert "No sessions." in (await anext(stream))[1]
            with settings.use(strict_store):
                async with track_session("a new one") as session:
                    async for _, data in stream:
                        if "a new one" in data:
                            break
                    session.fail("enough")


async def test_there_is_a_most_of_watchers(
    strict_store: Settings, requests: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_MOST_WATCHERS", 1)
    with served(web.app()) as address:
        async with events(address, "/sessions/live?show=ACTIVE") as stream:
            await anext(stream)
            async with httpx2.AsyncClient(base_url=address) as client:
                answer = await client.get("/sessions/live?show=ACTIVE")
            assert answer.status_code == 503


async def test_a_head_request_of_what_is_live_ends(
    strict_store: Settings, requests: Counter[str]
) -> None:
    await save_pipeline_session(session_id="s")
    limits = httpx2.Limits(max_connections=1)
    with served(web.app()) as address:
        async with httpx2.AsyncClient(base_url=address, timeout=5, limits=limits) as client:
            for path in ("session/live?session_id=s", "api/events?session_id=s", "sessions/live"):
                answer = await client.head(f"/{path}")
                assert answer.headers["content-type"].startswith("text/event-stream")
            assert (await client.get("/session?session_id=s")).status_code == 200


def test_an_error_cuts_off_who_watches(
    strict_store: Settings, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised out of the application, and nobody is told that the session has ended."""
    sync.save_pipeline_session(session_id="s")
    reads: list[str] = []

    async def read(session_id: str) -> Session:
        reads.append(session_id)
        if len(reads) > 1:
            raise AccessDenied("no more")
        return await get_pipeline_session(session_id)

    monkeypatch.setattr(live, "SESSION_SECONDS", 0)
    monkeypatch.setattr(live, "get_pipeline_session", read)
    answer = client().get("/session/live?session_id=s")
    assert "event: message" in answer.text
    assert "event: end" not in answer.text
