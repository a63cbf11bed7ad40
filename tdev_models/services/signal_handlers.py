"""Whether a signal handler of the program raised an error, or the code that it interrupted."""

from __future__ import annotations

import functools
import signal
import traceback
from collections.abc import Set
from types import CodeType


def handlers_code() -> Set[CodeType]:
    """Return the code of the Python functions that are registered as signal handlers."""
    codes = set[CodeType]()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        for function in (handler, getattr(handler, "__call__", None)):  # noqa: B004
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                codes.add(code)
    return codes


def was_raised_by(error: BaseException, codes: Set[CodeType]) -> bool:
    """Return whether one of the functions was running when an error was raised."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code in codes for frame, _ in frames)
