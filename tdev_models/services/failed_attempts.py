"""Failed attempts: each is kept as an item of its own, which no retry changes.

It lies beside its execution, under `agent#failed#number`, and is written in the transaction in
which the attempt fails, whose condition lets each failure through once. It does not say whether it
was repaired since: the execution does, whenever it is read.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.encryption import encrypt_fields
from tdev_models.dynamodb.expressions import replace_fields
from tdev_models.models import AgentExecution
from tdev_models.models.execution import FAILED_ATTEMPT, attempt_key
from tdev_models.results import ExecutionStatus
from tdev_models.security.fields import SUFFIX
from tdev_models.services.execution_states import Change
from tdev_models.services.sessions import error_text, real_error

NO_ERROR: Mapping[str, str] = MappingProxyType({})

_CLASS_BYTES = 255
_TRACEBACK_BYTES = 8 * 1024
_FRAMES = 50  # of each error in a chain of causes, the innermost
_CUT = "(its beginning is cut off)\n..."
_COPIED = ("failed_at", "retry_count", "start_time", "error_message", "critical", "variant")


def facts_of(client: Client, error: BaseException) -> Mapping[str, str]:
    """Return the class of an error, and its traceback, of which the end is kept."""
    error = real_error(error)
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    name = module + kind.__qualname__
    facts = {"error_class": _utf8(name)[:_CLASS_BYTES].decode(errors="ignore")}
    if client.settings.tracebacks:
        try:
            lines = traceback.format_exception(error, limit=-_FRAMES)
        except Exception:  # of an error whose attributes are broken: a SyntaxError of a parser, say
            lines = [*traceback.format_tb(error.__traceback__, -_FRAMES), error_text(error)]
        text = _utf8("".join(lines))
        if len(text) > _TRACEBACK_BYTES:
            text = _CUT.encode() + text[len(_CUT) - _TRACEBACK_BYTES :]
        facts["traceback"] = text.decode(errors="ignore")
    return facts


def with_message(error: Mapping[str, str], values: Mapping[str, Any]) -> Mapping[str, str]:
    """Return what is known of an error, with the message that its write gives, in clear."""
    message = values.get("error_message")
    return error if message is None else {**error, "error_message": message}


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


async def failed_attempt(
    client: Client,
    written: AgentExecution,
    change: Change,
    error: Mapping[str, str],
    kms_seconds: float | None,
) -> list[dict[str, Any]]:
    """Return the part of the transaction that keeps an attempt, or nothing unless one fails.

    Args:
        client: the client.
        written: the execution as the change leaves it.
        change: what makes an attempt fail, or says more of one that has failed.
        error: what is known of its error; the text in clear.
        kms_seconds: for how long KMS is tried.
    """
    if written.status != ExecutionStatus.FAILED or change.attempt is None:
        return []
    if {"failed_at", "error_message", f"error_message{SUFFIX}"}.isdisjoint(change.sets):
        return []
    values = {name: getattr(written, name) for name in (*_COPIED, "expires_at")}
    values |= {"status": FAILED_ATTEMPT, "worker": change.attempt["worker"], **error}
    return [await _part(client, written, change.attempt, values, kms_seconds)]


async def attempt_of_earlier_release(
    client: Client, execution: AgentExecution, attempt: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the part of a transaction that keeps a failed attempt of a release that kept none."""
    values = {name: attempt.get(name) for name in ("start_time", "worker", "error_message")}
    values |= {"status": FAILED_ATTEMPT, "failed_at": attempt.get("end_time")}
    values |= {"retry_count": attempt["number"] - 1, "expires_at": execution.expires_at}
    return await _part(client, execution, attempt, values, None)


async def _part(
    client: Client,
    execution: AgentExecution,
    attempt: Mapping[str, Any],
    values: Mapping[str, Any],
    kms_seconds: float | None,
) -> dict[str, Any]:
    values = {name: one for name, one in values.items() if one is not None}
    key = execution.execution_id, attempt_key(execution.agent_name, attempt["number"])
    values = await encrypt_fields(client, AgentExecution, key, values, kms_seconds)
    actions = replace_fields(AgentExecution, values)
    return client.executions.requests.update_part(*key, actions=actions)
