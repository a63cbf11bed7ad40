"""Saves that need no lease: each counts once, however often and however late it arrives.

Two saves and a late copy of the first, in time::

    A  needs saved_at < 10, sets it to 10 .. done                    copy of A: 10 < 10, refused
    B                       needs saved_at < 11, sets it to 11 .. done

The token tells a call whose reply was lost that the save in its way is its own, even after one more
of others.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import TypeVar

from pynamodb.expressions.condition import Condition
from pynamodb.expressions.update import Action

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.expressions import set_to
from tdev_models.dynamodb.table import Table
from tdev_models.errors import ConditionFailed, Conflict
from tdev_models.models import PipelineSession, UserProject
from tdev_models.retry import CONTENDED_TRIES, Turns

M = TypeVar("M", PipelineSession, UserProject)


async def save_once(
    client: Client,
    table: Table[M],
    *key: str,
    actions: Sequence[Action],
    condition: Condition | None = None,
) -> M:
    """Change an item, or make it, and return it as it is now.

    One UpdateItem. Where the clock is behind that of the last save, a second one goes past it.

    Raises:
        ConditionFailed: the condition was not met.
        Conflict: others saved the item again and again.
    """
    model = table.model
    token, moment = uuid.uuid4().hex[:16], 0.0
    tokens: list[Action] = [
        model.former_token.set(model.write_token | "NONE"),
        set_to(model.write_token, token),
    ]
    turns = Turns(client.sleep)
    while await turns.next():
        moment = max(moment, client.now())
        newer: Condition = model.saved_at.does_not_exist() | (model.saved_at < moment)
        try:
            return await table.update(
                *key,
                actions=[*actions, *tokens, set_to(model.saved_at, moment)],
                condition=newer if condition is None else condition & newer,
            )
        except ConditionFailed as refused:
            stored = table.load(refused.item)
            if stored is not None and token in (stored.write_token, stored.former_token):
                return stored
            if stored is None or (stored.saved_at or 0) < moment:
                raise
            # Of a clock in milliseconds the next float is further away than a microsecond.
            next_float = math.nextafter(stored.saved_at, math.inf)
            moment = max(round(stored.saved_at + 1e-6, 6), next_float)
    raise Conflict(
        f"{' '.join(key)}: others saved it {CONTENDED_TRIES} times in between; call again"
    )
