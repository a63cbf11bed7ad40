"""What OpenTelemetry is told of runs, agents and requests, and what it is never told."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import tdev_models as tdev
from tdev_models import otel, sync
from tdev_models.models import PipelineSession
from tdev_models.settings import Settings
from tdev_models.web.live import Watch
from tests import raw
from tests.engine.pipelines import cancel_an_agent
from tests.faults import Fault, injected


class Seen:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def spans(self, word: str) -> list[ReadableSpan]:
        """The spans of one kind in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(word)]

    def only(self, word: str) -> ReadableSpan:
        [span] = self.spans(word)
        return span

    def metrics(self) -> list[Metric]:
        data = self.reader.get_metrics_data()
        assert data is not None
        [resource] = data.resource_metrics
        [scope] = resource.scope_metrics
        return [*scope.metrics]

    def units(self) -> dict[str, str | None]:
        return {metric.name: metric.unit for metric in self.metrics()}

    def points(self, name: str) -> list[Any]:
        found = (metric.data.data_points for metric in self.metrics() if metric.name == name)
        return [point for points in found for point in points]


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Iterator[Seen]:
    told = Seen()
    otel.instrument(told.tracers, told.meters)
    yield told
    otel.uninstrument()
    told.tracers.shutdown()
    told.meters.shutdown()
    # The SDK only logs what is wrong: a context that cannot be detached, a span that has ended.
    logs = [one for one in caplog.get_records("call") if one.name.startswith("opentelemetry")]
    assert [one.getMessage() for one in logs] == []
    ids = [span_id(span) for span in told.exporter.get_finished_spans()]
    assert len(ids) == len(set(ids))


def is_within(span: ReadableSpan, outer: ReadableSpan) -> bool:
    parent = span.parent
    return parent is not None and (parent.trace_id, parent.span_id) == span_id(outer)


def span_id(span: ReadableSpan) -> tuple[int, int]:
    own = span.get_span_context()
    assert own is not None
    return own.trace_id, own.span_id


def linked(span: ReadableSpan) -> tuple[int, int]:
    [link] = span.links
    assert link.context.is_remote
    return link.context.trace_id, link.context.span_id


def error_type(span: ReadableSpan) -> Any:
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    return (span.attributes or {})["error.type"]


async def test_a_run_is_a_trace_of_its_agents_and_their_requests(
    store: Settings, seen: Seen
) -> None:
    async with tdev.track_session("p1", pipeline_type="PRODUCTION") as session:
        async with session.agent("nlp") as run:
            run.usage(input_tokens=12, output_tokens=3, cost_usd=0.5, model="m-1")
            run.usage(input_tokens=1)
            run.output = {"a": 1}
    whole, agent = seen.only("invoke_workflow"), seen.only("invoke_agent nlp")
    assert whole.parent is None
    assert whole.attributes == {
        "gen_ai.operation.name": "invoke_workflow",
        "gen_ai.conversation.id": "p1",
        "tdev.pipeline.type": "PRODUCTION",
        "tdev.status": "COMPLETED",
    }
    assert is_within(agent, whole)
    assert agent.attributes == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "nlp",
        "gen_ai.conversation.id": "p1",
        "gen_ai.request.model": "m-1",
        "gen_ai.usage.input_tokens": 13,
        "gen_ai.usage.output_tokens": 3,
        "tdev.cost_usd": 0.5,
        "tdev.status": "COMPLETED",
    }
    begin, end = seen.spans("TransactWriteItems")
    assert len((begin.attributes or {})["aws.dynamodb.table_names"]) == 2  # type: ignore[arg-type]
    assert begin.name == "TransactWriteItems"
    assert is_within(begin, agent)
    assert is_within(end, agent)
    assert whole.status.status_code is agent.status.status_code is StatusCode.UNSET
    requests = [span for span in seen.exporter.get_finished_spans() if span not in (whole, agent)]
    assert all(is_within(span, agent) or is_within(span, whole) for span in requests)
    claim = seen.spans("UpdateItem ")[0]
    assert claim.kind is trace.SpanKind.CLIENT
    attributes = dict(claim.attributes or {})
    assert attributes.pop("tdev.request.units") > 0  # type: ignore[operator]
    assert attributes == {
        "db.system.name": "aws.dynamodb",
        "db.operation.name": "UpdateItem",
        "db.collection.name": PipelineSession.Meta.table_name,
        "aws.dynamodb.table_names": (PipelineSession.Meta.table_name,),
        "tdev.request.attempts": 1,
    }
    assert whole.start_time is not None
    assert claim.start_time is not None
    assert whole.start_time <= claim.start_time < (claim.end_time or 0) <= (whole.end_time or 0)


