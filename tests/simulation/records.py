"""What the simulated programs know of their sessions, to compare it with what is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.processes import Process
from tests.simulation.values import Item


def text(item: Item, name: str) -> str | None:
    """Return a text attribute."""
    value = item.get(name)
    return None if value is None else str(value["S"])


def number(item: Item, name: str) -> float:
    """Return a number attribute; 0 where it is absent."""
    value = item.get(name)
    return 0.0 if value is None else float(value["N"])


class Violation(BaseException):
    """Something that must never happen has happened; no code of the package may catch it."""


class Rules:
    """Where programs report what must not be: the package would handle an error as its agent's.

    Attributes:
        broken: the first rule that was broken.
    """

    def __init__(self) -> None:
        self.broken: str | None = None

    def report(self, what: str) -> None:
        """Note that a rule was broken."""
        self.broken = self.broken or what


@dataclass(slots=True)
class Record:
    """One session of a history.

    Attributes:
        session_id: the session.
        agents: its agents, in their order.
        rules: where to report what must not be.
        bare: it is begun by the plan's bare calls, without a lease.
        poisoned: the agent that always fails; None where all may succeed.
        effect: the agent that has a side effect, if any.
        budget_usd: what its agents may cost; each try costs 1.
        finished: by agent, the output that a program was told is stored.
        redone_from: the number of the first agent that was asked to run again; those from there
            on may lose what they had.
        begun_again: by the number of an agent, the claim that began again there.
        reasons: why somebody has asked to abandon the session.
        failures: failures and deaths since the last agent ended.
        used: what its tries have said that they cost.
        owners: by fence, the token and the process of the claim.
        charges: how often the function of the effect was called, by whether its result is known.
        result: the effect's result, once it is known to be stored.
        at_work: the process and the claim of each agent that works and can be cancelled.
        hangs: an agent of it works on, whatever it is told.
    """

    session_id: str
    agents: tuple[str, ...]
    rules: Rules
    bare: bool = False
    poisoned: str | None = None
    effect: str | None = None
    budget_usd: int | None = None
    finished: dict[str, str] = field(default_factory=dict)
    redone_from: int | None = None
    begun_again: dict[int, int] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    failures: int = 0
    used: int = 0
    owners: dict[int, tuple[str, Process]] = field(default_factory=dict)
    charges: int = 0
    result: str | None = None
    at_work: set[tuple[Process, int]] = field(default_factory=set)
    hangs: bool = False

    def is_taken(self, number: int) -> None:
        """Note that somebody takes the session over, to begin again at an agent or after all."""
        self.redone_from = min(
            number, len(self.agents) if self.redone_from is None else self.redone_from
        )

    def may_be_redone(self, agent: str) -> bool:
        """Return whether somebody asked for an agent, or one before it, to run again."""
        return self.redone_from is not None and self.agents.index(agent) >= self.redone_from

    def begins(self, agent: str, fence: int) -> None:
        """Note that an agent's work begins under a claim.

        A former owner, which has not learned of it, may work: its begin is sent meanwhile.
        """
        owns = fence >= max(self.owners, default=0)
        if owns and agent in self.finished and not self.may_be_redone(agent):
            self.rules.report(f"{self.session_id}: {agent} had finished, and runs again")

    def ends(self, agent: str, output: str) -> None:
        """Note that a program was told that an agent's output is stored."""
        self.finished[agent] = output


@dataclass(slots=True)
class Samples:
    """Samples of one metric, each a power of two: the sum shows which of them are in.

    Attributes:
        begun: how many calls were made.
        awaited: the sum of those that returned.
    """

    begun: int = 0
    awaited: int = 0
    stored: Counter[str] = field(default_factory=Counter)
