"""Traces and metrics for OpenTelemetry (`pip install tdev-models[otel]`).

`instrument()` once a process, after its SDK is set up. Then each run of a session is a span
`invoke_workflow`, linked to the run that it resumes, each try of an agent a span `invoke_agent`
within it, with the model and the tokens of `AgentRun.usage`, and each request within a trace a
client's span. Names are those of the semantic conventions for GenAI 0.1 and for databases; what
they lack begins with `tdev.`. No span holds a user, a text of an error or anything of a payload.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, MeterProvider, get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tdev_models import telemetry
from tdev_models.errors import logged
from tdev_models.results import RequestEvent

_log = logging.getLogger(__name__)

_NAME: Final = "tdev_models"
_W3C: Final = TraceContextTextMapPropagator()
_OWN: Final = context.create_key("tdev_models")  # the innermost block of this package
_INTERRUPTIONS: Final = ("CancelledError", "KeyboardInterrupt", "SystemExit", "GeneratorExit")
_OTHER: Final = "_OTHER"  # the conventions' word for a failure that has no type

# Of a session's run and of an agent's try: minutes, not the milliseconds of the SDK's default.
_RUN_SECONDS: Final = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_REQUEST_SECONDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)

# What a metric's dimension is; of those not named here it is the type of the pipeline.
_PIPELINE: Final = "tdev.pipeline.type"
_DIMENSIONS: Final[Mapping[str, str | None]] = {
    "agent_execution_time": "tdev.variant",
    "agent_failures": "tdev.variant",
    "agent_retries": "tdev.variant",
    "agent_tokens": "gen_ai.request.model",
    "agent_cost_usd": "gen_ai.request.model",
    "projects_saved": None,  # technologies are any text: each would be a series of its own
}
_OPERATIONS: Final = {
    "agent_execution_time": "invoke_agent",
    "session_duration": "invoke_workflow",
}
# In braces, since "1" is a ratio's, and what has no braces becomes part of a name in Prometheus.
_UNITS: Final = {
    "agent_tokens": "{token}",
    "agent_cost_usd": "{USD}",
    "agent_failures": "{failure}",
    "agent_retries": "{retry}",
    "projects_saved": "{project}",
    "project_downloads": "{download}",
}

P = ParamSpec("P")
T = TypeVar("T")


def instrument(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Let OpenTelemetry see every session, agent and request of this process from now on.

    Sessions that run already stay unseen. Called again it replaces what was given before. What
    telemetry raises is logged, and costs no run.

    Args:
        tracer_provider: the SDK's; the global one when not given.
        meter_provider: the SDK's; the global one when not given.
    """
    telemetry.active = _OpenTelemetry(tracer_provider, meter_provider)


def uninstrument() -> None:
    """Let nobody see what begins from now on."""
    telemetry.active = telemetry.Telemetry()


