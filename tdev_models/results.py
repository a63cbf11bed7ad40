"""The package's vocabulary: the pipeline's agents, statuses, and the frozen results of services."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, FrozenInstanceError, dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Self, TypeVar, dataclass_transform

from tdev_models.errors import TdevError

R = TypeVar("R")

AGENTS = (
    "nl_input",
    "ui_selection",
    "parser",
    "component_decision",
    "match_rate",
    "search",
    "generation",
    "assembly",
    "download",
)
"""The nine agents, in the order in which the pipeline runs them."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _result(cls: type[R]) -> type[R]:
    # `Record` has one of each method: what dataclass would generate makes the import slower.
    return dataclass(init=False, eq=False, repr=False, match_args=False)(cls)


class SessionStatus(StrEnum):
    """ACTIVE -> COMPLETED | FAILED | ABANDONED; FAILED -> ACTIVE | ABANDONED.

    `resume_pipeline` with `force` also lets ABANDONED become ACTIVE.
    """

    ACTIVE = "ACTIVE"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"


class ExecutionStatus(StrEnum):
    """PENDING -> RUNNING -> COMPLETED | FAILED; FAILED -> RUNNING."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class PipelineType(StrEnum):
    """Which kind of application the pipeline builds."""

    SIMPLE = "SIMPLE"
    PRODUCTION = "PRODUCTION"


class Undecrypted(str):
    """Stands in a result for an encrypted field that was not decrypted; its text says why.

    It is refused wherever a value is to be stored.

    Attributes:
        error: what KMS, or the lack of a key, answered; None in lists, which decrypt nothing.
    """

    error: TdevError | None

    def __new__(cls, reason: str, error: TdevError | None = None) -> Self:
        """Return the stand-in whose text is the reason."""
        made = super().__new__(cls, reason)
        made.error = error
        return made


class Record(Mapping[str, Any]):
    """A frozen result, readable as `record["field"]` and `record.field`; `dict(record)` works."""

    def __init__(self, **values: Any) -> None:
        known = self.__dataclass_fields__  # type: ignore[attr-defined]
        for name, field_ in known.items():
            if name in values:
                continue
            if field_.default is not MISSING:
                values[name] = field_.default
            elif field_.default_factory is not MISSING:
                values[name] = field_.default_factory()
            else:
                raise TypeError(f"{type(self).__name__} needs {name}")
        if unknown := values.keys() - known.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        self.__dict__.update(values)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the result of the values by field; a field without one is None.

        For what is read from the store, where most fields may be missing: quicker than a call.
        """
        record = cls.__new__(cls)
        fields = record.__dict__
        fields.update(_nothing_in(cls))
        for name, value in values.items():
            if name in fields:
                fields[name] = value
        return record

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete {name!r}")

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:  # type: ignore[attr-defined]
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)  # type: ignore[attr-defined]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as `json.dumps` takes them: dicts and lists instead of results."""
        return {name: _plain(value) for name, value in self.items()}

    def __repr__(self) -> str:
        shown = (
            f"{name}={'...' if name in _HIDDEN and value is not None else repr(value)}"
            for name, value in self.items()
        )
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def _nothing_in(kind: type[Record]) -> dict[str, None]:
    """Return the fields of a result, each without a value."""
    return dict.fromkeys(kind.__dataclass_fields__)  # type: ignore[attr-defined]


# What results do not show in their repr, and so in logs: what users and their agents made.
_HIDDEN = {
    *("input_data", "output_data", "metadata", "error_message", "traceback", "description"),
    *("tech_stack", "file_path"),
}


def _plain(value: Any) -> Any:
    """Return a field's value without results in it; payloads are plain already."""
    if isinstance(value, Record):
        return value.to_dict()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


