"""Failures by agent and message: which trouble there is, instead of each time that it came up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tdev_models.results import Failure, Undecrypted

# What differs between messages that mean the same: quoted values, paths, hex ids, numbers.
_VARIABLE = re.compile(
    r"""(?x) "[^"]*" | '[^']*' | (?<!\w)/[^\s:]+ | \b[0-9a-f]{8}[0-9a-f-]*\b | \d+(?:[.,]\d+)*"""
)


@dataclass
class Group:
    """Failures of one agent with one message."""

    message: str
    agent_name: str
    failures: list[Failure] = field(default_factory=list)

    @property
    def recovered(self) -> int:
        """How many of them a later attempt has repaired."""
        return sum(failure.recovered for failure in self.failures)


def grouped(failures: Iterable[Failure]) -> list[Group]:
    """Return the failures by agent and message, the most frequent first."""
    groups: dict[tuple[str, str], Group] = {}
    for failure in failures:
        agent = failure.agent_name.partition("@")[0]
        text = _VARIABLE.sub("…", message(failure))
        group = groups.setdefault((agent, text), Group(message(failure), agent))
        group.failures.append(failure)
    return sorted(groups.values(), key=lambda group: len(group.failures), reverse=True)


def message(failure: Failure) -> str:
    """Return the message of a failure, in one line; beside an encrypted one the error's class."""
    if isinstance(failure.error_message, Undecrypted):
        return f"{failure.error_class or 'an error'} {failure.error_message}"
    text = (failure.error_message or "").strip() or failure.error_class or "(no message)"
    return text.partition("\n")[0]
