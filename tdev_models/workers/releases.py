"""A worker of an older release takes no session over that a newer one began."""

from __future__ import annotations

import re

from tdev_models.dynamodb.client import Client
from tdev_models.models import PipelineSession

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")


def why_too_old(client: Client, session: PipelineSession) -> str | None:
    """Return why this worker must leave a session to newer ones, or None if it need not.

    Only releases that are numbers with dots between them have an order.
    """
    own, other = _numbers(client.settings.release), _numbers(session.release)
    if own is None or other is None or own >= other:
        return None
    return f"release {session.release} began it, and this worker is of {client.settings.release}"


def _numbers(release: str | None) -> tuple[int, ...] | None:
    match = _NUMBERS.fullmatch(release or "")
    if match is None:
        return None
    numbers = [int(digits) for digits in match[1].split(".")]
    while numbers and numbers[-1] == 0:  # 2.0 is 2
        numbers.pop()
    return tuple(numbers)