def test_threads_of_agents_are_within_their_trace(store: Settings, seen: Seen) -> None:
    within: list[int] = []

    def work() -> int:
        within.append(trace.get_current_span().get_span_context().span_id)
        return 1

    with sync.track_session("p1") as session:
        assert session.run("nlp", work, timeout=60) == 1
        assert session.run("design", work) == 1
    outer = seen.only("invoke_workflow")
    agents = [seen.only("invoke_agent nlp"), seen.only("invoke_agent design")]
    assert within == [span_id(agent)[1] for agent in agents]
    assert all(is_within(agent, outer) for agent in agents)
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_task_older_than_the_session_is_within_it(store: Settings, seen: Seen) -> None:
    entered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def worker() -> None:
        session = await entered
        async with session.agent("nlp"):
            pass

    older = asyncio.create_task(worker())
    async with tdev.track_session("p1") as session:
        entered.set_result(session)
        await older
    assert is_within(seen.only("invoke_agent nlp"), seen.only("invoke_workflow"))


async def test_workers_of_one_trace_tell_their_sessions_apart(store: Settings, seen: Seen) -> None:
    jobs: asyncio.Queue[Any] = asyncio.Queue()

    async def worker() -> None:
        while (job := await jobs.get()) is not None:
            session, done = job
            async with session.agent("nlp"):
                pass
            done.set()

    async def runs(session_id: str) -> None:
        async with tdev.track_session(session_id) as session:
            done = asyncio.Event()
            await jobs.put((session, done))
            await done.wait()

    with seen.tracers.get_tracer("app").start_as_current_span("POST /batch"):
        async with tdev.track_session("p0"):
            workers = [asyncio.create_task(worker())]
        workers.append(asyncio.create_task(worker()))
        await asyncio.gather(runs("p1"), runs("p2"))
        for _ in workers:
            await jobs.put(None)
        await asyncio.gather(*workers)
    agents = {str((one.attributes or {})["gen_ai.conversation.id"]): one for one in seen.spans("i")}
    for agent in seen.spans("invoke_agent"):
        session_id = str((agent.attributes or {})["gen_ai.conversation.id"])
        assert is_within(agent, agents[session_id])  # what ended last is the session's


async def test_the_span_of_the_application_is_around_it(store: Settings, seen: Seen) -> None:
    with seen.tracers.get_tracer("app").start_as_current_span("POST /projects"):
        async with tdev.track_session("p1") as session:
            with seen.tracers.get_tracer("app").start_as_current_span("step"):
                async with session.agent("nlp"):
                    pass
    outer, step = seen.only("POST"), seen.only("step")
    assert is_within(seen.only("invoke_workflow"), outer)
    assert is_within(step, seen.only("invoke_workflow"))
    assert is_within(seen.only("invoke_agent"), step)


async def test_a_failure_is_an_error_without_its_text(store: Settings, seen: Seen) -> None:
    secret = "sk-12345 of jane@example.com"
    with pytest.raises(ValueError, match="sk-12345"):
        async with tdev.track_session(
            "p1", user_id=secret, project_name=secret, metadata=f'{{"a": "{secret}"}}'
        ) as session:
            async with session.agent("nlp", input_data={"text": secret}):
                raise ValueError(secret)
    whole, agent = seen.only("invoke_workflow"), seen.only("invoke_agent")
    assert error_type(whole) == error_type(agent) == "ValueError"
    for span in (whole, agent):
        assert (span.attributes or {})["tdev.status"] == "FAILED"
    assert not any(secret in span.to_json() for span in seen.exporter.get_finished_spans())


