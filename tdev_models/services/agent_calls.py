"""An agent as a call: run it, try it again, store what it returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tdev_models import validation
from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.client_context import C
from tdev_models.errors import LeaseLost
from tdev_models.retry import AGENT_FIRST_PAUSE_SECONDS, AGENT_LONGEST_PAUSE_SECONDS, Backoff
from tdev_models.services.agent_runs import OUTPUT, AgentRun
from tdev_models.services.payloads import checked_payload
from tdev_models.workers.presence import Presence

ATTEMPTS = validation.whole(1, 1000)


async def run_agent(
    client: C,
    begin: Callable[[], AgentRun[C]],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    timeout_seconds: float | None,
    attempts: int,
    usage: Callable[[Any], Mapping[str, Any]] | None,
) -> Any:
    """Return the agent's stored output, its function being called where there is none.

    Args:
        client: how to wait.
        begin: makes the block of one attempt.
        function: the agent.
        arguments: what it is called with.
        timeout_seconds: of each attempt.
        attempts: how often it is called at most.
        usage: of a result, what `AgentRun.usage` takes.

    Raises:
        Exception: what the last attempt of a critical agent raised.
    """
    backoff = Backoff(
        float("inf"), AGENT_FIRST_PAUSE_SECONDS, AGENT_LONGEST_PAUSE_SECONDS, attempts
    )
    while True:
        pause: float | None = None
        unusable: Exception | None = None
        run = begin()
        try:
            async with run:
                if run.done:
                    return run.output
                try:
                    result = await _called(client, function, arguments, timeout_seconds)
                except Exception as error:
                    pause = backoff.pause_after(error)
                    if pause is not None:
                        run.will_be_retried()
                    raise
                try:
                    if usage is not None:
                        run.usage(**usage(result))
                except Exception as error:  # the agent has done its work: that is stored first
                    unusable = error
                run.output = await checked_payload(client, result, partial(_json_form, result))
            if unusable is not None:
                raise unusable
            return run.output  # None where the last attempt failed and the session goes on
        except Exception as error:
            if pause is None or isinstance(error, LeaseLost):  # its end was refused
                raise
        await client.sleep(pause)


async def _called(
    client: Client,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    timeout_seconds: float | None,
) -> Any:
    """Return what the function returns; a cancellation that nobody requested is its failure."""
    try:
        return await client.call(function, *arguments, timeout_seconds=timeout_seconds)
    except BaseException as error:
        # An agent inside that did not begin, since this process drains, is none.
        if Presence.draining or not client.is_stray_cancellation(error):
            raise
        raise RuntimeError("what the function awaited was cancelled") from error


def _json_form(result: Any) -> Any:
    """Return a result as a resume will hand it back."""
    return None if result is None else json.loads(OUTPUT("output", result))
