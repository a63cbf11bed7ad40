"""A caller's function in a thread of its own: who stops waiting for it can go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Begin a call in a daemon thread, with the settings and leases that are in force here.

    No thread can be killed: who does not wait to its end abandons it, and it holds up neither a
    pool nor the exit of the process.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on nobody can cancel it
    context = copy_context()

    def work() -> None:
        try:
            result = context.run(function, *arguments)
        except StopIteration as error:
            # As of a coroutine: no task can be woken with it, and would wait for ever.
            stopped = RuntimeError("the function raised StopIteration")
            stopped.__cause__ = error
            future.set_exception(stopped)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="tdev-agent", daemon=True).start()
    return future
