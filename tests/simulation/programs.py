"""What runs in the simulated processes: the public calls, as users' programs make them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from tdev_models.errors import (
    Conflict,
    InvalidTransition,
    LeaseHeld,
    TdevError,
    Throttled,
    Unavailable,
)
from tdev_models.metrics.samples import record_metric
from tdev_models.services.executions import update_agent_execution
from tdev_models.services.recovery import recover_sessions
from tdev_models.services.resume import resume_pipeline
from tdev_models.services.sessions import abandon_session, save_pipeline_session
from tdev_models.services.tracking import Tracker, track_session
from tests.simulation.clients import SimulatedClient
from tests.simulation.invariants import METRIC, output_text
from tests.simulation.processes import Process
from tests.simulation.records import Record, Samples
from tests.simulation.workers import Workers

AGAIN_SECONDS = 3.0
_SENT_SECONDS = 1.0  # some requests, one after the other


class Broken(Exception):
    """An agent has failed."""


class Programs:
    """The programs of one process."""

    def __init__(
        self,
        process: Process,
        client: SimulatedClient,
        dice: random.Random,
        records: dict[str, Record],
        samples: Samples,
        *,
        breaks: float,
        max_attempts: int,
        poll_seconds: float,
        workers: Workers,
    ) -> None:
        self._process, self._client, self._dice = process, client, dice
        self._records, self._samples = records, samples
        self._breaks, self._max_attempts = breaks, max_attempts
        self._poll_seconds, self._workers = poll_seconds, workers

    # ------------------------------------------------------------------ pipelines

    async def recover(self) -> None:
        """Recover whatever there is, until the process ends."""
        while not self._process.stop.is_set():
            try:
                await recover_sessions(
                    self._client,
                    self.pipeline,
                    max_attempts=self._max_attempts,
                    backoff_seconds=3.0,
                    concurrency=4 if self._workers.quiet else 2,  # none waits for another
                    stop=self._process.stop,
                    poll_seconds=self._poll_seconds,
                )
            except TdevError:
                await asyncio.sleep(AGAIN_SECONDS)

    async def start(self, record: Record, exists: Callable[[], bool]) -> None:
        """Begin a session and run it, until it is there and somebody else has it, or it ended."""
        more = {} if record.budget_usd is None else {"budget_usd": record.budget_usd}
        while True:
            try:
                async with track_session(self._client, record.session_id, **more) as session:
                    await self.pipeline(session)
            except (TdevError, Broken):
                if exists():
                    return
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return

    async def pipeline(self, session: Tracker[Any]) -> None:
        """Run what is left of a session's agents."""
        record = self._records[session.session_id]
        self._check_may_begin(record)
        for agent in record.agents:
            if self._dice.random() < 0.2:
                await self._called(session, record, agent)
            else:
                await self._block(session, record, agent)
            if self._dice.random() < self._breaks:
                raise Broken(f"after {agent}")

    async def _block(self, session: Tracker[Any], record: Record, agent: str) -> None:
        async with session.agent(agent, {"for": agent}) as run:
            if run.done:
                self._check_output(record, agent, run.output)
                return
            output = await self._work(session, record, agent)
            if record.effect == agent:
                await self._charge(run.once, record)
            record.used += 1
            run.usage(cost_usd=1, input_tokens=2)
            self._break(record, agent)
            run.output = output
        self._finished(session, record, agent, output)

    async def _called(self, session: Tracker[Any], record: Record, agent: str) -> None:
        called = False
        hangs = not self._workers.calm and self._dice.random() < 0.1
        timeout = 3.0 if hangs else 200.0

        async def work() -> Any:
            nonlocal called
            called = True
            if hangs:
                output = await self._hang(session, record, agent, timeout)
            else:
                output = await self._work(session, record, agent)
            self._break(record, agent)
            record.used += 1
            return output

        output = await session.run(
            agent, work, attempts=2, timeout=timeout, usage=lambda result: {"cost_usd": 1}
        )
        if called:
            self._finished(session, record, agent, output)
        else:
            self._check_output(record, agent, output)

    async def _work(self, session: Tracker[Any], record: Record, agent: str) -> dict[str, Any]:
        self._check_may_begin(record)
        record.begins(agent, session.owned.fence)
        place = self._process, session.owned.fence
        record.at_work.add(place)
        try:
            longest = 16.0 if self._workers.quiet else 8.0
            await asyncio.sleep(self._dice.expovariate(1 / self._dice.choice((0.2, 2.0, longest))))
        finally:
            record.at_work.discard(place)
        return {"agent": agent, "fence": session.owned.fence}

    async def _hang(
        self, session: Tracker[Any], record: Record, agent: str, timeout_seconds: float
    ) -> dict[str, Any]:
        """Work on for a minute, whoever cancels it."""
        record.begins(agent, session.owned.fence)
        record.hangs = True
        self._workers.is_hung(record, timeout_seconds)
        loop = asyncio.get_running_loop()
        until = loop.time() + 60.0
        while (left := until - loop.time()) > 0 and not self._process.dead:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left)
        record.hangs = False
        return {"agent": agent, "fence": session.owned.fence}

    def _check_may_begin(self, record: Record) -> None:
        """Check that nothing begins that was not about to when its process was told to end."""
        since, now = self._process.draining_since, asyncio.get_running_loop().time()
        if self._workers.quiet and since is not None and now > since + _SENT_SECONDS:
            record.rules.report(f"{record.session_id}: begun by a worker that drains")

    def _break(self, record: Record, agent: str) -> None:
        if record.poisoned == agent or self._dice.random() < self._breaks:
            raise Broken(agent)

    def _finished(
        self, session: Tracker[Any], record: Record, agent: str, output: dict[str, Any]
    ) -> None:
        if not self._process.dead:
            record.ends(agent, output_text(output))

    def _check_output(self, record: Record, agent: str, output: Any) -> None:
        known = record.finished.get(agent)
        if known not in (None, output_text(output)) and not record.may_be_redone(agent):
            record.rules.report(f"{record.session_id}: {agent} handed back {output}, not {known}")

    async def _charge(self, once: Callable[..., Coroutine[Any, Any, Any]], record: Record) -> None:
        """Let an effect happen, which is never to happen again once its result is stored."""

        async def charge() -> str:
            if record.result is not None:
                record.rules.report(f"{record.session_id}: an effect happened again")
            record.charges += 1
            await asyncio.sleep(self._dice.uniform(0.0, 1.0))
            return f"charge {record.charges}"

        result: str = await once("charge", charge, in_doubt="run")
        if self._process.dead:
            return
        if record.result not in (None, result):
            record.rules.report(f"{record.session_id}: an effect returned {result}")
        record.result = result

    # ------------------------------------------------------------------ others

    async def bare(self, record: Record, is_claimed: Callable[[], bool]) -> None:
        """Run a session by the plan's calls, without a lease."""
        session_id = record.session_id
        try:
            await self._saved(session_id=session_id, status="ACTIVE", progress=0)
            for agent in record.agents:
                name = f"{session_id}-{agent}"
                if self._dice.random() < 0.5:
                    await self._updated(execution_id=name, status="RUNNING")
                await asyncio.sleep(self._dice.uniform(0.1, 5.0))
                output = {"agent": agent, "bare": True}
                await self._updated(execution_id=name, status="COMPLETED", output_data=output)
                if not (is_claimed() or self._process.dead):
                    record.ends(agent, output_text(output))
            await self._saved(session_id=session_id, status="COMPLETED")
        except (LeaseHeld, InvalidTransition):
            pass  # it was too slow, and somebody else goes on with it

    async def _saved(self, **fields: Any) -> None:
        await self._again(lambda: save_pipeline_session(self._client, **fields))

    async def _updated(self, **fields: Any) -> None:
        await self._again(lambda: update_agent_execution(self._client, **fields))

    async def _again(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        while True:
            try:
                await call()
                return
            except (Conflict, Throttled, Unavailable):
                await asyncio.sleep(AGAIN_SECONDS)

    async def measure(self, number: int) -> None:
        """Record some samples, one after the other or side by side."""

        async def sample() -> None:
            bit = self._samples.begun
            self._samples.begun += 1
            await record_metric(self._client, metric_name=METRIC, value=1 << bit)
            if not self._process.dead:
                self._samples.awaited |= 1 << bit

        for _ in range(number):
            await asyncio.gather(*[sample() for _ in range(2)], return_exceptions=True)
            await asyncio.sleep(self._dice.uniform(0.0, 5.0))

    async def operate(self, record: Record) -> None:
        """Do to a session what somebody on call may do."""
        what = self._dice.choice(("abandon", "force", "from_agent", "claim", "resume"))
        try:
            if what == "abandon":
                reason = f"reason {len(record.reasons)}"
                record.reasons.add(reason)
                await abandon_session(self._client, record.session_id, reason)
            elif what == "force":
                record.is_taken(len(record.agents))
                await resume_pipeline(self._client, record.session_id, self.pipeline, force=True)
            elif what == "from_agent":
                number = self._dice.randrange(len(record.agents))
                record.is_taken(number)

                async def again(session: Tracker[Any]) -> None:
                    record.begun_again[number] = session.owned.fence
                    await self.pipeline(session)

                await resume_pipeline(
                    self._client,
                    record.session_id,
                    again,
                    record.agents[number],
                    force=self._dice.random() < 0.5,
                )
            elif what == "claim":
                await resume_pipeline(self._client, record.session_id)
            else:
                await resume_pipeline(self._client, record.session_id, self.pipeline)
        except (TdevError, Broken):
            pass
