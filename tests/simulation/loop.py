"""An event loop on a virtual clock: nothing waits, and the same seed runs the same steps."""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, Protocol


class Frozen(Protocol):
    """What the loop needs to know of a process.

    Attributes:
        frozen_until: none of its steps runs before that moment.
        waiting: the steps that would have run meanwhile.
        tasks: what it has begun.
    """

    frozen_until: float
    waiting: list[_Step]
    tasks: list[asyncio.Task[Any]]


PROCESS: ContextVar[Frozen | None] = ContextVar("simulated_process", default=None)
"""Whose step it is; None for the world around the processes."""

_KEPT_TASKS = 64


class _Step(asyncio.TimerHandle):
    """A callback and its context; made for each step of each task, so it holds no more."""

    __slots__ = ("process",)
    process: Frozen | None

    def __init__(self, callback: Any, args: tuple[Any, ...], context: Context | None) -> None:
        self._callback, self._args = callback, args
        self._context = context = copy_context() if context is None else context
        self._cancelled = False
        self.process = context.get(PROCESS)

    def cancel(self) -> None:
        self._cancelled, self._args = True, ()


class _Task(asyncio.Task[Any]):
    """A task with a number for a hash: sets of tasks have the same order in each run."""

    def __new__(cls, coro: Any, *, loop: VirtualLoop, **more: Any) -> _Task:
        task = super().__new__(cls)
        task.number = loop.numbered()
        return task

    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs tasks; where none is ready the clock jumps to the next timer.

    Attributes:
        now: the moment, in seconds since the beginning.
        failure: the first error that a callback raised; the loop stops there.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.failure: BaseException | None = None
        self._ready: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._numbers = 0

    def run(self, is_over: Callable[[], bool], limit: float) -> None:
        """Run until something is over, nothing is left to do, or the clock passes a limit."""
        events._set_running_loop(self)
        ready, timers = self._ready, self._timers
        try:
            while self.failure is None and not is_over():
                if not ready:
                    if not timers or timers[0][0] > limit:
                        return
                    when, _, step = heapq.heappop(timers)
                    self.now = max(self.now, when)
                    ready.append(step)
                while ready:
                    step = ready.popleft()
                    if step._cancelled:
                        continue
                    process = step.process
                    if process is not None and process.frozen_until > self.now:
                        process.waiting.append(step)
                    else:
                        step._context.run(step._callback, *step._args)
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            events._set_running_loop(None)

    def thaw(self, process: Frozen) -> None:
        """Run what waits in a process, unless it is still frozen."""
        if process.frozen_until <= self.now:
            self._ready.extend(process.waiting)
            process.waiting.clear()

    def numbered(self) -> int:
        """Return a number that no one else has."""
        self._numbers += 1
        return self._numbers

    # ------------------------------------------------------------------ what asyncio asks of a loop

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        step = _Step(callback, args, context)
        self._ready.append(step)
        return step

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        step = _Step(callback, args, context)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, step))
        return step

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        task = _Task(coro, loop=self, name=name or "task", context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            if len(process.tasks) > _KEPT_TASKS:
                process.tasks[:] = [one for one in process.tasks if not one.done()]
            process.tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.failure is None:
            error = context.get("exception")
            self.failure = error or RuntimeError(str(context.get("message")))
