"""In- and outputs: checked before they are sent, in chunks where they are large."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from tdev_models import json_form, settings
from tdev_models.dynamodb import chunks
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import encrypt_fields, is_plain, read_field
from tdev_models.dynamodb.parts import StoredText
from tdev_models.errors import ConfigurationError
from tdev_models.models import AgentExecution
from tdev_models.results import Undecrypted
from tdev_models.security.fields import SUFFIX, key_for
from tdev_models.services.execution_states import PAYLOADS
from tdev_models.workers.lease import Lease

T = TypeVar("T")


async def checked_payload(client: Client, payload: Any, check: Callable[[], T]) -> T:
    """Return the result of a check that encodes a payload: in a thread if that takes long."""

    def work() -> T:
        with settings.use(client.settings):
            return check()

    return work() if json_form.is_small(payload) else await client.compute(work)


async def read_payload(
    client: Client, execution: AgentExecution, field: str, stored: chunks.Stored | None = None
) -> Any:
    """Return the input or the output of an execution, read from its chunks where it is large.

    What stands in chunks is added to `stored`.

    Raises:
        PayloadDamaged: chunks are missing or were changed.
    """
    reference = PAYLOADS[field]
    envelope = await read_field(client, execution, reference)
    if envelope is None:
        return await read_field(client, execution, field)
    encrypted = getattr(execution, f"{reference}{SUFFIX}") is not None
    return await chunks.read(client, execution.execution_id, envelope, stored, encrypted=encrypted)


async def shown_payload(client: Client, execution: AgentExecution, field: str) -> Any:
    """Return a payload as `read_payload` does, or an Undecrypted where it must not be decrypted."""
    try:
        return await read_payload(client, execution, field)
    except ConfigurationError as error:
        names = (field, PAYLOADS[field])
        if not any(getattr(execution, f"{name}{SUFFIX}") is not None for name in names):
            raise  # DynamoDB's answer
        return Undecrypted(f"(encrypted: {error})", error)


def stands_in_item(client: Client, execution: AgentExecution, field: str) -> bool:
    """Return whether a payload, if there is one, stands in the item as it is to be shown."""
    reference = PAYLOADS[field]
    plain = is_plain(client, execution, field) and is_plain(client, execution, reference)
    return plain and getattr(execution, reference) is None


def known_payloads(executions: Iterable[AgentExecution]) -> chunks.Stored:
    """Return what executions hold in chunks, by the hash of its text."""
    known: chunks.Stored = {}
    for execution in executions:
        for reference in PAYLOADS.values():
            with suppress(AttributeError, TypeError, ValueError):  # none, or damaged
                envelope = chunks.Envelope.parse(getattr(execution, reference))
                holder = envelope.execution_id or execution.execution_id
                known[envelope.sha256] = StoredText(replace(envelope, execution_id=holder))
    return known


async def stored_forms(
    client: Client,
    execution_id: str,
    agent_name: str,
    values: Mapping[str, Any],
    seen: AgentExecution | None,
    lease: Lease | None,
    retry_seconds: float | None,
) -> dict[str, Any]:
    """Return the fields with large payloads written, and envelopes in their place.

    What is secret is encrypted; KMS is tried for `retry_seconds`.
    """
    result = dict(values)
    stored: chunks.Stored = lease.payloads if lease else {}
    if seen is not None:
        stored = ChainMap(stored, known_payloads([seen]))
    for field, reference in PAYLOADS.items():
        text = result.get(field)
        if text is not None and chunks.is_large(text):
            retries = int(seen.retry_count or 0) if seen else 0
            place = f"{agent_name}#{field}#{retries}#{lease.fence if lease else 0}"
            result[reference] = await chunks.write(
                client,
                execution_id,
                place,
                text,
                expires_at=result.get("expires_at"),
                stored=stored,
                kms_key=key_for(client.settings, field),
                retry_seconds=retry_seconds,
            )
            del result[field]
    key = execution_id, agent_name
    return await encrypt_fields(client, AgentExecution, key, result, retry_seconds)