def _harmless(
    otherwise: Callable[[], T],
) -> Callable[[Callable[Concatenate[Any, P], T]], Callable[Concatenate[Any, P], T]]:
    """Let what raises be logged, and return something else: the run goes on."""

    def of(tell: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
        @wraps(tell)
        def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return tell(self, *args, **kwargs)
            except Exception as error:
                _log.warning("telemetry: %s failed: %s", tell.__name__, logged(error))
                return otherwise()

        return call

    return of


def _nothing() -> None:
    return None


class _Span(telemetry.Span):
    """A span of the SDK.

    Attributes:
        before: the context in which its block was entered.
        ended: it has, be it in another task, whose context is a copy.
    """

    def __init__(self, span: trace.Span) -> None:
        self.span, self.before, self.ended = span, Context(), False
        self._process = os.getpid()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        self.traceparent = carrier.get("traceparent")

    @_harmless(_nothing)
    def enter(self) -> None:
        self.before = _current()
        within = trace.set_span_in_context(self.span, self.before)
        context.attach(context.set_value(_OWN, self, within))

    @_harmless(_nothing)
    def resume(self, traceparent: str | None) -> None:
        if traceparent is not None:
            former = trace.get_current_span(_W3C.extract({"traceparent": traceparent}))
            self.span.add_link(former.get_span_context())

    @_harmless(_nothing)
    def use(
        self, *, input_tokens: int, output_tokens: int, cost_usd: float, model: str | None
    ) -> None:
        used = {
            "gen_ai.usage.input_tokens": input_tokens,
            "gen_ai.usage.output_tokens": output_tokens,
            "tdev.cost_usd": cost_usd,
            "gen_ai.request.model": model,
        }
        self.span.set_attributes({name: value for name, value in used.items() if value})

    @_harmless(_nothing)
    def fail(self, error: BaseException | None) -> None:
        if not self.ended:
            failed = _OTHER if error is None else type(error).__name__
            self.span.set_attribute("error.type", failed)
            self.span.set_status(Status(StatusCode.ERROR))

    @_harmless(_nothing)
    def end(self, status: str | None) -> None:
        if os.getpid() != self._process:  # the child of a fork ends nothing of its parent
            return
        self.ended = True
        # Not by a token: who leaves a block in another task than entered it has another context.
        if (former := _current()) is not context.get_current():
            context.attach(former)
        if self.span.is_recording():
            if status is not None:
                self.span.set_attribute("tdev.status", status)
            self.span.end()


def _current() -> Context:
    """Return the context without the spans of blocks that another task has left."""
    now = context.get_current()
    while isinstance(own := context.get_value(_OWN, now), _Span):
        if not own.ended or trace.get_current_span(now) is not own.span:
            break
        now = own.before
    return now


def _is_within(now: Context, block: _Span) -> bool:
    own = context.get_value(_OWN, now)
    while isinstance(own, _Span) and own is not block:
        own = context.get_value(_OWN, own.before)
    traces = [one.get_span_context().trace_id for one in (trace.get_current_span(now), block.span)]
    return own is block and traces[0] == traces[1]


class _OpenTelemetry(telemetry.Telemetry):
    """Tells a tracer and a meter."""

    watches = True

    def __init__(
        self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = get_meter(_NAME, meter_provider=meter_provider)
        self._new_counter = meter.create_counter
        self._counters: dict[str, Counter] = {}
        self._run_seconds = self._histogram(meter, "gen_ai.invoke_agent.duration", _RUN_SECONDS)
        self._request_seconds = self._histogram(
            meter, "db.client.operation.duration", _REQUEST_SECONDS
        )

    @staticmethod
    def _histogram(meter: Any, name: str, boundaries: tuple[float, ...]) -> Histogram:
        made: Histogram = meter.create_histogram(
            name, unit="s", explicit_bucket_boundaries_advisory=boundaries
        )
        return made

    @_harmless(telemetry.Span)
    def session(self, session_id: str, pipeline_type: str | None) -> telemetry.Span:
        attributes = {
            "gen_ai.operation.name": "invoke_workflow",
            "gen_ai.conversation.id": session_id,
            **({_PIPELINE: str(pipeline_type)} if pipeline_type else {}),
        }
        return _Span(self._tracer.start_span("invoke_workflow", _current(), attributes=attributes))

    @_harmless(telemetry.Span)
    def agent(self, session: telemetry.Span, session_id: str, agent_name: str) -> telemetry.Span:
        now = _current()
        # A task that was begun before the session's block, or in another's, is not within it.
        if isinstance(session, _Span) and not _is_within(now, session):
            now = trace.set_span_in_context(session.span)
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent_name,
            "gen_ai.conversation.id": session_id,
        }
        name = f"invoke_agent {agent_name}"
        return _Span(self._tracer.start_span(name, now, attributes=attributes))

    @_harmless(_nothing)
    def request(self, event: RequestEvent) -> None:
        tables = event.table.split(",")
        table = {"db.collection.name": event.table} if len(tables) == 1 else {}
        facts = {
            "db.system.name": "aws.dynamodb",
            "db.operation.name": event.operation,
            **table,
            **({} if event.error is None else {"error.type": event.error}),
        }
        self._request_seconds.record(event.seconds, facts)
        self._count("tdev.request.units", event.units, table, "{unit}")
        # Heartbeats, recovery's looks and the like belong to no run.
        parent = _current()
        if not trace.get_current_span(parent).get_span_context().is_valid:
            return
        now = time.time_ns()
        span = self._tracer.start_span(
            f"{event.operation} {event.table}" if table else event.operation,
            parent,
            kind=SpanKind.CLIENT,
            attributes={
                **facts,
                "aws.dynamodb.table_names": tables,
                "tdev.request.units": event.units,
                "tdev.request.attempts": event.attempts,
            },
            start_time=now - int(event.seconds * 1e9),
        )
        if event.error is not None and event.error not in _INTERRUPTIONS:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)

    @_harmless(_nothing)
    def leave(self) -> None:
        context.attach(Context())

    @_harmless(_nothing)
    def metric(
        self, name: str, value: float, agent_name: str | None, dimension: str | None, failed: bool
    ) -> None:
        of = _DIMENSIONS.get(name, _PIPELINE)
        facts = {
            **({"gen_ai.agent.name": agent_name} if agent_name else {}),
            **({of: dimension} if of and dimension else {}),
        }
        if (operation := _OPERATIONS.get(name)) is None:
            self._count(f"tdev.{name}", value, facts, _UNITS.get(name, "{session}"))
            return
        failure = {"error.type": _OTHER} if failed else {}
        self._run_seconds.record(value, {"gen_ai.operation.name": operation, **facts, **failure})

    def _count(self, name: str, value: float, attributes: Mapping[str, str], unit: str) -> None:
        if name not in self._counters:
            self._counters[name] = self._new_counter(name, unit=unit)
        self._counters[name].add(value, attributes)
