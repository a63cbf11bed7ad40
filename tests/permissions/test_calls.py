"""Every public call in the role that `tdev iam runtime` prints, and with each permission gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tdev_models import AccessDenied, settings
from tests.chaos.test_sweep import CALLS, READS, World, again, seeded
from tests.conftest import make_tables
from tests.permissions.account import Account, Judgement, Statement, without

Printed = Callable[..., Sequence[Statement]]


def world_of(role: Account) -> World:
    with role.administered():
        return World(make_tables(role.endpoint))


async def run(role: Account, name: str, statements: Sequence[Statement]) -> None:
    pass


@pytest.mark.parametrize("name", [*CALLS, *READS])
async def test_it_works(role: Account, printed: Printed, name: str) -> None:
    world = world_of(role)
    role.may(printed("runtime", world.store.environment))
    with world.inside():
        if name in CALLS:
            prepare, call = CALLS[name]
            await prepare(world)
            await call(world)
        else:
            await seeded(world)
            await READS[name]()
    j = role.judged()
    print({(one.verdict, one.action, one.resource) for one in j})
    assert all(one.verdict == "allowed" for one in j)
