"""What is outdated where a session began again at one of its agents (`from_agent`).

Executions are not marked: the claim that begins again stores what is outdated by it, in one write
with itself. So it is never done by half, costs the same for hundreds of executions, and holds for
those that the index did not show yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from tdev_models.models import AgentExecution


class Restart(NamedTuple):
    """A session began again under a claim, at what had begun at a moment of an earlier claim.

    What began since then is outdated until it has run under that claim or a later one. Claims
    decide the order: they only rise. Start times decide within one claim, where they are of one
    clock.

    Attributes:
        claim: the number of the claim that began again.
        fence: that of the earlier claim.
        start_time: the moment, by the clock of the earlier claim's worker.
    """

    claim: float
    fence: float
    start_time: float


def is_outdated(execution: AgentExecution, restarts: Iterable[Sequence[float]]) -> bool:
    """Return whether an execution, of an agent that is none of the pipeline's, has to run again."""
    place = _place(execution)
    return any(
        place[0] < claim and place >= (fence, start_time) for claim, fence, start_time in restarts
    )


def with_restart(
    restarts: Iterable[Sequence[float]],
    claim: int,
    again: Collection[AgentExecution],
    others: Iterable[AgentExecution],
) -> list[Sequence[float]]:
    """Return the restarts of a session once a claim lets some of its pipeline's agents run again.

    Those by which none of the others is outdated that is not by the new one are left out.
    """
    if not again:
        return list(restarts)
    new = Restart(claim, *min(map(_place, again)))
    rest = [execution for execution in others if not is_outdated(execution, [new])]
    needed = [one for one in restarts if any(is_outdated(run, [one]) for run in rest)]
    return [*needed, new]


def _place(execution: AgentExecution) -> tuple[float, float]:
    return execution.fence or 0, execution.start_time or 0
