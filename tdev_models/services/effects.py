"""Side effects and checkpoints inside an agent that happen once.

An effect is an item in the execution's partition, under `agent#once#name`::

    reserve (no such item, and under the lease) .. run the function .. store its result

Who finds a result hands it back. Who finds a reservation (`write_token`) without one cannot know
whether the function ran: its worker died, or it raised. That is for the caller to decide. The item
has no status and no project, so no index holds it.
"""

from __future__ import annotations

import inspect
import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models import validation
from tdev_models.dynamodb import chunks
from tdev_models.dynamodb.client import WAITED, Client
from tdev_models.dynamodb.encryption import encrypt_fields
from tdev_models.dynamodb.expressions import is_as_read, set_fields, set_or_remove
from tdev_models.errors import (
    ConditionFailed,
    Conflict,
    EffectInDoubt,
    InvalidRequest,
    TdevError,
    shown,
)
from tdev_models.models import AgentExecution
from tdev_models.retry import CANCELLED_SECONDS
from tdev_models.security.fields import key_for
from tdev_models.services.payloads import checked_payload, read_payload
from tdev_models.workers.lease import Lease
from tdev_models.workers.leased_writes import leased_execution

InDoubt = Literal["raise", "run", "skip"]

_NAME = validation.key(200, part=True)
_RESULT = validation.json_text(objects_only=True)


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect of one agent in one session.

    Attributes:
        client: how requests are sent.
        lease: the claim under which all of it is written.
        execution_id: the partition.
        agent_name: the agent, with its key.
        name: the effect.
    """

    client: Client
    lease: Lease
    execution_id: str
    agent_name: str
    name: str

    async def once(self, function: Callable[[], Any], in_doubt: InDoubt) -> Any:
        """Return the stored result in its JSON form, of this call or of a former one.

        Raises:
            EffectInDoubt: it was begun before, and whether it happened is not known.
            LeaseLost: the session was taken over; the function was not called, or its result is
                not stored.
            InvalidRequest: the result has no JSON form; the effect is in doubt then.
        """
        token = uuid.uuid4().hex[:16]
        found = seen = await self._reserved(token, None)
        while found is not None:
            if found.end_time is not None:
                return await read_payload(self.client, found, "output_data")
            if in_doubt == "raise":
                raise self._doubt(found)
            found = await self._reserved(token, found.write_token)
        skipped = seen is not None and in_doubt == "skip"
        result = None if skipped else await self.client.call(function)
        # It has happened: a cancellation must not leave it in doubt.
        return await self.client.shielded(self._store(token, result))

    @property
    def _sort_key(self) -> str:
        return f"{self.agent_name}#once#{self.name}"

    async def _reserved(self, token: str, before: str | None) -> AgentExecution | None:
        """Reserve; where that is cancelled give it back: the function was not called."""
        try:
            return await self._reserve(token, before)
        except BaseException as error:
            if not isinstance(error, Exception):
                begun, waited = time.monotonic(), getattr(error, WAITED, 0.0)
                given_back = [set_or_remove(AgentExecution.write_token, before)]
                condition: Condition = is_as_read(AgentExecution.write_token, token)
                seconds = max(0.0, CANCELLED_SECONDS - waited)
                with suppress(TdevError):  # it is in doubt then
                    await self._write(given_back, condition, retry_seconds=seconds)
                setattr(error, WAITED, waited + time.monotonic() - begun)
            raise

    async def _reserve(self, token: str, before: str | None) -> AgentExecution | None:
        """Reserve what nobody has reserved but by a given token; return what is stored otherwise.

        Its answer is no leave to run the function where it is read late, say by a process that
        was frozen: the session may have been taken over since. Then it is reserved once more.
        """
        while True:
            now = self.client.now()
            values = {"write_token": token, "fence": self.lease.fence, "start_time": now}
            if self.lease.expires_at is not None:
                values["expires_at"] = self.lease.expires_at
            condition: Condition = is_as_read(AgentExecution.write_token, before)
            condition &= AgentExecution.end_time.does_not_exist()
            try:
                await self._write(set_fields(AgentExecution, values), condition, says_owned=True)
            except ConditionFailed as refused:
                stored = self.client.executions.load(refused.item)
                if stored is None or stored.write_token != token:
                    return stored
            if self.client.now() <= now + self.client.settings.lease_seconds / 3:
                return None
            before = token

    async def _store(self, token: str, result: Any) -> Any:
        try:
            text = await checked_payload(self.client, result, lambda: _RESULT("result", result))
        except InvalidRequest as unusable:
            unusable.add_note(f"{self._what} has happened, and is in doubt from now on")
            raise
        kms_seconds = self.client.settings.owner_retry_seconds
        values = {"output_data": text}
        if len(text.encode()) > chunks.INLINE_BYTES:
            key, expires_at = f"{self._sort_key}#{self.lease.fence}", self.lease.expires_at
            values = {
                "output_ref": await chunks.write(
                    self.client,
                    self.execution_id,
                    key,
                    text,
                    expires_at=expires_at,
                    stored=self.lease.payloads,
                    kms_key=key_for(self.client.settings, "output_data"),
                    retry_seconds=kms_seconds,
                )
            }
        place = self.execution_id, self._sort_key
        fields = await encrypt_fields(self.client, AgentExecution, place, values, kms_seconds)
        actions = set_fields(AgentExecution, {**fields, "end_time": self.client.now()})
        condition: Condition = is_as_read(AgentExecution.write_token, token)
        try:
            await self._write(actions, condition)
        except ConditionFailed:
            raise Conflict(
                f"{self._what} was begun again by another call; this one's result is not stored"
            ) from None
        return await self.client.compute(json.loads, text)

    async def _write(
        self,
        actions: list[Action],
        condition: Condition,
        *,
        says_owned: bool = False,
        retry_seconds: float | None = None,
    ) -> None:
        part = self.client.executions.requests.update_part(
            self.execution_id, self._sort_key, actions=actions, condition=condition
        )
        await leased_execution(
            self.client,
            self.lease,
            self.agent_name,
            part,
            ended=None,
            says_owned=says_owned,
            retry_seconds=retry_seconds,
        )

    @property
    def _what(self) -> str:
        return f"effect {self.name!r} of {self.agent_name} in session {self.lease.session_id}"

    def _doubt(self, found: AgentExecution) -> EffectInDoubt:
        return EffectInDoubt(
            f"{self._what} was begun under claim {int(found.fence or 0)}, and its result was never "
            "stored: the worker died, or the function raised. Find out whether it happened; then "
            "call once(..., in_doubt='run') to do it again, or in_doubt='skip' to go on without it"
        )


def check_function(client: Client, function: Callable[..., Any]) -> None:
    """Raise InvalidRequest if a function cannot be called, or cannot be awaited here."""
    if not callable(function):
        raise InvalidRequest("function", f"must be a function, not {shown(function)}")
    forms = function, getattr(function, "__call__", None)  # noqa: B004 (of an object)
    if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in forms):
        raise InvalidRequest("function", "is a generator: calling it runs nothing; take out yield")
    if not client.in_event_loop and any(map(inspect.iscoroutinefunction, forms)):
        raise InvalidRequest("function", "is async; use track_session of tdev_models, not of sync")


def effect(
    client: Client, lease: Lease, execution_id: str, agent_name: str, name: str, in_doubt: str
) -> Effect:
    """Return the effect of a checked name, and check what to do in doubt."""
    if in_doubt not in ("raise", "run", "skip"):
        raise InvalidRequest("in_doubt", f"{shown(in_doubt)} is not one of raise, run, skip")
    return Effect(client, lease, execution_id, agent_name, _NAME("name", name))
