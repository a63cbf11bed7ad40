"""Who watches the runs of this process: nobody, until `tdev_models.otel.instrument` is called."""

from __future__ import annotations

from tdev_models.results import RequestEvent


class Span:
    """One run of a session, or one try of an agent, as who watches it sees it.

    Attributes:
        traceparent: names it to the run that resumes it, as W3C's header does; None is no name.
    """

    traceparent: str | None = None

    def enter(self) -> None:
        """Let what this task does from here on be part of it, until its end."""

    def resume(self, traceparent: str | None, pipeline_type: str | None) -> None:
        """Link it to the run of which it does the rest."""

    def use(
        self, *, input_tokens: int, output_tokens: int, cost_usd: float, model: str | None
    ) -> None:
        """Take note of what an agent has used by now."""

    def fail(self, error: BaseException | None) -> None:
        """Let it end as an error; None where it was reported, not raised."""

    def end(self, status: str | None) -> None:
        """End it as what is stored; once more does nothing."""


class Telemetry:
    """What is told of each run, request and metric. This one forgets them.

    Attributes:
        watches: whether it is worth while to tell it.
    """

    watches = False

    def session(self, session_id: str, pipeline_type: str | None) -> Span:
        """Begin the span of a session's run."""
        return Span()

    def agent(self, session: Span, session_id: str, agent_name: str) -> Span:
        """Begin the span of an agent's try."""
        return Span()

    def request(self, event: RequestEvent, error: BaseException | None) -> None:
        """Take note of a request that has ended just now."""

    def leave(self) -> None:
        """Let what this task does from here on be part of nothing."""

    def metric(
        self, name: str, value: float, agent_name: str | None, dimension: str | None, failed: bool
    ) -> None:
        """Take note of a sample of the metrics that the package records by itself."""


active = Telemetry()
