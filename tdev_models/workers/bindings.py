"""Under which lease the calls of a task, or of a thread, act."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

from tdev_models.dynamodb.client import Client
from tdev_models.forks import after_fork_in_child
from tdev_models.workers.lease import Block, Lease

MIXED = (
    "a blocking call met an awaitable one of the same session; "
    "use the awaitable functions in an event loop"
)


@dataclass(slots=True)
class Binding:
    """The lease under which calls of a task, and of all that it starts, act on one session.

    Attributes:
        lease: until the session is entered, that of an outer block, or None.
        pending: it may be entered yet.
    """

    lease: Lease | None = None
    pending: bool = False


_UNBOUND = Binding()

_NONE: Mapping[str, Binding] = MappingProxyType({})

_bound: ContextVar[Mapping[str, Binding]] = ContextVar("tdev_leases", default=_NONE)


def current_lease(client: Client, session_id: str | None) -> Lease | None:
    """Return the lease under which calls on a session act in this task or thread, if any.

    It may be over: then the call is refused, rather than taken for a call without a lease.
    """
    return _bound.get().get(_place(client, session_id), _UNBOUND).lease


@dataclass(slots=True, eq=False)
class Around:
    """An agent's block, for what runs inside it.

    Attributes:
        lease: its session's.
        agent_name: the agent, with its key.
        stopped: an agent, or a session, inside it did not begin, since this process drains: the
            agent is not to end.
    """

    lease: Lease
    agent_name: str
    stopped: bool = False


_around: ContextVar[tuple[Around, ...]] = ContextVar("tdev_agents", default=())


def enter_agent(lease: Lease, agent_name: str) -> Around:
    """Let what this task, or thread, does from here on be inside an agent's block."""
    around = Around(lease, agent_name)
    _around.set((*_around.get(), around))
    return around


def leave_agent(around: Around) -> None:
    """End what `enter_agent` began."""
    _around.set(tuple(one for one in _around.get() if one is not around))


def agents_around(lease: Lease) -> list[str]:
    """Return the agents of a session inside whose blocks this task, or thread, acts.

    A thread of the caller's own does not know: it may be inside any that runs.
    """
    if all(binding.lease is not lease for binding in _bound.get().values()):
        return [name for name, block in [*lease.blocks.items()] if block is Block.RUNS]
    return [around.agent_name for around in _around.get() if around.lease is lease]


def stop_around() -> None:
    """Let no session or agent end inside whose block this task, or thread, acts: it drains."""
    for binding in _bound.get().values():
        if binding.lease is not None:
            binding.lease.stopped = True
    for around in _around.get():
        around.stopped = True


async def after_beginnings(client: Client, lease: Lease | None, *, writes: bool = True) -> None:
    """Wait until the agents that have begun are stored as RUNNING, or this is given up.

    What `writes` would else be overtaken, and what reads would show the moment before.
    """
    for written, thread in list(lease.beginnings.values()) if lease else ():
        if client.in_event_loop or thread != threading.get_ident():
            await client.wait_for(written)
        elif writes:
            raise RuntimeError(MIXED)


def bind_lease(client: Client, session_id: str) -> Binding:
    """Let calls on a session act, in this task or thread, under the lease that it will be given."""
    place = _place(client, session_id)
    binding = Binding(_bound.get().get(place, _UNBOUND).lease, pending=True)
    used = {key: one for key, one in _bound.get().items() if one.lease or one.pending}
    _bound.set({**used, place: binding})
    return binding


def _after_fork() -> None:
    # A write that was under way in another thread held the lock, and did not follow into the child;
    # nor did the begins of agents, for which the child's calls would wait for ever.
    for binding in _bound.get().values():
        if (lease := binding.lease) is None:
            continue
        lease.write_lock, lease.write_lock_thread = threading.Lock(), 0
        lease.beginnings = {}


after_fork_in_child(_after_fork)


def unbind_lease(lease: Lease) -> None:
    """End what `bind_lease` began."""
    _bound.set({place: one for place, one in _bound.get().items() if one.lease is not lease})


def _place(client: Client, session_id: str | None) -> str:
    settings = client.settings
    return f"{settings.endpoint} {settings.region} {client.sessions.name} {session_id}"
