"""Workers with skewed clocks, in any order, against a plain model of one session."""

from __future__ import annotations

import itertools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from hypothesis import HealthCheck, settings as hypothesis_settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tdev_models import (
    AGENTS,
    InvalidRequest,
    InvalidTransition,
    LeaseHeld,
    LeaseLost,
    SessionStatus,
    Settings,
    settings,
    sync,
)
from tests.conftest import make_tables
from tests.dying import kill_worker

SKEWS = (0.0, 45.0, -30.0)
LEASE, STALLED = 30.0, 3600.0
NEXT = {
    "ACTIVE": {"ACTIVE", "COMPLETED", "FAILED", "ABANDONED"},
    "FAILED": {"FAILED", "ACTIVE", "ABANDONED"},
    "COMPLETED": {"COMPLETED"},
    "ABANDONED": {"ABANDONED"},
}
workers = st.integers(0, len(SKEWS) - 1)
names = itertools.count()


@dataclass
class Model:
    """What one session must be."""

    status: str
    last_updated: float
    fence: int = 0
    expires: float | None = None  # of a claim that nobody has entered
    ended: list[str] = field(default_factory=list)


class Workers(RuleBasedStateMachine):
    """What workers may do to one session."""

    store: Settings

    @initialize()
    def begin(self) -> None:
        self.elapsed, self.started = 0.0, time.time()
        self.owners: list[sync.Resume] = []
        self.name = f"s{next(names)}"
        self.settings = [
            replace(self.store, clock=partial(self.now, worker)) for worker in range(len(SKEWS))
        ]
        with self.worker(0):
            sync.save_pipeline_session(session_id=self.name, status="FAILED")
        self.model = Model("FAILED", self.now(0))

    def now(self, worker: int) -> float:
        return self.started + self.elapsed + SKEWS[worker]

    def worker(self, worker: int) -> AbstractContextManager[Settings]:
        return settings.use(self.settings[worker])

    def teardown(self) -> None:
        for chosen in self.settings:
            kill_worker(chosen)

    def owns(self, owner: sync.Resume) -> bool:
        return self.model.expires is not None and owner.owned.fence == self.model.fence

    @rule(seconds=st.sampled_from([1.0, 40.0, 100.0, 2000.0]))
    def wait(self, seconds: float) -> None:
        self.elapsed += seconds

    @rule(worker=workers, status=st.sampled_from(SessionStatus))
    def save(self, worker: int, status: str) -> None:
        with self.worker(worker):
            if self.model.expires is not None:
                with pytest.raises(LeaseHeld):
                    sync.save_pipeline_session(session_id=self.name, status=status)
            elif status not in NEXT[self.model.status]:
                with pytest.raises(InvalidTransition):
                    sync.save_pipeline_session(session_id=self.name, status=status)
            else:
                sync.save_pipeline_session(session_id=self.name, status=status)
                self.model.status, self.model.last_updated = status, self.now(worker)

    @rule(worker=workers)
    def resume(self, worker: int) -> None:
        now, model = self.now(worker), self.model
        may = model.status == "FAILED" or (
            model.status == "ACTIVE"
            and (
                model.last_updated < now - STALLED if model.expires is None else model.expires < now
            )
        )
        with self.worker(worker):
            resume = sync.resume_pipeline(self.name)
        assert bool(resume) == may, resume.reason
        if resume:
            assert list(resume.outputs) == model.ended
            model.status, model.fence, model.last_updated = "ACTIVE", model.fence + 1, now
            model.expires = now + LEASE
            self.owners.append(resume)

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), worker=workers)
    def do_an_agent(self, data: st.DataObject, worker: int) -> None:
        owner = data.draw(st.sampled_from(self.owners))
        agent = AGENTS[min(len(self.model.ended), len(AGENTS) - 1)]
        known, owned = agent in owner.owned.ended_agents, self.owns(owner)
        if not (known or owned):
            with pytest.raises(LeaseLost), owner.agent(agent):
                pass
            return
        if agent in owner.owned.blocks:  # all nine have ended, the last one under this claim
            with pytest.raises(InvalidRequest, match="has ended"), owner.agent(agent):
                pass
            return
        with owner.agent(agent) as run:
            assert run.done == known
            run.output = agent
        if not known:
            self.model.ended.append(agent)
            self.model.last_updated = owner._client.now()

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), fails=st.booleans())
    def leave(self, data: st.DataObject, fails: bool) -> None:
        owner = data.draw(st.sampled_from(self.owners))
        self.owners.remove(owner)
        owned = self.owns(owner)
        if not owned:
            with pytest.raises(LeaseLost), owner:
                pass
        elif fails:
            with pytest.raises(KeyError), owner:
                raise KeyError
        else:
            with owner:
                pass
        if owned:
            self.model.status = "FAILED" if fails else "COMPLETED"
            self.model.expires, self.model.last_updated = None, owner._client.now()

    @rule(worker=workers)
    def abandon(self, worker: int) -> None:
        with self.worker(worker):
            if self.model.status == "COMPLETED":
                with pytest.raises(InvalidTransition):
                    sync.abandon_session(self.name, "enough")
            else:
                sync.abandon_session(self.name, "enough")
                self.model.status, self.model.expires = "ABANDONED", None
                self.model.last_updated = self.now(worker)

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        with settings.use(self.store):
            session = sync.get_pipeline_session(self.name)
        assert (session.status, session.fence or 0, session.progress, session.lease_expires) == (
            self.model.status,
            self.model.fence,
            len(self.model.ended),
            None if self.model.expires is None else pytest.approx(self.model.expires, abs=1e-3),
        )


def test_workers_with_skewed_clocks_follow_the_model(dynoxide: str) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    Workers.store = make_tables(dynoxide)
    run_state_machine_as_test(
        Workers,
        settings=hypothesis_settings(
            max_examples=60,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
