"""The table of agent executions."""

from __future__ import annotations

from pynamodb.indexes import IncludeProjection

from tdev_models.models.attributes import (
    ERROR_BYTES,
    AttemptsAttribute,
    BytesAttribute,
    FlagAttribute,
    InstantAttribute,
    JSONTextAttribute,
    NumberAttribute,
    TextAttribute,
)
from tdev_models.models.base import BaseModel, TableMeta
from tdev_models.models.indexes import KeyIndex, ListIndex
from tdev_models.results import ExecutionStatus
from tdev_models.validation import choice, json_text, key, text

_PAYLOAD = json_text()


KEY_MARK = "@"
"""Stands between an agent's name and the key of one of its runs in a session."""


def agent_of(agent_name: str) -> str:
    """Return the agent of a sort key: `evaluator` of `evaluator@2`."""
    return agent_name.partition(KEY_MARK)[0]


class ProjectIndex(ListIndex["AgentExecution"], name="project-index"):
    """Executions of one project by `start_time`."""

    project_id = TextAttribute(hash_key=True)
    start_time = InstantAttribute(range_key=True)


FAILED_ATTEMPT = "FAILED_ATTEMPT"
"""The status of an item that keeps a failed attempt."""


def attempt_key(agent_name: str, number: int | None = None) -> str:
    """Return the sort key of the item that keeps a failed attempt, beside its execution.

    Without a number, what the keys of all of them begin with.
    """
    return f"{agent_name}#failed#{'' if number is None else f'{number:05}'}"


class FailureIndex(KeyIndex["AgentExecution"]):
    """Executions that are FAILED, and each attempt that failed (FAILED_ATTEMPT), by `failed_at`.

    What else lists show is read from the items: an error may be large, and whether it was repaired
    changes. Keys and `retry_count`, from which the attempt's key follows, cost one write unit.
    """

    class Meta:
        """What it is called and holds."""

        index_name = "failure-index"
        projection = IncludeProjection(["retry_count"])

    status = TextAttribute(hash_key=True)
    failed_at = InstantAttribute(range_key=True)


class AgentExecution(BaseModel):
    """One agent's work in one run.

    What callers give:
        execution_id: at most 2,048 bytes, usually `{project_id}-{agent_name}`.
        agent_name: at most 255 bytes, without '#'; the id's end when not given. `agent@key` names
            one run of an agent that runs more than once.
        project_id: at most 2,048 bytes; the id's other part when not given.
        status: PENDING, RUNNING, COMPLETED or FAILED.
        input_data: JSON, at most 32 MB.
        output_data: JSON, at most 32 MB.
        error_message: at most 4 KB.
        variant: of an A/B test; at most 200 bytes, without '#'.
    """

    class Meta(metaclass=TableMeta):
        """How the table is stored."""

        table = "agent-executions"
        ttl_attribute = "expires_at"

    execution_id = TextAttribute(key(), hash_key=True)
    agent_name = TextAttribute(key(255, part=True), range_key=True)
    project_id = TextAttribute(key(), listed=True)
    status = TextAttribute(choice(ExecutionStatus), listed=True)
    start_time = InstantAttribute(listed=True)
    end_time = InstantAttribute(listed=True)
    input_data = JSONTextAttribute(_PAYLOAD, listed=False)
    output_data = JSONTextAttribute(_PAYLOAD, listed=False)
    error_message = TextAttribute(text(ERROR_BYTES), listed=True)
    retry_count = NumberAttribute(listed=True)

    fence = NumberAttribute(listed=True, lease=True)
    variant = TextAttribute(key(200, part=True), listed=True)
    release = TextAttribute(listed=False)
    # False where the session went on after this agent failed.
    critical = FlagAttribute(listed=True, returned=False)
    attempts = AttemptsAttribute(listed=False)
    # What all attempts used, and the last model that was named.
    input_tokens = NumberAttribute(listed=True)
    output_tokens = NumberAttribute(listed=True)
    cost_usd = NumberAttribute(listed=True)
    model = TextAttribute(listed=True)
    write_token = TextAttribute(returned=False, lease=True)
    # While it is FAILED; of an item that keeps a failed attempt, always.
    failed_at = InstantAttribute(returned=False)
    # Of an item that keeps a failed attempt alone.
    worker = TextAttribute(returned=False)
    error_class = TextAttribute(returned=False)
    traceback = TextAttribute(returned=False)
    # Where a payload is too large to stand in the item: the envelope of its chunks.
    input_ref = TextAttribute(returned=False)
    output_ref = TextAttribute(returned=False)
    # Instead of those, where they are encrypted.
    input_data_encrypted = BytesAttribute(returned=False)
    output_data_encrypted = BytesAttribute(returned=False)
    input_ref_encrypted = BytesAttribute(returned=False)
    output_ref_encrypted = BytesAttribute(returned=False)
    error_message_encrypted = BytesAttribute(returned=False)
    traceback_encrypted = BytesAttribute(returned=False)
    # Of a chunk item alone.
    chunk = BytesAttribute(returned=False)
    expires_at = NumberAttribute(listed=True, returned=False)

    project_index = ProjectIndex()
    failure_index = FailureIndex()
