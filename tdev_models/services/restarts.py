"""What is outdated where a session began again at one of its agents (`from_agent`).

Executions are not marked: the claim that begins again stores what is outdated by it, in one write
with itself. So it is never done by half, costs the same for hundreds of executions, and holds for
those that the index did not show yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tdev_models.models import AgentExecution
from tdev_models.models.execution import agent_of


class Restart(NamedTuple):
    """A session began again under a claim, at what had begun at a moment of an earlier claim.

    What began since then is outdated until it has run under that claim or a later one, and so are
    the agent and those after it in the pipeline. Claims decide the order: they only rise. Start
    times decide within one claim, where they are of one clock.

    Attributes:
        claim: the number of the claim that began again.
        fence: that of the earlier claim.
        start_time: the moment, by the clock of the earlier claim's worker.
        agent: the pipeline's agent at which it began again; rows of an earlier form do not say it.
    """

    claim: float
    fence: float
    start_time: float
    agent: str = ""


def is_outdated(execution: AgentExecution, restarts: Iterable[Sequence[Any]]) -> bool:
    """Return whether an execution, of an agent that is none of the pipeline's, has to run again."""
    place = _place(execution)
    return any(
        place[0] < claim and place >= (fence, start_time)
        for claim, fence, start_time, *_ in restarts
    )


def with_restart(
    restarts: Sequence[Restart],
    claim: int,
    again: tuple[str, ...],
    agents: tuple[str, ...],
    executions: Mapping[str, AgentExecution],
) -> list[Restart]:
    """Return the restarts of a session once a claim lets the last of its agents run again.

    Those by which nothing is outdated that is not by the new one are left out.

    Args:
        restarts: those of former claims.
        claim: the number of the claim.
        again: the pipeline's agents that run again.
        agents: all of the pipeline's agents.
        executions: the latest execution of each agent.
    """
    begun = [run for name, run in executions.items() if agent_of(name) in again]
    # What an earlier beginning has outdated says nothing of what ran since.
    latest = [run for run in begun if not _was_outdated(run, restarts, agents)]
    fence, start_time = min(map(_place, latest or begun), default=(claim, 0.0))
    new = Restart(claim, fence, start_time, again[0])
    own = [run for name, run in executions.items() if name not in agents]
    rest = [run for run in own if not is_outdated(run, [new])]
    needed = [
        one
        for one in restarts
        if one.agent in agents[: -len(again)] or any(is_outdated(run, [one]) for run in rest)
    ]
    return [*needed, new]


def _was_outdated(
    execution: AgentExecution, restarts: Sequence[Restart], agents: tuple[str, ...]
) -> bool:
    """Return whether an execution, of whichever agent, was outdated by one of the restarts."""
    name, fence = execution.agent_name, execution.fence or 0
    if name not in agents:
        return is_outdated(execution, restarts)
    before = agents[: agents.index(name) + 1]
    return any(fence < one.claim and one.agent in before for one in restarts)


def _place(execution: AgentExecution) -> tuple[float, float]:
    return execution.fence or 0, execution.start_time or 0
