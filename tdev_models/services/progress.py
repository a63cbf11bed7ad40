"""What the agents of a session have done so far, and where it goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from tdev_models.dynamodb.chunks import Stored
from tdev_models.dynamodb.client import Client
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.results import ExecutionStatus
from tdev_models.services.execution_states import counts_as_ended
from tdev_models.services.payloads import read_payload
from tdev_models.services.restarts import Restart, is_outdated, with_restart
from tdev_models.workers.claims import adopts_unclaimed

_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the agents of a session have done.

    Attributes:
        executions: the latest execution of each agent.
        ended: the agents that have ended and need not run again.
        start_agent: the first of the pipeline's agents that still has to run; None when none has.
        agents: the pipeline's agents, in their order.
        restarts: where the session began again, as far as that still outdates something.
        payloads: what `outputs` has read of chunks.
    """

    executions: Mapping[str, AgentExecution]
    ended: tuple[str, ...]
    start_agent: str | None
    agents: tuple[str, ...]
    restarts: Sequence[Restart]
    payloads: Stored = field(default_factory=dict, repr=False)

    async def outputs(self, client: Client) -> dict[str, Any]:
        """Return what the ended agents stored; those that failed non-critically have none.

        Large ones are read from their chunks, side by side.
        """
        completed = [
            self.executions[name]
            for name in self.ended
            if self.executions[name].status == ExecutionStatus.COMPLETED
        ]
        jobs = [
            partial(read_payload, client, execution, "output_data", self.payloads)
            for execution in completed
        ]
        values = await client.gather(jobs, _AT_ONCE)
        names = [execution.agent_name for execution in completed]
        return dict(zip(names, values, strict=True))

    def starting_at(self, agent_name: str, claim: int) -> Outcome:
        """Return the outcome with one of the pipeline's agents to run again under a claim.

        All after it run again, too, and those of one's own that began since.
        """
        again = self.agents[self.agents.index(agent_name) :]
        restarts = with_restart(self.restarts, claim, again, self.agents, self.executions)
        ended = tuple(
            name
            for name in self.ended
            if name not in again
            and (name in self.agents or not is_outdated(self.executions[name], restarts))
        )
        return Outcome(self.executions, ended, agent_name, self.agents, restarts)


Work: TypeAlias = tuple[Outcome, dict[str, Any]]
"""What the agents of a session have done, and the outputs of those that have ended."""


async def work_so_far(client: Client, seen: PipelineSession, from_agent: str | None = None) -> Work:
    """Return what the agents of a session have done, and the outputs of those that have ended.

    Read before the session is claimed: who may not or cannot read it has then spent nothing. What
    an owner writes meanwhile changes the session, too, and the claim is refused.

    Args:
        client: the client.
        seen: the session as it was read before it is claimed.
        from_agent: one of the pipeline's agents to begin again at.

    Raises:
        PayloadDamaged: an output of an ended agent cannot be read.
    """
    outcome = await _outcome_of(client, seen)
    if from_agent is not None:
        outcome = outcome.starting_at(from_agent, int(seen.fence or 0) + 1)
    return outcome, await outcome.outputs(client)


async def _outcome_of(client: Client, seen: PipelineSession) -> Outcome:
    """Return what the agents of a session have done, as it was at one moment.

    One TransactGetItems of the conventional ids of all agents. Executions under other ids
    are found by Queries on project-index, which may lag, and then read consistently.
    """
    session_id, agents = seen.session_id, client.settings.agents
    unfenced, restarts = adopts_unclaimed(seen), [Restart(*one) for one in seen.restarts or ()]
    keys = [(f"{session_id}-{name}", name) for name in agents]
    executions = {
        execution.agent_name: execution
        for execution in await client.executions.get_many(keys)
        if execution is not None and _counts(execution, unfenced)
    }
    others = await _executions_under_other_ids(client, session_id, set(keys))
    # Of several of one agent the latest counts.
    for execution in sorted(others, key=lambda other: other.start_time or 0, reverse=True):
        if _counts(execution, unfenced):
            executions.setdefault(execution.agent_name, execution)

    ended, start_agent = _ended_in_order(executions, agents, restarts)
    ended += [
        name
        for name, execution in executions.items()
        if name not in agents
        and counts_as_ended(execution.status, execution.critical)
        and not is_outdated(execution, restarts)
    ]
    return Outcome(executions, tuple(ended), start_agent, agents, restarts)


def _counts(execution: AgentExecution, unfenced: bool) -> bool:
    # Anybody may have written what no claim wrote or adopted.
    return unfenced or execution.fence is not None


def _ended_in_order(
    executions: Mapping[str, AgentExecution], agents: tuple[str, ...], restarts: Iterable[Restart]
) -> tuple[list[str], str | None]:
    """Return which of the pipeline's agents have ended, and the first that has to run."""
    begun_again = {one.agent: one.claim for one in restarts}
    ended: list[str] = []
    latest_fence: float = 0
    start_agent: str | None = agents[0]
    never_run: str | None = None
    for number, name in enumerate(agents):
        latest_fence = max(latest_fence, begun_again.get(name, 0))
        execution = executions.get(name)
        if execution is None:  # a pipeline may leave agents out
            if name in begun_again:
                never_run = never_run or name
            continue
        # What was done under an older claim than an agent before it was made of outdated input.
        is_outdated = (execution.fence or 0) < latest_fence
        if is_outdated or not counts_as_ended(execution.status, execution.critical):
            return ended, never_run or name
        latest_fence = execution.fence or 0
        ended.append(name)
        start_agent, never_run = (agents[number + 1] if number + 1 < len(agents) else None), None
    return ended, never_run or start_agent


async def _executions_under_other_ids(
    client: Client, session_id: str, known: set[tuple[str, str]]
) -> list[AgentExecution]:
    """Return the executions of a session but for those of known keys, read consistently."""
    keys: dict[tuple[str, str], None] = {}  # a retry between two pages shows an execution again
    start = None
    while True:
        page, start = await client.executions.page(
            session_id, index=AgentExecution.project_index, start=start
        )
        keys |= dict.fromkeys((item.execution_id, item.agent_name) for item in page)
        if start is None:
            break
    others = [key for key in keys if key not in known]
    executions: list[AgentExecution] = []
    for first in range(0, len(others), _AT_ONCE):
        stored = await client.executions.get_many(others[first : first + _AT_ONCE])
        executions += [execution for execution in stored if execution is not None]
    return executions