async def test_a_failure_that_was_caught_or_reported_is_an_error(
    store: Settings, seen: Seen
) -> None:
    async with tdev.track_session("p1") as session:
        try:
            async with session.agent("nlp"):
                raise KeyError("x")
        except KeyError:
            pass
    assert error_type(seen.only("invoke_workflow")) == "KeyError"
    seen.exporter.clear()
    async with tdev.track_session("p2") as session, session.agent("nlp") as run:
        run.fail("no")
    assert error_type(seen.only("invoke_agent")) == "_OTHER"
    assert error_type(seen.only("invoke_workflow")) == "_OTHER"


@pytest.mark.parametrize("how", ["track", "resume", "enter"])
async def test_a_resumed_run_is_linked_to_the_one_before(
    store: Settings, seen: Seen, how: str
) -> None:
    async def fails() -> None:
        async with tdev.track_session("p1") as session, session.agent("nlp"):
            raise ValueError("x")

    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            await fails()
    first, second = seen.spans("invoke_workflow")
    assert not first.links
    seen.exporter.clear()
    if how == "track":
        async with tdev.track_session("p1"):
            pass
    elif how == "resume":
        assert await tdev.resume_pipeline("p1", lambda _: None)
    else:
        async with await tdev.resume_pipeline("p1"):
            pass
    third = seen.only("invoke_workflow")
    assert linked(second) == span_id(first)
    assert linked(third) == span_id(second)
    assert span_id(third)[0] != span_id(second)[0]
    assert third.status.status_code is StatusCode.UNSET
    assert not trace.get_current_span().get_span_context().is_valid


async def test_an_interruption_is_no_error(store: Settings, seen: Seen) -> None:
    await cancel_an_agent("p1")
    whole, agent = seen.only("invoke_workflow"), seen.only("invoke_agent")
    assert whole.status.status_code is agent.status.status_code is StatusCode.UNSET
    assert (whole.attributes or {})["tdev.status"] == "ACTIVE"
    assert (agent.attributes or {})["tdev.status"] == "PENDING"


async def test_a_block_may_be_left_in_another_task(store: Settings, seen: Seen) -> None:
    """As `asyncio.wait_for` of Python 3.11 does it, and fixtures that are generators."""
    session = tdev.track_session("p1")
    await asyncio.create_task(session.__aenter__())
    agent = session.agent("nlp")
    await agent.__aenter__()
    await asyncio.create_task(agent.__aexit__(None, None, None))
    await asyncio.create_task(session.__aexit__(None, None, None))
    refused = tdev.track_session("p1")
    with pytest.raises(tdev.InvalidTransition):
        await asyncio.create_task(refused.__aenter__())
    await tdev.get_pipeline_session("p1")
    async with tdev.track_session("p2"):
        pass
    first, _, last = seen.spans("invoke_workflow")
    assert is_within(seen.only("invoke_agent"), first)
    assert is_within(seen.spans("UpdateItem")[-1], last)
    assert last.parent is None
    # The read between them is in no trace: nothing ran at that moment.
    assert sum(is_within(span, first) for span in seen.spans("GetItem")) == 1
    assert not trace.get_current_span().get_span_context().is_valid


async def test_blocks_may_be_left_in_any_order(store: Settings, seen: Seen) -> None:
    first, second = tdev.track_session("p1"), tdev.track_session("p2")
    for session in (first, second):
        await session.__aenter__()
    for session in (first, second):
        await session.__aexit__(None, None, None)
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_resume_is_entered_within_a_time_limit(store: Settings, seen: Seen) -> None:
    await tdev.save_pipeline_session(session_id="p1", status="FAILED")
    resume = await tdev.resume_pipeline("p1")
    await asyncio.wait_for(resume.__aenter__(), 60)
    await tdev.get_pipeline_session("p1")
    await resume.__aexit__(None, None, None)
    run = seen.only("invoke_workflow")
    assert is_within(seen.only("GetItem"), run)


