"""A process of the simulation: a clock that may be wrong, tasks that a crash ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Any

from tdev_models.settings import Settings, Transport
from tests.simulation.loop import PROCESS, VirtualLoop

EPOCH = 1.8e9


class Died(BaseException):
    """The process is gone: nothing that its code still does reaches anybody."""


class Stop:
    """The event that tells a worker to begin nothing more."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set


class Process:
    """One worker process, until it crashes or ends.

    Attributes:
        name: the worker's, and which of its lives this is.
        frozen_until: none of its steps runs before that moment.
        cut_off_until: its requests do not arrive before that moment.
        skew: by how much its clock is ahead.
        born: when it began.
        dead: it crashed or has ended.
        stop: set when a deploy ends it.
        draining_since: when SIGTERM told it to begin nothing more; None where it did not.
        roots: its main tasks.
        waiting: the steps that would have run while it was frozen.
        tasks: all that it has begun.
    """

    def __init__(self, loop: VirtualLoop, name: str, skew: float) -> None:
        self._loop = loop
        self.name, self.skew = name, skew
        self.frozen_until = self.cut_off_until = 0.0
        self.born, self.dead = loop.now, False
        self.draining_since: float | None = None
        self.stop = Stop()
        self.client: Any = None  # how its heartbeat sends
        self.waiting: list[Any] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.roots: list[asyncio.Task[Any]] = []
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def clock(self) -> float:
        """Return what this process takes for the time."""
        return EPOCH + self._loop.now + self.skew

    def new_context(self) -> Context:
        """Return the context of a task that shares nothing with the others of the process."""
        return self._context.copy()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a main task, and return it."""
        task = self._loop.create_task(work, context=self.new_context())
        task.add_done_callback(self._check)
        self.roots.append(task)
        return task

    def _check(self, task: asyncio.Task[Any]) -> None:
        """Let no program of a living process end with an error that nobody expects."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.dead:
            self._loop.failure = self._loop.failure or error

    def freeze(self, seconds: float) -> None:
        """Let nothing run for a while."""
        self.frozen_until = self._loop.now + seconds
        self._loop.call_at(self.frozen_until, self._loop.thaw, self)

    def interrupt(self) -> None:
        """Cancel the main tasks, as the end of a deploy does."""
        for task in self.roots:
            task.cancel()

    def die(self) -> None:
        """End everything at once; what unwinds from here on has no effect."""
        self.dead, self.frozen_until = True, 0.0
        self._loop.thaw(self)
        for task in self.tasks:
            task.cancel()

    def settings(self, shared: Settings, transport: Transport) -> Settings:
        """Return the settings of this process."""
        return replace(shared, clock=self.clock, transport=lambda standard: transport)


def current_process() -> Process:
    """Return the process whose step runs."""
    process = PROCESS.get()
    assert isinstance(process, Process)
    return process
