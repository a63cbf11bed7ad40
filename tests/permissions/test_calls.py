"""Each public call in the role that `tdev iam runtime` prints, and with each permission gone.

The calls are those of the fault sweep, in which a new public call must stand
(tests/unit/test_public_calls.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tdev_models import (
    AccessDenied,
    LeaseHeld,
    Settings,
    get_pipeline_session,
    save_pipeline_session,
    settings,
    sync,
    track_session,
    update_agent_execution,
)
from tdev_models.migrations.iam import RUNTIME_ACTIONS
from tdev_models.models import TABLES, AgentExecution, PipelineSession
from tdev_models.workers.budget import resumes_in_vain
from tests.chaos.test_sweep import CALLS, FORGOTTEN_BY_THE_DEAD, READS, World, again, seeded
from tests.conftest import make_tables
from tests.engine.pipelines import files
from tests.permissions.account import (
    EVERYTHING,
    NOTHING,
    Account,
    Judgement,
    Statement,
    forget_credentials,
    listed,
    without,
)
from tests.permissions.conftest import Printed

State = dict[str, list[Any]]
NEVER_SENT = "dynamodb:PutItem"


def entered(role: Account, printed: Printed, **changes: Any) -> tuple[World, list[Statement]]:
    """Make tables, and let the role do there what is printed."""
    with role.administered():
        world = World(make_tables(role.endpoint, **changes))
    policy = list(printed("runtime", world.store.environment))
    role.may(policy)
    return world, policy


def neighbour(store: Settings) -> Settings:
    """Make the tables of an environment whose name begins as this one's."""
    with settings.use(store, environment=f"{store.environment}-eu") as made:
        for model in TABLES:
            model.create_table()
    return made


def state_of(role: Account, world: World) -> State:
    with role.administered():
        return world.state()


def session_of(role: Account, world: World) -> PipelineSession | None:
    with role.administered(), world.inside():
        return next(iter(PipelineSession.query("s", consistent_read=True)), None)


def parts_of(name: str) -> tuple[Callable[[World], Awaitable[Any]], Callable[[World], Any]]:
    return CALLS[name] if name in CALLS else (seeded, lambda _: READS[name]())


async def called(world: World, work: Callable[[World], Awaitable[Any]]) -> None:
    with world.inside():
        await work(world)


def check_whole(before: State, after: State, expected: State) -> None:
    """Fail if a write was half done; chunks that nothing points at are no part of anything."""

    def without_chunks(state: State) -> State:
        runs = [item for item in state["agent-executions"] if "chunk" not in item]
        return {**state, "agent-executions": runs}

    wholes = [without_chunks(before), without_chunks(expected)]
    assert without_chunks(after) in wholes


def check_unspent(before: PipelineSession | None, after: PipelineSession | None) -> None:
    """Fail if a session that was claimed is not handed back, or has spent anything."""
    assert after is not None
    assert after.status == "ACTIVE"
    assert after.lease_token is None
    assert after.worker_id is None
    assert after.error_message == (before and before.error_message)
    assert after.failed_agent == (before and before.failed_agent)
    assert resumes_in_vain(after) == 0
    assert after.worker_deaths in (None, 0)