async def test_a_claim_that_others_win_is_no_run(strict_store: Settings, seen: Seen) -> None:
    await tdev.save_pipeline_session(session_id="p1", status="FAILED")

    def quicker() -> Any:
        return tdev.resume_pipeline("p1", lambda _: None)

    fault = Fault("before", operation="UpdateItem", table="pipeline-sessions", between=quicker)
    with injected(fault):
        assert not await tdev.resume_pipeline("p1", lambda _: None)
    assert (seen.only("invoke_workflow").attributes or {})["tdev.status"] == "COMPLETED"


async def test_a_claim_that_fails_ends_its_span_once(strict_store: Settings, seen: Seen) -> None:
    with injected(Fault("denied", operation="UpdateItem", table="pipeline-sessions")):
        with pytest.raises(tdev.AccessDenied):
            async with tdev.track_session("p1"):
                pass
    assert error_type(seen.only("invoke_workflow")) == "AccessDenied"


def test_a_forked_child_ends_no_span_of_its_parent(strict_store: Settings, seen: Seen) -> None:
    with sync.track_session("p1") as session, session.agent("nlp") as run:
        before = len(seen.exporter.get_finished_spans())
        child = os.fork()
        if child == 0:
            try:
                run.__exit__(SystemExit, SystemExit(0), None)
                session.__exit__(SystemExit, SystemExit(0), None)
            finally:
                os._exit(len(seen.exporter.get_finished_spans()) - before)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert is_within(seen.only("invoke_agent"), seen.only("invoke_workflow"))


def test_a_forked_child_ends_the_span_of_what_it_enters(strict_store: Settings, seen: Seen) -> None:
    sync.save_pipeline_session(session_id="p1", status="FAILED")
    resume = sync.resume_pipeline("p1")
    child = os.fork()
    if child == 0:
        try:
            with resume:
                pass
        finally:
            os._exit(len(seen.spans("invoke_workflow")))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    resume._was_entered = True  # by the child


async def test_a_key_stays_here(store: Settings, seen: Seen) -> None:
    async with tdev.track_session("p1") as session:
        async with session.agent("evaluator", key="jane@example.com"):
            pass
    agent = seen.only("invoke_agent")
    assert agent.name == "invoke_agent evaluator"
    assert (agent.attributes or {})["gen_ai.agent.name"] == "evaluator"
    assert not any("jane" in span.to_json() for span in seen.exporter.get_finished_spans())


async def test_a_request_that_was_cancelled_has_not_succeeded(
    strict_store: Settings, seen: Seen
) -> None:
    events: list[tdev.RequestEvent] = []
    cancels = Fault("before", operation="GetItem", between=lambda: reads.cancel())
    with tdev.settings.use(on_request=events.append), injected(cancels):
        with seen.tracers.get_tracer("app").start_as_current_span("app"):
            reads = asyncio.create_task(tdev.get_pipeline_session("p1"))
        with pytest.raises(asyncio.CancelledError):
            await reads
    assert [event.error for event in events] == ["CancelledError"]
    read = seen.only("GetItem")
    assert (read.attributes or {})["error.type"] == "CancelledError"
    assert read.status.status_code is StatusCode.UNSET  # an interruption is no error


async def test_what_is_refused_is_an_error_and_leaves_no_trace_behind(
    store: Settings, seen: Seen
) -> None:
    async with tdev.track_session("p1"):
        pass
    seen.exporter.clear()
    with pytest.raises(tdev.InvalidTransition):
        async with tdev.track_session("p1"):
            pass
    assert error_type(seen.only("invoke_workflow")) == "InvalidTransition"
    assert not await tdev.resume_pipeline("p1")
    assert len(seen.spans("invoke_workflow")) == 1
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_run_that_was_taken_over_is_an_error(strict_store: Settings, seen: Seen) -> None:
    with pytest.raises(tdev.LeaseLost):
        async with tdev.track_session("p1") as session, session.agent("nlp"):
            await asyncio.sleep(0.05)  # its begin is stored
            await tdev.resume_pipeline("p1", lambda _: None, force=True)
    taken, lost = seen.spans("invoke_workflow")
    assert linked(taken) == span_id(lost)
    assert error_type(lost) == error_type(seen.only("invoke_agent")) == "LeaseLost"


