"""What happens to a request between a process and the store."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from tdev_models.errors import Conflict, TdevError, Throttled, Unavailable
from tdev_models.settings import Transport
from tdev_models.workers import bindings
from tdev_models.workers.lease import Lease
from tests.simulation.engine import Engine
from tests.simulation.loop import VirtualLoop
from tests.simulation.processes import Died, Process

READ_TIMEOUT_SECONDS = 2.0
_WRITES = ("UpdateItem", "TransactWriteItems")
_AROUND = Context()  # no process's: neither freezes nor crashes stop what is on its way

KINDS = (
    "slow",
    "slow",
    "lost",
    "unanswered",
    "late",
    "doubled",
    "doubled",
    "throttled",
    "conflict",
    "crash before",
    "crash after",
)
"""The faults of single requests; one that stands here twice comes twice as often."""


@dataclass(slots=True)
class Sent:
    """A request on its way.

    Attributes:
        process: who sent it.
        operation: its name.
        request: its parameters.
        bound: the leases under which calls of the sending task acted.
    """

    process: Process
    operation: str
    request: Mapping[str, Any]
    bound: Mapping[str, bindings.Binding] = field(repr=False)

    def lease_of(self, session_id: str) -> Lease | None:
        """Return the lease of a session under which it was sent."""
        for place, binding in self.bound.items():
            if place.endswith(f" {session_id}"):
                return binding.lease
        return None


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network of one history is.

    Attributes:
        rate: which part of all requests meets a fault of its own.
        until: when faults end.
        outages: when nothing reaches the store.
        throttled: when half of everything is refused for capacity.
        lag: for how long, at most, an index does not show a write.
    """

    rate: float
    until: float
    outages: tuple[tuple[float, float], ...]
    throttled: tuple[tuple[float, float], ...]
    lag: float


class Network:
    """Carries requests to the engine, and replies back.

    Attributes:
        arriving: the request that the engine carries out at this moment.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        dice: random.Random,
        engine: Engine,
        weather: Weather,
        crash: Callable[[Process], None],
        log: Callable[..., None] | None,
    ) -> None:
        self._loop, self._dice, self._engine, self._weather = loop, dice, engine, weather
        self._crash, self._log = crash, log
        self.arriving: Sent | None = None
        engine.lag = self._lag

    def transport(self, process: Process) -> Transport:
        """Return how a process sends."""

        async def send(operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
            return await self._send(process, operation, request)

        return send

    def _lag(self) -> float:
        weather = self._weather
        if not weather.lag or self._loop.now > weather.until:
            return 0.0
        return self._dice.uniform(0.0, weather.lag)

    def _fault(self, process: Process) -> str | None:
        weather, now, dice = self._weather, self._loop.now, self._dice
        if now > weather.until:
            return None
        if now < process.cut_off_until:
            return dice.choice(("lost", "lost", "unanswered"))
        if any(begin < now < end for begin, end in weather.outages):
            return "refused"
        if any(begin < now < end for begin, end in weather.throttled) and dice.random() < 0.5:
            return "throttled"
        if weather.rate and dice.random() < weather.rate:
            return dice.choice(KINDS)
        return None

    async def _send(
        self, process: Process, operation: str, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        if process.dead:
            raise Died
        sent = Sent(process, operation, request, bindings._bound.get())
        fault = self._fault(process)
        reply = self._loop.create_future()
        self._route(sent, fault, reply)
        answer = await reply
        if isinstance(answer, BaseException):
            raise answer
        result: dict[str, Any] = answer
        return result

    def _route(self, sent: Sent, fault: str | None, reply: Any) -> None:
        dice, now = self._dice, self._loop.now
        arrival = now + dice.uniform(0.002, 0.03)
        if fault is None:
            self._at(arrival, self._deliver, sent, "", reply)
            return
        if self._log:
            self._log(sent.process, f"{sent.operation} is to be: {fault}")
        # A broken connection is noticed at once, a silent one when the time is over.
        noticed = arrival if dice.random() < 0.5 else now + READ_TIMEOUT_SECONDS
        if fault in ("unanswered", "crash after"):
            self._at(arrival, self._deliver, sent, fault, None)
        elif fault == "slow":
            self._at(now + dice.uniform(0.1, 1.9), self._deliver, sent, fault, reply)
            return
        elif fault == "late":
            self._at(now + dice.uniform(0.5, 60.0), self._deliver, sent, fault, None)
        elif fault == "doubled":
            self._at(arrival, self._deliver, sent, "", reply)
            if sent.operation in _WRITES:
                later = dice.choice((0.1, 5.0, 120.0))
                self._at(arrival + dice.uniform(0.0, later), self._deliver, sent, fault, None)
            return
        if fault in ("throttled", "conflict"):
            error = Throttled("simulated") if fault == "throttled" else Conflict("simulated")
            self._at(arrival, _settle, reply, error)
        elif fault.startswith("crash"):
            self._at(arrival, self._crash, sent.process)
        else:
            self._at(noticed, _settle, reply, Unavailable(f"simulated: {fault}"))

    def _deliver(self, sent: Sent, fault: str, reply: Any) -> None:
        if reply is None and sent.operation not in _WRITES:
            return
        answer: Any
        self.arriving = sent
        try:
            answer = self._engine.execute(sent.operation, sent.request)
        except TdevError as error:
            answer = error
        if self._log:
            self._log(sent.process, sent.operation, sent.request, answer, fault)
        if reply is not None:
            self._at(self._loop.now + self._dice.uniform(0.001, 0.01), _settle, reply, answer)

    def _at(self, when: float, function: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_at(when, function, *arguments, context=_AROUND)


def _settle(reply: Any, answer: Any) -> None:
    if not reply.done():
        reply.set_result(answer)
