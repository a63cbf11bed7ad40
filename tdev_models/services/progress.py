"""What the agents of a session have done so far, and where it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tdev_models.dynamodb.client import Client
from tdev_models.models import AgentExecution
from tdev_models.results import AGENTS, ExecutionStatus
from tdev_models.services.executions import payload

_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """The executions of a session by agent, and what of them still counts."""

    executions: Mapping[str, AgentExecution]
    ended: tuple[str, ...]
    start_agent: str | None

    async def outputs(self, client: Client) -> dict[str, Any]:
        """Return what the ended agents stored; those that failed non-critically have none.

        Large ones are read from their chunks, side by side.
        """
        completed = [
            self.executions[name]
            for name in self.ended
            if self.executions[name].status == ExecutionStatus.COMPLETED
        ]
        values = await client.gather(
            [partial(payload, client, one, "output_data") for one in completed], len(AGENTS)
        )
        return {one.agent_name: value for one, value in zip(completed, values, strict=True)}

    def before(self, agent_name: str) -> Outcome:
        """Return the outcome that starts again at one of the nine agents."""
        again = AGENTS[AGENTS.index(agent_name) :]
        ended = tuple(name for name in self.ended if name not in again)
        return Outcome(self.executions, ended, agent_name)


async def outcome_of(client: Client, session_id: str) -> Outcome:
    """Return what the agents of a session have done, as it was at one moment.

    One TransactGetItems of the nine conventional ids. Executions under other ids are found by
    Queries on project-index, which may lag, and then read consistently.
    """
    keys = [(f"{session_id}-{name}", name) for name in AGENTS]
    found = {
        execution.agent_name: execution
        for execution in await client.executions.get_many(keys)
        if execution is not None
    }
    others = await _of_other_ids(client, session_id, set(keys))
    # Of several of one agent the latest counts.
    for execution in sorted(others, key=lambda one: one.start_time or 0, reverse=True):
        found.setdefault(execution.agent_name, execution)

    ended: list[str] = []
    latest_fence: float = 0
    start_agent: str | None = AGENTS[0]
    for number, name in enumerate(AGENTS):
        last = found.get(name)
        if last is None:
            continue  # a pipeline may leave agents out
        # What was done under an older claim than an agent before it was made of outdated input.
        if not _counts(last) or (last.fence or 0) < latest_fence:
            start_agent = name
            break
        latest_fence = last.fence or 0
        ended.append(name)
        start_agent = AGENTS[number + 1] if number + 1 < len(AGENTS) else None
    ended += [
        name for name, execution in found.items() if name not in AGENTS and _counts(execution)
    ]
    return Outcome(found, tuple(ended), start_agent)


def _counts(execution: AgentExecution) -> bool:
    return execution.status == ExecutionStatus.COMPLETED or (
        execution.status == ExecutionStatus.FAILED and execution.critical is False
    )


async def _of_other_ids(
    client: Client, session_id: str, known: set[tuple[str, str]]
) -> list[AgentExecution]:
    keys: list[tuple[str, str]] = []
    start = None
    while True:
        page, start = await client.executions.page(
            session_id, index=AgentExecution.project_index, start=start
        )
        keys += [key for one in page if (key := (one.execution_id, one.agent_name)) not in known]
        if start is None:
            break
    keys = [*dict.fromkeys(keys)]  # a retry between two pages shows an execution again
    executions: list[AgentExecution] = []
    for first in range(0, len(keys), _AT_ONCE):
        read = await client.executions.get_many(keys[first : first + _AT_ONCE])
        executions += [one for one in read if one is not None]
    return executions