async def test_requests_outside_of_a_trace_are_only_counted(store: Settings, seen: Seen) -> None:
    await tdev.save_pipeline_session({"session_id": "p1", "status": "ACTIVE"})
    assert seen.exporter.get_finished_spans() == ()
    [point] = seen.points("db.client.operation.duration")
    table = PipelineSession.Meta.table_name
    assert point.count == 1
    assert point.attributes == {
        "db.system.name": "aws.dynamodb",
        "db.operation.name": "UpdateItem",
        "db.collection.name": table,
    }
    [units] = seen.points("tdev.request.units")
    assert units.attributes == {"db.collection.name": table}
    assert units.value > 0


async def test_what_many_watch_is_in_the_trace_of_none(store: Settings, seen: Seen) -> None:
    await tdev.save_pipeline_session(session_id="p1", status="ACTIVE")

    async def polls() -> AsyncGenerator[Any]:
        yield await tdev.get_pipeline_session("p1")

    with seen.tracers.get_tracer("app").start_as_current_span("GET /live"):
        watch = Watch(polls())
        await watch.task
    assert watch.state.session_id == "p1"
    assert seen.spans("GetItem") == []
    assert len(seen.points("db.client.operation.duration")) == 2


def test_what_cannot_be_entered_leaves_no_trace_behind(store: Settings, seen: Seen) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        tdev.track_session("p1").__aenter__().close()
    assert not trace.get_current_span().get_span_context().is_valid


async def test_a_request_that_fails_is_an_error(store: Settings, seen: Seen) -> None:
    with tdev.settings.use(retry_seconds=0.0, environment="nowhere"):
        with seen.tracers.get_tracer("app").start_as_current_span("app"):
            with pytest.raises(tdev.ConfigurationError):
                await tdev.get_pipeline_session("p1")
    read = seen.only("GetItem")
    assert error_type(read) == "ResourceNotFoundException"
    [point] = seen.points("db.client.operation.duration")
    for attributes in (point.attributes, read.attributes or {}):
        assert attributes["error.type"] == "ResourceNotFoundException"
        assert attributes["db.response.status_code"] == "ResourceNotFoundException"


async def test_a_condition_that_is_not_met_is_an_answer(store: Settings, seen: Seen) -> None:
    async with tdev.track_session("p1"):
        pass
    seen.exporter.clear()
    with seen.tracers.get_tracer("app").start_as_current_span("app"):
        with pytest.raises(tdev.InvalidTransition):
            await tdev.save_pipeline_session(session_id="p1", status="FAILED")
    write = seen.only("UpdateItem")
    assert write.status.status_code is StatusCode.UNSET
    [point] = [
        point
        for point in seen.points("db.client.operation.duration")
        if "db.response.status_code" in point.attributes
    ]
    for attributes in (point.attributes, write.attributes or {}):
        assert attributes["db.response.status_code"] == "ConditionalCheckFailedException"
        assert "error.type" not in attributes


