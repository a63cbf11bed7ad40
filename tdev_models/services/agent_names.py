"""What an agent's runs are called within a session, so that no two are taken for one."""

from __future__ import annotations

from tdev_models import validation
from tdev_models.errors import InvalidRequest, shown
from tdev_models.models.execution import KEY_MARK, AgentExecution
from tdev_models.workers.bindings import agents_around
from tdev_models.workers.lease import Block, Lease

_NAME, _KEY = AgentExecution.rules()["agent_name"], validation.key(200, part=True)
_NUMBER = validation.whole(-(2**63), 2**63 - 1)


def name_with_key(agent_name: str, key: str | int | None) -> str:
    """Return the agent's name, or `agent@key`."""
    name: str = _NAME("agent_name", agent_name)
    if KEY_MARK in name:
        raise InvalidRequest("agent_name", f"must not hold {KEY_MARK!r}; give key= beside it")
    if key is None:
        return name
    is_number = isinstance(key, int) and not isinstance(key, bool)
    if not (is_number or isinstance(key, str)):
        kind = type(key).__name__
        raise InvalidRequest("key", f"must be a string or a whole number, not {kind}")
    text = _KEY("key", str(_NUMBER("key", key)) if is_number else key)
    try:
        both: str = _NAME("key", f"{name}{KEY_MARK}{text}")
    except InvalidRequest:
        problem = f"is too long beside {shown(name)}: they have at most 254 bytes together"
        raise InvalidRequest("key", problem) from None
    return both


def begin_block(lease: Lease, agent_name: str) -> Block | None:
    """Begin an agent's block; return what became of the one before in this claim.

    Where that one raised, what had ended inside it may be entered again, and hands back its output.

    Raises:
        InvalidRequest: it is running, or has ended: its output would be taken for that of this one.
    """
    before = lease.blocks.get(agent_name)
    if before is Block.RUNS or (before is Block.ENDED and agent_name in lease.ended_agents):
        raise InvalidRequest(
            "agent_name",
            f"{agent_name!r} {before.value} in session {lease.session_id} under this claim; an "
            "agent that runs more than once takes another key= each time",
        )
    lease.blocks[agent_name] = Block.RUNS
    for inner in [*lease.inside.pop(agent_name, ())]:
        if lease.blocks[inner] is Block.ENDED:
            lease.blocks[inner] = Block.RAISED
    return before


def end_block(lease: Lease, agent_name: str) -> None:
    """Say that an agent's block has ended without an error."""
    lease.blocks[agent_name] = Block.ENDED
    for outer in agents_around(lease):
        lease.inside.setdefault(outer, set()).add(agent_name)
