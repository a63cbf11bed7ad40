"""Threads, locks and connections do not follow into a child process."""

from __future__ import annotations

import os
from collections.abc import Callable


def after_fork_in_child(reset: Callable[[], object]) -> None:
    """Call a function in each child process of a fork, on systems that have forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)