async def test_metrics_that_the_package_records_are_measured(store: Settings, seen: Seen) -> None:
    assert store.automatic_metrics is False  # what is stored is another matter
    with pytest.raises(ValueError, match="x"):
        async with tdev.track_session("p1", pipeline_type="SIMPLE") as session:
            async with session.agent("nlp", key="eu", variant="b") as run:
                run.usage(input_tokens=2, output_tokens=3, cost_usd=0.25, model="m")
            async with session.agent("design"):
                raise ValueError("x")
    async with tdev.track_session("p1") as session, session.agent("design"):
        pass
    agent, variant = "gen_ai.agent.name", "tdev.variant"
    times = [(p.count, dict(p.attributes)) for p in seen.points("tdev.agent_execution_time")]
    assert (1, {agent: "design", "error.type": "_OTHER"}) in times
    assert (1, {agent: "design"}) in times
    assert (1, {agent: "nlp", variant: "b"}) in times
    [duration] = seen.points("tdev.session_duration")
    assert duration.attributes == {"tdev.pipeline.type": "SIMPLE"}
    [tokens] = seen.points("tdev.agent_tokens")
    assert tokens.value == 5
    assert tokens.attributes == {"gen_ai.agent.name": "nlp", "gen_ai.request.model": "m"}
    [cost] = seen.points("tdev.agent_cost_usd")
    assert cost.value == 0.25
    for name in ("started", "failed", "resumed", "completed"):
        [point] = seen.points(f"tdev.sessions_{name}")
        assert point.value == 1
        assert point.attributes["tdev.pipeline.type"] == "SIMPLE"
    [failures] = seen.points("tdev.agent_failures")
    assert failures.attributes == {"gen_ai.agent.name": "design"}
    assert seen.units() == {
        "db.client.operation.duration": "s",
        "gen_ai.invoke_agent.duration": "s",
        "tdev.agent_cost_usd": "{USD}",
        "tdev.agent_execution_time": "s",
        "tdev.session_duration": "s",
        "tdev.agent_failures": "{failure}",
        "tdev.agent_retries": "{retry}",
        "tdev.agent_tokens": "{token}",
        "tdev.request.units": "{unit}",
        **dict.fromkeys(
            (f"tdev.sessions_{name}" for name in ("started", "failed", "resumed", "completed")),
            "{session}",
        ),
    }


async def test_a_duration_is_that_of_its_span(store: Settings, seen: Seen) -> None:
    with pytest.raises(ValueError, match="x"):
        async with tdev.track_session("p1", pipeline_type="SIMPLE") as session:
            async with session.agent("nlp"):
                raise ValueError("x")
    await tdev.resume_pipeline("p1", lambda _: None)
    told = []
    for span in seen.spans("invoke_"):
        attributes = dict(span.attributes or {})
        del attributes["gen_ai.conversation.id"]  # each would be a series of its own
        seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
        told.append((attributes, 1, pytest.approx(seconds)))
    points = seen.points("gen_ai.invoke_agent.duration")
    measured = [(dict(point.attributes), point.count, point.sum) for point in points]
    assert len(measured) == len(told) == 3
    assert all(one in measured for one in told)
    assert told[2][0] == {  # a run that was resumed knows the type, too
        "gen_ai.operation.name": "invoke_workflow",
        "tdev.pipeline.type": "SIMPLE",
        "tdev.status": "COMPLETED",
    }


async def test_technologies_are_no_series(store: Settings, seen: Seen) -> None:
    await tdev.save_user_project({"user_id": "u", "project_id": "p", "tech_stack": ["a", "b"]})
    [point] = seen.points("tdev.projects_saved")
    assert (point.value, point.attributes) == (2, {})


class Broken(SpanProcessor):
    """Raises at each begin and end."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("broken")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("broken")


async def test_broken_telemetry_costs_no_run(
    store: Settings, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    seen.tracers.add_span_processor(Broken())
    with caplog.at_level(logging.WARNING):
        async with tdev.track_session("p1") as session, session.agent("nlp") as run:
            run.output = 1
    stored = await tdev.get_pipeline_session("p1")
    assert stored is not None
    assert stored.status == "COMPLETED"
    assert "telemetry: session failed: RuntimeError" in caplog.text


async def test_where_nobody_watches_nothing_is_stored(store: Settings) -> None:
    async with tdev.track_session("p1"):
        pass
    item = raw.item(store, "pipeline-sessions", "p1")
    assert item is not None
    assert "traceparent" not in item


def test_the_package_imports_no_opentelemetry() -> None:
    code = "import sys, tdev_models, tdev_models.calls; sys.exit('opentelemetry' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
