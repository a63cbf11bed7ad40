from __future__ import annotations

import pytest

from tdev_models.migrations.command import main
from tests.migrations.strict import StrictAws

PROD = ["--set", "like=prod"]


def run(what: str, environment: str, *more: str) -> int:
    return main([what, "--env", environment, *(["--yes"] if what == "apply" else []), *more])


@pytest.mark.parametrize("like", ["dev", "prod"])
def test_a_second_apply_sends_no_mutation_and_plan_is_clean(
    aws: StrictAws, environment: str, like: str
) -> None:
    profile = ["--set", f"like={like}"]
    assert run("plan", environment, *profile) == 2
    assert aws.mutations == []
    assert run("apply", environment, *profile) == 0
    assert aws.mutations
    aws.forget()
    assert run("apply", environment, *profile) == 0
    assert aws.mutations == []
    assert run("plan", environment, *profile) == 0
    assert run("status", environment, *profile) == 0
