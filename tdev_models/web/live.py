"""Live progress: one poll for all who watch the same, sent to each as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import aclosing, suppress
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException

from tdev_models import get_agent_executions, get_pipeline_session, telemetry
from tdev_models.errors import Throttled, Unavailable
from tdev_models.results import Execution, Page
from tdev_models.views.watched import Watched

SESSION_SECONDS = 2.0
LIST_SECONDS = 10.0
MOST_EXECUTIONS = 1000
_MOST_WATCHERS = 1000

Polls: TypeAlias = AsyncGenerator[Any]
"""Yields what is watched, again after each poll; one read a poll."""


class Watch:
    """What one poll after the other has read, for any number of watchers.

    Attributes:
        state: what was read last.
        watchers: how many wait for the next poll.
    """

    def __init__(self, polls: Polls) -> None:
        self.state: Any = None
        self.watchers = 0
        self._number, self._texts = 0, dict[Hashable, tuple[int, str]]()
        self._next = asyncio.Event()
        self.task = asyncio.create_task(self._follow(polls))

    async def _follow(self, polls: Polls) -> None:
        telemetry.active.leave()  # or whoever watched first would have all polls in his trace
        try:
            async with aclosing(polls):
                async for state in polls:
                    self.state, self._number = state, self._number + 1
                    self._announce()
        finally:
            self._announce()

    def _announce(self) -> None:
        told, self._next = self._next, asyncio.Event()
        told.set()

    async def polls(self) -> AsyncGenerator[None]:
        """Yield once `state` is known, and after each poll, until there is nothing more to come.

        A watcher that is slower than the polls misses some.
        """
        seen = 0
        while True:
            if self._number > seen:
                seen = self._number
                yield
            elif self.task.done():
                if not self.task.cancelled():
                    self.task.result()
                return
            else:
                await self._next.wait()
                await asyncio.sleep(0)  # lets a task that has told its end be done

    def text(self, form: Hashable, write: Callable[[Any], str]) -> str:
        """Return the state as text; written once a poll and form, whoever asks."""
        number, text = self._texts.get(form, (0, ""))
        if number != self._number:
            text = write(self.state)
            self._texts[form] = self._number, text
        return text


class Watches:
    """The watches under way, by what is watched; each ends with its last watcher."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Watch] = {}
        self._watchers = 0

    def close(self) -> None:
        """Let everybody go who watches; their browsers try again."""
        for watch in self._found.values():
            watch.task.cancel()

    async def follow(self, key: Hashable, start: Callable[[], Polls]) -> AsyncGenerator[Watch]:
        """Yield the watch of a key at each poll; `start` begins the polls of its first watcher.

        Raises:
            HTTPException: there are 1000 watchers already.
            TdevError: what the first poll raised.
        """
        if self._watchers >= _MOST_WATCHERS:
            raise HTTPException(503, "too many watch already", {"Retry-After": "30"})
        watch = self._found.get(key)
        if watch is None or watch.task.done():
            watch = self._found[key] = Watch(start())
        watch.watchers += 1
        self._watchers += 1
        try:
            async with aclosing(watch.polls()) as polls:
                async for _ in polls:
                    yield watch
        finally:
            watch.watchers -= 1
            self._watchers -= 1
            if not watch.watchers:
                watch.task.cancel()
                if self._found.get(key) is watch:
                    del self._found[key]


async def session_polls(session_id: str) -> Polls:
    """Yield a `Watched` session, until it has ended; one read a poll.

    Where an agent was tried again, its attempts are a second one, after the session has changed.
    """
    watched = Watched(await get_pipeline_session(session_id))
    watched.saw_executions(await cheap_executions(session_id))
    while True:
        yield watched
        if watched.has_ended:
            return
        await asyncio.sleep(SESSION_SECONDS)
        with suppress(Throttled, Unavailable):  # the next poll may succeed
            if watched.is_behind:
                watched.saw_executions(await cheap_executions(session_id))
            else:
                watched.saw_session(await get_pipeline_session(session_id))


async def cheap_executions(session_id: str) -> Page[Execution]:
    """Return the executions of a session that goes on, with attempts where there are several."""
    executions = await get_agent_executions(session_id, limit=MOST_EXECUTIONS)
    if any(execution.retry_count for execution in executions):
        return await get_agent_executions(session_id, attempts=True, limit=MOST_EXECUTIONS)
    return executions


async def list_polls(read: Callable[[], Awaitable[Any]]) -> Polls:
    """Yield what `read` returns, every ten seconds."""
    state = await read()
    while True:
        yield state
        await asyncio.sleep(LIST_SECONDS)
        with suppress(Throttled, Unavailable):
            state = await read()


def event(text: str, name: str = "message") -> str:
    """Return a text as one server-sent event."""
    lines = "".join(f"data: {line}\n" for line in text.split("\n"))
    return f"event: {name}\n{lines}\n"