@_result
class Session(Record):
    """One pipeline run. Times are epoch seconds; None means not set, or not in the index read.

    `failed_agent` and `error_message` are those of its last failure: of an ACTIVE session, why it
    failed before it was resumed. Tokens and cost are the sums of its executions. From `deadline` on
    an agent has hung for so long that another worker may take the session over. `release` is that
    of the worker which made the last claim.
    """

    session_id: str
    status: str
    user_id: str | None = None
    project_name: str | None = None
    pipeline_type: str | None = None
    current_agent: str | None = None
    progress: int | None = None
    created_at: float | None = None
    last_updated: float | None = None
    metadata: Any = None
    fence: int | None = None
    lease_owner: str | None = None
    lease_expires: float | None = None
    resume_count: int | None = None
    due_at: float | None = None
    resumes_without_progress: int | None = None
    worker_deaths: int | None = None
    failed_agent: str | None = None
    error_message: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    budget_usd: float | None = None
    deadline: float | None = None
    release: str | None = None


class WorkerState(StrEnum):
    """What is known of a worker."""

    ALIVE = "ALIVE"
    DRAINING = "DRAINING"
    SILENT = "SILENT"
    DEAD = "DEAD"


@_result
class Worker(Record):
    """A process that runs sessions. Times are epoch seconds.

    SILENT: its lease has ended, and nobody has declared it dead yet: it died, or the store was out
    of reach. `name` is what its sessions show as `lease_owner`; `sessions` how many it ran when it
    last beat.
    """

    name: str
    host: str
    state: WorkerState
    started_at: float | None = None
    lease_expires: float | None = None
    died_at: float | None = None
    release: str | None = None
    sessions: int = 0


@_result
class Attempt(Record):
    """One try of one agent; `number` counts from 1. Times are epoch seconds.

    `status` is RUNNING, COMPLETED, FAILED, CANCELLED (its worker gave it back: no failure), or LOST
    (it never ended, and another one began). `error_message` has at most 500 characters, the last of
    one that was cut is `…`; its `Failure` has up to 4 KB.
    """

    number: int
    status: str
    start_time: float | None = None
    end_time: float | None = None
    error_message: str | None = None
    worker: str | None = None


@_result
class Execution(Record):
    """One agent's work in one run; `agent_name` is `agent@key` where it ran under a key.

    Tokens and cost are those of all attempts, `release` that of the worker which wrote its status
    last. Payloads are Python objects. Lists leave payloads out (None), and release where attempts
    are not asked for.
    """

    execution_id: str
    agent_name: str
    project_id: str | None = None
    status: str | None = None
    start_time: float | None = None
    end_time: float | None = None
    input_data: Any = None
    output_data: Any = None
    error_message: str | None = None
    retry_count: int | None = None
    fence: int | None = None
    variant: str | None = None
    release: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    model: str | None = None
    attempts: tuple[Attempt, ...] = ()


@_result
class Failure(Record):
    """One attempt of one agent that failed; `number` counts from 1. Times are epoch seconds.

    `error_class` is the error's class (`httpx.ReadTimeout`), `traceback` the end of its traceback;
    None where no error ended the attempt. `recovered`: a later attempt has COMPLETED.
    """

    execution_id: str
    agent_name: str
    number: int
    session_id: str | None = None
    start_time: float | None = None
    failed_at: float | None = None
    worker: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    critical: bool = True
    variant: str | None = None
    recovered: bool = False


@_result
class Project(Record):
    """One generated project of one user. Times are epoch seconds, `size_mb` megabytes."""

    user_id: str
    project_id: str
    project_name: str | None = None
    description: str | None = None
    tech_stack: Any = None
    download_count: int | None = None
    last_accessed: float | None = None
    created_at: float | None = None
    file_path: str | None = None
    size_mb: float | None = None


@_result
class MetricRow(Record):
    """The samples of one group. `hour` and `day` are UTC; values are in the metric's unit.

    `percentiles` has those that were asked for, by their number.
    """

    metric_name: str
    day: str | None = None
    hour: int | None = None
    agent_name: str | None = None
    dimension: str | None = None
    count: int
    sum: float
    mean: float
    min: float
    max: float
    error_rate: float
    percentiles: Mapping[float, float] = field(default_factory=dict)


@_result
class SessionCounts(Record):
    """What happened to sessions in one group: a UTC day, an hour of the day, a pipeline type."""

    group: str
    started: int
    completed: int
    failed: int
    abandoned: int
    resumed: int


