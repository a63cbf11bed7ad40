"""A session that this process claims, goes on with, and ends or hands back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from tdev_models.dynamodb.client_context import C, ClientContext
from tdev_models.dynamodb.encryption import check_encryption, encrypt_fields
from tdev_models.dynamodb.expressions import replace_fields, set_to
from tdev_models.errors import TdevError
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.results import ExecutionStatus, SessionStatus
from tdev_models.services.adoption import adopted
from tdev_models.services.payloads import known_payloads
from tdev_models.services.progress import Work
from tdev_models.services.session_run import SessionRun
from tdev_models.workers.claims import claim_session, hand_back
from tdev_models.workers.lease import Lease
from tdev_models.workers.leased_writes import leased_update
from tdev_models.workers.presence import Presence


class OwnedSession(ClientContext[C, Literal[False]]):
    """What a tracker does with its session, by its lease; when, a tracker decides.

    Attributes:
        session_id: the session.
        start_agent: the first agent that still has to run; None when all have ended.
    """

    def __init__(self, client: C, session_id: str) -> None:
        super().__init__(client)
        self.session_id = session_id
        self.start_agent: str | None = None
        self._run = SessionRun(client, session_id)

    @property
    def lease(self) -> Lease | None:
        """The claim; None before entry."""
        return self._run.lease

    @property
    def outputs(self) -> dict[str, Any]:
        """What is known of the outputs of the agents that have ended, by agent."""
        return self.lease.outputs if self.lease else {}

    @property
    def owned(self) -> Lease:
        """The lease, once entered or claimed; before that it raises LeaseHeld."""
        return self._run.owned

    async def claim(
        self,
        seen: PipelineSession,
        values: Mapping[str, Any],
        *,
        resumed: bool,
        afresh: bool = False,
        to_be_entered: bool = False,
    ) -> PipelineSession | None:
        """Claim the session as it was read; return it as it is where others were quicker.

        A cancellation waits for the claim, so that it is known and can be handed back. Who could
        not encrypt what the agents make claims nothing.
        """
        await check_encryption(self._client, AgentExecution)
        values = await encrypt_fields(self._client, PipelineSession, (self.session_id,), values)
        self._run.begin_span(seen.pipeline_type)
        if self._run.span.traceparent is not None:
            values = {**values, "traceparent": self._run.span.traceparent}

        async def claim() -> PipelineSession | None:
            claimed = await claim_session(
                self._client,
                seen,
                values,
                resumed=resumed,
                afresh=afresh,
                to_be_entered=to_be_entered,
            )
            if isinstance(claimed, PipelineSession):
                return claimed
            self._run.lease = claimed
            return None

        try:
            return await self._client.shielded(claim())
        except BaseException as error:
            await self.hand_back(error)
            raise

    async def take_over(
        self, seen: PipelineSession, work: Work, from_agent: str | None = None
    ) -> None:
        """Go on from what former claims left of the session, which this one has claimed."""
        lease = self.owned
        self._run.span.resume(seen.traceparent, seen.pipeline_type)
        if lease.adopts:
            work = await adopted(self._client, lease, seen, from_agent)
        outcome, lease.outputs = work
        self.start_agent = lease.start_agent = outcome.start_agent
        lease.executions, lease.ended_agents = {**outcome.executions}, set(outcome.ended)
        lease.failed_before = {
            name: one.error_message or f"{name} has failed under a former claim"
            for name, one in outcome.executions.items()
            if name in outcome.agents
            and name not in outcome.ended
            and one.status == ExecutionStatus.FAILED
            and one.critical is not False
        }
        lease.payloads = {**known_payloads(outcome.executions.values()), **outcome.payloads}

    async def end(self) -> None:
        """End the session as what its agents have left."""
        failures = {**self.owned.failures, **self.owned.failed_before}
        if self.owned.reason is None and not failures:
            done = [
                PipelineSession.error_message.remove(),
                PipelineSession.error_message_encrypted.remove(),
                PipelineSession.failed_agent.remove(),
            ]
            await leased_update(self._client, self.owned, done, ends=SessionStatus.COMPLETED)
            return
        agent, text = next(iter(failures.items()), (None, ""))
        await self.end_as_failed(self.owned.reason or text, agent)

    def agent_of(self, cause: BaseException) -> str | None:
        """Return the agent that raised an error, or else the one that is left failed or cut off."""
        raised = [agent for error, agent in self.owned.raised if error is cause]
        cut_off = [agent for _, agent in reversed(self.owned.raised)]
        return next(iter((*raised, *self.owned.failures, *cut_off)), None)

    async def hand_back(self, error: BaseException | None) -> None:
        """Give the session, if it was claimed, to whichever worker asks next."""
        lease = self._run.lease
        try:
            if lease is not None and not lease.over:
                seconds = self._run.seconds_for(error)
                with suppress(TdevError):
                    await leased_update(
                        self._client, lease, [], ends=SessionStatus.ACTIVE, retry_seconds=seconds
                    )
        finally:
            self.let_go()
            self._run.end_span(error)

    def let_go(self) -> None:
        """Let the worker hand back what could not be ended: it lives, and so would the lease."""
        lease = self._run.lease
        if lease is not None and lease.refused is not None:
            lease.lose(lease.refused)  # at once: the process may end before the next beat
        if lease is not None and not (lease.over or lease.lost):
            Presence.of(self._client.settings).settle(partial(hand_back, lease=lease))

    async def end_as_failed(self, text: str, agent_name: str | None) -> None:
        """End the session as FAILED, with its error and the agent, where one is known."""
        message = await encrypt_fields(
            self._client,
            PipelineSession,
            (self.session_id,),
            {"error_message": text},
            self._client.settings.owner_retry_seconds,
        )
        actions = replace_fields(PipelineSession, message)
        if agent_name:
            actions.append(set_to(PipelineSession.failed_agent, agent_name))
        else:
            actions.append(PipelineSession.failed_agent.remove())
        await leased_update(self._client, self.owned, actions, ends=SessionStatus.FAILED)
