"""Traces and metrics for OpenTelemetry (`pip install tdev-models[otel]`).

`instrument()` once a process, after its SDK is set up. Then each run of a session is a span
`invoke_workflow`, linked to the run that it resumes, each try of an agent a span `invoke_agent`
within it, with the model and the tokens of `AgentRun.usage`, and each request within a trace a
client's span. Names are those of the semantic conventions for GenAI 0.1 and for databases; what
they lack begins with `tdev.`. No span holds a user, an agent's key, a text of an error or anything
of a payload.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram, MeterProvider, get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tdev_models import telemetry
from tdev_models.errors import ConditionFailed, TdevError, logged
from tdev_models.results import RequestEvent

_log = logging.getLogger(__name__)

_NAME: Final = "tdev_models"
_W3C: Final = TraceContextTextMapPropagator()
_OWN: Final = context.create_key("tdev_models")  # the innermost block of this package
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
_DURATIONS: Final = ("agent_execution_time", "session_duration")
# In braces, since "1" is a ratio's, and what has no braces becomes part of a name in Prometheus.
_UNITS: Final = {
    "agent_tokens": "{token}",
    "agent_cost_usd": "{USD}",
    "agent_failures": "{failure}",
    "agent_retries": "{retry}",
    "projects_saved": "{project}",
    "project_downloads": "{download}",
}

_Facts: TypeAlias = dict[str, str]

P = ParamSpec("P")
T = TypeVar("T")


def instrument(
    tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
) -> None:
    """Let OpenTelemetry see every session, agent and request of this process from now on.

    Sessions that run already stay unseen, but for the agents that they begin. Called again it
    replaces what was given before. What telemetry raises is logged, and costs no run.

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
        before: the context in which its block was entered; None before that.
        ended: it has, be it in another task, whose context is a copy.
    """

    def __init__(self, span: trace.Span, began: int, facts: _Facts, seconds: Histogram) -> None:
        self.span, self.ended = span, False
        self.before: Context | None = None
        self._began, self._facts, self._seconds = began, facts, seconds
        self._process = os.getpid()
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        self.traceparent = carrier.get("traceparent")

    @_harmless(_nothing)
    def enter(self) -> None:
        self.before, self._process = _current(), os.getpid()
        within = trace.set_span_in_context(self.span, self.before)
        context.attach(context.set_value(_OWN, self, within))

    @_harmless(_nothing)
    def resume(self, traceparent: str | None, pipeline_type: str | None) -> None:
        if pipeline_type:
            self._tell(_PIPELINE, str(pipeline_type))
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
            self._tell("error.type", _OTHER if error is None else type(error).__name__)
            self.span.set_status(Status(StatusCode.ERROR))

    @_harmless(_nothing)
    def end(self, status: str | None) -> None:
        # The child of a fork ends nothing of its parent.
        if self.ended or os.getpid() != self._process:
            return
        self.ended, now = True, time.time_ns()
        if status is not None:
            self._tell("tdev.status", status)
        # Not by a token: who leaves a block in another task than entered it has another context.
        if (former := _current()) is not context.get_current():
            context.attach(former)
        self.span.end(now)
        if self.before is not None:  # what was claimed, and never entered, has run nothing
            seconds = max(0.0, (now - self._began) / 1e9)
            self._seconds.record(seconds, self._facts, trace.set_span_in_context(self.span))

    def _tell(self, name: str, value: str) -> None:
        self._facts[name] = value
        self.span.set_attribute(name, value)


def _current() -> Context:
    """Return the context without the spans of blocks that another task has left."""
    now = context.get_current()
    while isinstance(own := context.get_value(_OWN, now), _Span):
        if not own.ended or own.before is None or trace.get_current_span(now) is not own.span:
            break
        now = own.before
    return now


def _is_within(now: Context, block: _Span) -> bool:
    own = context.get_value(_OWN, now)
    while isinstance(own, _Span) and own is not block:
        own = context.get_value(_OWN, own.before)
    here = trace.get_current_span(now).get_span_context().trace_id
    return own is block and here == block.span.get_span_context().trace_id


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
        self._durations = {
            name: self._histogram(meter, f"tdev.{name}", _RUN_SECONDS) for name in _DURATIONS
        }
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
        facts = {
            "gen_ai.operation.name": "invoke_workflow",
            **({_PIPELINE: str(pipeline_type)} if pipeline_type else {}),
        }
        return self._span("invoke_workflow", _current(), session_id, facts)

    @_harmless(telemetry.Span)
    def agent(self, session: telemetry.Span, session_id: str, agent_name: str) -> telemetry.Span:
        now = _current()
        # A task that was begun before the session's block, or in another's, is not within it.
        if isinstance(session, _Span) and not _is_within(now, session):
            now = trace.set_span_in_context(session.span)
        facts = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": agent_name}
        return self._span(f"invoke_agent {agent_name}", now, session_id, facts)

    def _span(self, name: str, parent: Context, session_id: str, facts: _Facts) -> _Span:
        began, attributes = time.time_ns(), {**facts, "gen_ai.conversation.id": session_id}
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=began)
        return _Span(span, began, facts, self._run_seconds)

    @_harmless(_nothing)
    def request(self, event: RequestEvent, error: BaseException | None) -> None:
        # A condition that is not met is an answer: what it means, whoever asked is told.
        failed = error is not None and not isinstance(error, ConditionFailed)
        code = error.code if isinstance(error, TdevError) else None
        tables = event.table.split(",")
        table = {"db.collection.name": event.table} if len(tables) == 1 else {}
        facts = {
            "db.system.name": "aws.dynamodb",
            "db.operation.name": event.operation,
            **table,
            **({"error.type": event.error or _OTHER} if failed else {}),
            **({"db.response.status_code": code} if code else {}),
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
        if failed and isinstance(error, Exception):
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
        if name in self._durations:
            failure = {"error.type": _OTHER} if failed else {}
            self._durations[name].record(value, {**facts, **failure})
        else:
            self._count(f"tdev.{name}", value, facts, _UNITS.get(name, "{session}"))

    def _count(self, name: str, value: float, attributes: Mapping[str, str], unit: str) -> None:
        if name not in self._counters:
            self._counters[name] = self._new_counter(name, unit=unit)
        self._counters[name].add(value, attributes)
