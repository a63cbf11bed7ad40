"""Encrypts stored rows under the key in force, beside live writers; run again, it goes on.

A row is written only if what is encrypted of it is still as it was read; else it is looked at
again, as it is now. What is under the key already is left, without a call of KMS. What has expired
is left to DynamoDB, which deletes it: large payloads perhaps before what points at them.
"""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, Self

from pynamodb.attributes import Attribute
from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb import chunks
from tdev_models.dynamodb.blocking_client import BlockingClient
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import (
    decrypt,
    encrypt_fields,
    encrypted_names,
    place_of,
)
from tdev_models.dynamodb.expressions import replace_fields
from tdev_models.dynamodb.table import Table
from tdev_models.errors import ConditionFailed, ConfigurationError, Conflict
from tdev_models.models import AgentExecution, BaseModel, PipelineSession, UserProject
from tdev_models.models.execution import attempt_key
from tdev_models.results import ExecutionStatus
from tdev_models.retry import CONTENDED_TRIES, Turns
from tdev_models.security.fields import ENVELOPES, SUFFIX, is_current, key_of
from tdev_models.services.failed_attempts import attempt_of_earlier_release
from tdev_models.settings import ENCRYPTED_FIELDS, Settings

MODELS: tuple[type[BaseModel], ...] = (PipelineSession, AgentExecution, UserProject)
"""The tables that hold what is encrypted."""

Row = Mapping[str, Mapping[str, Any]]
_FIRST = "#00000"  # ends the sort key of a payload's first chunk