@pytest.mark.parametrize("name", [*CALLS, *READS])
async def test_a_call_works_under_the_policy_and_fails_whole_without_each_permission_it_needs(
    role: Account, printed: Printed, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    prepare, call = parts_of(name)
    world, _ = entered(role, printed)
    await called(world, prepare)
    role.judged()
    await called(world, call)
    needed = dict.fromkeys(role.judged())
    assert {one.verdict for one in needed} == {"allowed"}
    assert {one.action for one in needed} <= {f"dynamodb:{one}" for one in RUNTIME_ACTIONS}
    assert NEVER_SENT not in {one.action for one in needed}
    expected, first = state_of(role, world), world.store.environment
    for one in needed:
        world, policy = entered(role, printed)
        await called(world, prepare)
        gone = one._replace(resource=one.resource.replace(first, world.store.environment))
        before, session = state_of(role, world), session_of(role, world)
        role.may(without(policy, gone))
        caplog.clear()
        with pytest.raises((AccessDenied, LeaseHeld)) as raised:
            await called(world, call)
        text = str(raised.value)
        if isinstance(raised.value, LeaseHeld):  # the worker logs it, and leaves the session
            assert name.startswith("recover_sessions")
            text = caplog.text
        assert gone.action in text
        assert gone.name in text
        denied = {
            (one.action, one.resource)
            for one in role.judged()
            # Workers of the tables before still send their heartbeats.
            if one.verdict == "denied" and world.store.environment in one.resource
        }
        assert denied == {gone[1:]}
        after = state_of(role, world)
        if after["pipeline-sessions"] == before["pipeline-sessions"]:
            check_whole(before, after, expected)
        else:
            assert (gone.action, gone.name.endswith("agent-executions")) == (
                "dynamodb:UpdateItem",
                True,
            )
            check_unspent(session, session_of(role, world))
        role.may(policy)
        if name in CALLS and name not in FORGOTTEN_BY_THE_DEAD:
            with world.inside():
                await again(world, call)
            assert state_of(role, world) == expected


@pytest.mark.parametrize("name", [*CALLS, *READS])
async def test_one_environment_reaches_nothing_of_another_of_like_name(
    role: Account, printed: Printed, name: str
) -> None:
    prepare, call = parts_of(name)
    world, _ = entered(role, printed)
    with role.administered():
        world.store = neighbour(world.store)
        await called(world, prepare)
    before = state_of(role, world)
    with pytest.raises((AccessDenied, LeaseHeld)):
        await called(world, call)
    assert {one.verdict for one in role.judged()} == {"denied"}
    assert state_of(role, world) == before


@pytest.mark.parametrize("transport", [None, "botocore"])
@pytest.mark.parametrize("blocking", [False, True])
async def test_whatever_sends_names_action_and_table(
    role: Account, printed: Printed, transport: Any, blocking: bool
) -> None:
    world, policy = entered(role, printed)
    role.may(NOTHING)
    with settings.use(world.store, transport=transport):
        with pytest.raises(AccessDenied, match=r"dynamodb:UpdateItem.*-pipeline-sessions"):
            if blocking:
                sync.save_pipeline_session(session_id="s")
            else:
                await save_pipeline_session(session_id="s")
        role.may(policy)
        await save_pipeline_session(session_id="s")
        assert sync.get_pipeline_session("s").status == "ACTIVE"


async def test_what_an_agent_may_not_do_elsewhere_fails_no_session(
    role: Account, printed: Printed
) -> None:
    world, policy = entered(role, printed)
    projects = f"table/{world.store.table_name('user-projects')}"
    role.may([without_table(one, projects) for one in policy])
    with world.inside():
        with pytest.raises(AccessDenied, match="user-projects"):
            async with track_session("s"):
                sync.save_user_project(user_id="u", project_id="p")
        session = await get_pipeline_session("s")
        assert (session.status, session.lease_owner, session.error_message) == (
            "ACTIVE",
            None,
            None,
        )


def without_table(statement: Statement, table: str) -> Statement:
    left = [one for one in listed(statement["Resource"]) if table not in one]
    return {**statement, "Resource": left}


def test_the_orm_needs_no_more(role: Account, printed: Printed) -> None:
    world, policy = entered(role, printed)
    role.may([{**one, "Action": [*{*one["Action"]} - {NEVER_SENT}]} for one in policy])
    role.judged()
    with world.inside():
        PipelineSession("s", user_id="u", created_at=1.0).save()
        stored = PipelineSession.get("s")
        stored.update(actions=[PipelineSession.project_name.set("n")])
        stored.refresh()
        assert [one.session_id for one in PipelineSession.user_index.query("u")] == ["s"]
        assert [*AgentExecution.query("s-parser")] == []
        assert {one.action for one in role.judged()} == {
            "dynamodb:GetItem",
            "dynamodb:UpdateItem",
            "dynamodb:Query",
        }
        role.may(NOTHING)
        for act in (
            PipelineSession("t").save,
            stored.refresh,
            lambda: [*PipelineSession.user_index.query("u")],
        ):
            with pytest.raises(Exception, match="AccessDeniedException"):
                act()
    assert {one.verdict for one in role.judged()} == {"denied"}


LARGE = files(300_000)


async def encrypted(world: World) -> None:
    """Write each field that is encrypted, and read it."""
    await update_agent_execution(execution_id="p-parser", output_data=LARGE, input_data=[1])
    async with track_session("s", metadata={"m": 1}) as session:
        async with session.agent("parser", {"q": 1}) as run:
            run.output = LARGE
    assert (await get_pipeline_session("s")).metadata == {"m": 1}


@pytest.fixture
def key(role: Account, monkeypatch: pytest.MonkeyPatch) -> str:
    """A key that the policy is printed for."""
    made = role.new_key()
    monkeypatch.setenv("TDEV_KMS_KEY", made)
    return made


async def test_encryption_needs_its_two_permissions_for_its_environment(
    role: Account, printed: Printed, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_configured", Settings.from_env())
    world, policy = entered(role, printed, kms_key=key)
    role.judged()
    await called(world, encrypted)
    forget_credentials()
    with world.inside():
        assert sync.get_agent_execution("p-parser").output_data == LARGE
    found = role.judged()
    assert {one.verdict for one in found} == {"allowed"}
    assert {one.action for one in found if one.resource == key} == {
        "kms:GenerateDataKey",
        "kms:Decrypt",
    }
    with role.administered():
        other = neighbour(world.store)
    role.may([*policy, {**EVERYTHING[0], "Action": "dynamodb:*"}])
    forget_credentials()
    with settings.use(other), pytest.raises(AccessDenied, match=f"kms:GenerateDataKey on {key}"):
        await update_agent_execution(execution_id="p-parser", output_data=[1])
    gone = Judgement("allowed", "kms:GenerateDataKey", key)
    role.may(without(policy, gone))
    before = state_of(role, world)
    forget_credentials()
    for work in (
        encrypted,
        lambda _: track_session("t", metadata={"m": 1}).__aenter__(),
    ):
        with pytest.raises(AccessDenied, match=f"kms:GenerateDataKey on {key}"):
            await called(world, work)
    role.may(without(policy, gone._replace(action="kms:Decrypt")))
    forget_credentials()
    with world.inside():
        shown = sync.get_agent_execution("p-parser").output_data
        assert f"kms:Decrypt on {key}" in shown
    assert state_of(role, world) == before