@_result
class FunnelStep(Record):
    """How far sessions get: how often an agent `completed`, and how often one `stopped` there.

    A session stops when it turns FAILED, or from ACTIVE to ABANDONED: at the agent that failed, or
    else at the last that began. If it is resumed and stops again it counts again. An agent after
    whose failure the session went on counts in neither number. Of an agent that runs once for each
    `key`, each run counts: it may have completed more often than there are sessions.
    """

    agent_name: str
    completed: int
    stopped: int


@_result
class UsageReport(Record):
    """What happened in a range of time.

    Rates are of the sessions that ended for good, COMPLETED or ABANDONED; None without any. Those
    that are FAILED have not: `waiting` is how many wait to be resumed now, whenever they failed,
    and `due` how many of them may be at once; the others are in backoff. 10,000 stands for as many
    or more.

    `by_hour` groups by hour of the day ("00".."23", UTC). `funnel` has the agents in the pipeline's
    order, then others at which sessions stopped, by name. `seconds` are those of completed
    sessions, None without any; its percentiles are 50, 90 and 99.
    """

    sessions: SessionCounts
    success_rate: float | None
    abandonment_rate: float | None
    waiting: int
    due: int
    by_day: tuple[SessionCounts, ...]
    by_hour: tuple[SessionCounts, ...]
    by_type: tuple[SessionCounts, ...]
    funnel: tuple[FunnelStep, ...]
    seconds: MetricRow | None
    technologies: Mapping[str, int]
    downloads: int


@_result
class AgentPerformance(Record):
    """The runs of one agent; times in seconds.

    `trend` is the mean's relative change against the range before; None without runs there.
    """

    agent_name: str
    runs: int
    failures: int
    success_rate: float
    retries: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float
    trend: float | None


@_result
class PerformanceReport(Record):
    """The agents in the pipeline's order, then others by name.

    `slowest` has the largest 95th percentile, `most_failing` the lowest success rate; None when
    nothing ran or failed.
    """

    agents: tuple[AgentPerformance, ...]
    slowest: str | None
    most_failing: str | None


@_result
class Variant(Record):
    """The samples of one variant; `typical` is the geometric mean of the values above 0."""

    name: str
    count: int
    success_rate: float
    mean: float
    typical: float | None
    p50: float
    p95: float
    p99: float


@_result
class Difference(Record):
    """An effect with its 95 % interval and its p-value, and how many samples it takes.

    `needed` samples of each variant show an effect of the size asked for in 4 of 5 tests.
    """

    effect: float
    low: float
    high: float
    p_value: float
    needed: int


@_result
class Comparison(Record):
    """Two variants, b against a; None where there is too little to say anything.

    Attributes:
        success: the difference of the success rates (0.02: two points more succeed).
        ratio: the ratio of the typical values (0.9: b takes a tenth less).
        split_p_value: how likely such a split of the samples is by chance; below 0.001 something
            loses samples of one variant, and no comparison means anything, unless an agent ran more
            than once in a session (`key=`): such runs are no samples of their own.
        verdict: the same in words.
    """

    metric: str
    agent_name: str
    a: Variant | None
    b: Variant | None
    success: Difference | None
    ratio: Difference | None
    split_p_value: float | None
    verdict: str


@_result
class RequestEvent(Record):
    """One request as it was sent: what an `on_request` hook receives.

    `units` are the capacity units consumed (0 when the request failed), `attempts` includes
    retries, `error` is the AWS error code or the exception's name.
    """

    operation: str
    table: str
    units: float
    seconds: float
    attempts: int
    error: str | None = None


T = TypeVar("T")


class Page(list[T]):
    """A list of results; `cursor` asks for the next page, None at the end."""

    def __init__(self, items: Iterable[T] = (), cursor: str | None = None) -> None:
        super().__init__(items)
        self.cursor = cursor

    def to_dict(self) -> dict[str, Any]:
        """Return `items` and `cursor` as `json.dumps` takes them."""
        return {"items": [_plain(item) for item in self], "cursor": self.cursor}
