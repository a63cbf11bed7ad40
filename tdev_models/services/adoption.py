"""What counts of a session's executions once it is claimed.

Anybody may write an execution that names a session, and no condition of that write can ask the
session without another permission. So only what a claim wrote counts, and what was there at the
first claim: that claim adopts it. An adopted execution has fence 0, older than each claim.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from pynamodb.expressions.update import Action

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import replace_fields, set_to
from tdev_models.errors import ConditionFailed, Conflict
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.retry import CONTENDED_TRIES, Turns
from tdev_models.services.execution_states import seen_condition
from tdev_models.services.progress import Work, work_so_far
from tdev_models.workers.lease import Lease, lease_lost_error
from tdev_models.workers.leased_writes import write_lock

_AT_ONCE = 50  # a transaction has at most 100 parts, and 4 MB


async def adopted(
    client: Client, lease: Lease, seen: PipelineSession, from_agent: str | None
) -> Work:
    """Adopt what agents have done before a session's first claim, and return it.

    Read after the claim: what was stored between its first reading and the claim counts, too.

    Raises:
        LeaseLost: the session was taken over meanwhile.
        Conflict: others wrote its executions again and again.
    """
    turns = Turns(client.sleep)
    while await turns.next():
        work = await work_so_far(client, seen, from_agent)
        unfenced = [run for run in work[0].executions.values() if run.fence is None]
        # What came since the claim was planned may have begun before all else that it outdates.
        again = {"restarts": json.dumps(work[0].restarts)} if from_agent else {}
        if await _adopt(client, lease, unfenced, replace_fields(PipelineSession, again)):
            lease.adopts = False
            return work
    raise Conflict(
        f"session {lease.session_id}: others wrote its executions {CONTENDED_TRIES} times"
    )


async def _adopt(
    client: Client, lease: Lease, executions: Sequence[AgentExecution], adds: Sequence[Action]
) -> bool:
    """Adopt executions as they were read; return False if others have written one since.

    `adds` are further actions on the session.
    """
    for first in range(0, len(executions) or 1, _AT_ONCE):
        is_last = first + _AT_ONCE >= len(executions)
        attribute = PipelineSession.adopts
        parts = [
            client.sessions.requests.update_part(
                lease.session_id,
                actions=[attribute.remove() if is_last else set_to(attribute, True), *adds],
                condition=lease.condition,
            ),
            *(
                client.executions.requests.update_part(
                    execution.execution_id,
                    execution.agent_name,
                    actions=[set_to(AgentExecution.fence, 0)],
                    condition=seen_condition(execution),
                )
                for execution in executions[first : first + _AT_ONCE]
            ),
        ]
        try:
            async with write_lock(client, lease):
                await client.sender.transact_write(parts, uuid.uuid4().hex)
        except ConditionFailed as refused:
            if refused.position == 0:
                raise lease_lost_error(lease) from None
            return False
    return True