class Reencryption:
    """Encrypts rows under the key of some settings. Needs permissions that no worker has."""

    def __init__(self, client: Client, fields: tuple[str, ...]) -> None:
        self._client, self._fields = client, fields
        # Of the first chunk that `delete_old_chunks` was given last; others follow in a scan.
        self._seen: tuple[str, str] | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what encrypts the fields of these settings under their key.

        Raises:
            ConfigurationError: they have none, or the extra is not installed.
        """
        if settings.kms_key is None:
            raise ConfigurationError("there is no key to encrypt under: set TDEV_KMS_KEY")
        # What is encrypted and no longer chosen keeps to be encrypted, under the key in force.
        all_fields = replace(settings, kms_fields=ENCRYPTED_FIELDS, kms_strict=False)
        return cls(BlockingClient.for_settings(all_fields), settings.kms_fields)

    async def encrypt_row(
        self, model: type[BaseModel], row: Row | None, on_left: Callable[[str], None]
    ) -> bool:
        """Encrypt what of a row is in clear or under another key; return whether it changed.

        `on_left` is told of each text of an attempt that stays in clear: no item can keep it.

        Raises:
            PayloadDamaged, AccessDenied, ConfigurationError: it cannot be read; nothing changed.
        """
        table = self._table(model)
        turns = Turns(self._client.sleep)
        while await turns.next():
            item = table.live(row)
            if row is None or item is None:
                return False  # it was deleted meanwhile, or has expired
            names = [name for name in encrypted_names(model) if self._is_old(row, name)]
            actions, same, attempts = await self._forgets_texts(item, on_left)
            if not names and not actions:
                return False
            forms = [form for name in names for form in (name, f"{name}{SUFFIX}")]
            same += [item.is_as_read(_attribute(model, form)) for form in forms]
            actions += replace_fields(model, await self._values(row, item, names))
            part = table.requests.update_part(
                *place_of(item, "").key, actions=actions, condition=reduce(operator.and_, same)
            )
            try:
                if attempts:
                    token = uuid.uuid4().hex
                    await self._client.sender.transact_write([part, *attempts], token)
                else:
                    request = table.requests.dispatch("UpdateItem", part["Update"])
                    await self._client.sender.send(*request)
            except ConditionFailed as refused:
                row = refused.item
            else:
                return True
        raise Conflict(f"a row of {table.name}: others wrote it {CONTENDED_TRIES} times in between")

    async def delete_old_chunks(self, row: Row) -> int:
        """Delete the chunks of a payload that begins with this row and is to be under the key.

        Or this chunk alone, whose first is not there. What is in clear of a field that is not to be
        encrypted is left. Only once every row is under the key, and every worker uses it for the
        same fields: no row may point at them.

        Returns:
            How many chunks were deleted.
        """
        key, data = row.get("agent_name", {}).get("S", ""), row.get("chunk", {}).get("B")
        if data is None or self._client.executions.live(row) is None:
            return 0
        execution_id, payload = row["execution_id"]["S"], key.rpartition("#")[0]
        if key.endswith(_FIRST):
            self._seen = execution_id, payload
            old = self._is_old_chunk(key, data)
            return await self._delete(execution_id, payload) if old else 0
        if chunks.field_of(key) not in self._fields or self._seen == (execution_id, payload):
            return 0
        if await self._keys(execution_id, f"{payload}{_FIRST}"):
            return 0
        return await self._delete(execution_id, key)

    def _is_old_chunk(self, key: str, data: bytes) -> bool:
        kms_key = key_of(self._client.settings, data)
        if kms_key is None:
            return chunks.field_of(key) in self._fields
        return kms_key != self._client.settings.kms_key

    async def _delete(self, execution_id: str, prefix: str) -> int:
        """Delete the items of an execution whose keys begin so, the last first.

        So the first chunk goes last: it tells a run that goes on what the others are.
        """
        found = await self._keys(execution_id, prefix)
        for key in reversed(found):
            table = self._client.executions.name
            request = {"TableName": table, "Key": key, "ReturnConsumedCapacity": "TOTAL"}
            await self._client.sender.send("DeleteItem", request)
        return len(found)

    async def _keys(self, execution_id: str, prefix: str) -> list[dict[str, Any]]:
        """Return the keys of an execution's items that begin so, in their order."""
        found, start = list[dict[str, Any]](), None
        while True:
            page, start = await self._client.executions.raw_page(
                execution_id,
                range_condition=AgentExecution.agent_name.startswith(prefix),
                start=start,
                only=[AgentExecution.execution_id, AgentExecution.agent_name],
            )
            found += page
            if start is None:
                return found

    def _table(self, model: type[BaseModel]) -> Table[Any]:
        tables = (self._client.sessions, self._client.executions, self._client.projects)
        return next(table for table in tables if table.model is model)

    def _is_old(self, row: Row, name: str) -> bool:
        if self._stays_in_clear(row, name):
            return name in ENVELOPES and self._is_shared(row[name]["S"])
        if name in row and self._is_secret(name):
            return True
        message = row.get(f"{name}{SUFFIX}")
        return message is not None and not is_current(self._client.settings, message["B"])

    def _stays_in_clear(self, row: Row, name: str) -> bool:
        return name in row and f"{name}{SUFFIX}" not in row and not self._is_secret(name)

    def _is_secret(self, name: str) -> bool:
        return ENVELOPES.get(name, name) in self._fields

    def _is_shared(self, envelope: str) -> bool:
        """Return whether an envelope may point at chunks that `delete_old_chunks` deletes."""
        secret = {*self._fields} & {*ENVELOPES.values()}
        return bool(secret) and chunks.lies_among(envelope, secret)

    async def _values(self, row: Row, item: BaseModel, names: Sequence[str]) -> dict[str, Any]:
        """Return fields of a row as they are to be stored."""
        values = {name: await self._value(row, item, name) for name in names}
        clear = {name: values.pop(name) for name in names if self._stays_in_clear(row, name)}
        key = place_of(item, "").key
        return {**await encrypt_fields(self._client, type(item), key, values), **clear}

    async def _value(self, row: Row, item: BaseModel, name: str) -> str:
        """Return the text to encrypt: of a large payload, the envelope of what is written anew."""
        message = row.get(f"{name}{SUFFIX}")
        if message is None:
            text = str(row[name]["S"])
        else:
            text = (await decrypt(self._client, place_of(item, name), message["B"])).decode()
        if not isinstance(item, AgentExecution) or name not in ENVELOPES:
            return text
        execution_id, field = item.execution_id, ENVELOPES[name]
        encrypted = message is not None
        _, data = await chunks.read_bytes(self._client, execution_id, text, encrypted=encrypted)
        fence, retries = int(item.fence or 0), int(item.retry_count or 0)
        return await chunks.write(
            self._client,
            execution_id,
            f"{item.agent_name}#{field}#{retries}#{fence}",
            data.decode(),
            expires_at=item.expires_at,
            stored={},
            kms_key=None if self._stays_in_clear(row, name) else self._client.settings.kms_key,
        )

    async def _forgets_texts(
        self, item: BaseModel, on_left: Callable[[str], None]
    ) -> tuple[list[Action], list[Condition], list[dict[str, Any]]]:
        """Return what takes the errors' texts in clear out of the attempts of an execution.

        And that they are as they were read, and what else keeps failed attempts with their texts,
        as items of their own: earlier releases have not done so.
        """
        actions, same, parts = list[Action](), list[Condition](), list[dict[str, Any]]()
        if not (isinstance(item, AgentExecution) and self._is_secret("error_message")):
            return actions, same, parts
        texts = {s: one for s, one in (item.attempts or {}).items() if "error_message" in one}
        found = await self._keys(item.execution_id, attempt_key(item.agent_name)) if texts else []
        kept = {key["agent_name"]["S"] for key in found}
        for slot, attempt in texts.items():
            number = int(attempt.get("number") or 0)
            if attempt_key(item.agent_name, number) not in kept:
                if attempt.get("status") == ExecutionStatus.FAILED and number:
                    parts.append(await attempt_of_earlier_release(self._client, item, attempt))
                elif not _stands_in_row(item, number):
                    on_left(f"{item.execution_id}: the text of attempt {number}")
                    continue
            text = AgentExecution.attempts[slot]["error_message"]
            actions.append(text.remove())
            same.append(text == attempt["error_message"])
        return actions, same, parts


def _stands_in_row(execution: AgentExecution, number: int) -> bool:
    """Return whether the text of an attempt is the row's own, too: it is the last one."""
    texts = {execution.error_message, execution.error_message_encrypted}
    return number > int(execution.retry_count or 0) and texts != {None}


def _attribute(model: type[BaseModel], name: str) -> Attribute[Any]:
    attribute: Attribute[Any] = model.get_attributes()[name]
    return attribute
