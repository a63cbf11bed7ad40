"""Whether a session without a lease is alive, as its executions show.

The plan's bare calls do not renew a lease, and `update_agent_execution` does not touch the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tdev_models.dynamodb.client import Client
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.results import SessionStatus
from tdev_models.workers.lease import was_handed_back

_AT_ONCE = 10
_LATEST = 20  # more than run side by side: one that began before the others may have ended last


async def shows_life(client: Client, session: PipelineSession) -> bool:
    """Return whether an ACTIVE session without a lease has an execution that is not yet stalled.

    One Query on project-index, eventually consistent; none for other sessions.
    """
    if session.status != SessionStatus.ACTIVE or session.lease_token is not None:
        return False
    if was_handed_back(session):
        return False
    executions, _ = await client.executions.page(
        session.session_id, index=AgentExecution.project_index, limit=_LATEST, newest_first=True
    )
    times = [time for one in executions for time in (one.start_time, one.end_time) if time]
    return max(times, default=0) >= client.now() - client.settings.stalled_after_seconds


async def without_signs_of_life(
    client: Client, sessions: Sequence[PipelineSession]
) -> list[PipelineSession]:
    """Return the sessions but for those that show life, in their order."""
    jobs = [partial(shows_life, client, session) for session in sessions]
    alive = await client.gather(jobs, _AT_ONCE)
    return [session for session, lives in zip(sessions, alive, strict=True) if not lives]
