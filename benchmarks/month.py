"""The items of a seeded month, as the services would have left them; `seeded_month` makes them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tdev_models.metrics.totals import Totals, to_item
from tdev_models.models import (
    AgentExecution,
    BaseModel,
    PipelineSession,
    UserProject,
    WorkerItem,
)
from tdev_models.models.execution import FAILED_ATTEMPT, attempt_key
from tdev_models.models.worker import WORKER, WORKER_IDS

VARIANTS = ("old", "new")
PRICE = 4e-6  # USD a token
_TECHNOLOGIES = ("React", "Vue", "Svelte", "FastAPI", "Django", "Node.js", "PostgreSQL", "SQLite")
_TRACEBACK = """\
Traceback (most recent call last):
  File "/app/agents/{agent}.py", line 112, in run
    answer = self.model.complete(prompt, timeout=self.timeout)
  File "/app/agents/model.py", line 41, in complete
    raise self._error(response)
{error}
"""


@dataclass
class Month:
    """The month as it is made; `counts` says how many sessions have which fate."""

    now: float
    days: int
    dice: random.Random
    workers: list[str]
    dead: str
    counts: dict[str, int] = field(default_factory=dict)
    samples: dict[tuple[int, str, str, str], list[tuple[float, bool]]] = field(default_factory=dict)

    def sample(
        self,
        at: float,
        name: str,
        value: float = 1,
        agent: str = "",
        dimension: str = "",
        error: bool = False,
    ) -> None:
        """Record one sample as of a moment."""
        key = int(at // 3600), name, agent, dimension
        self.samples.setdefault(key, []).append((value, error))


class Item(NamedTuple):
    """One item in DynamoDB's form, and its table."""

    table: str
    raw: dict[str, Any]


def _item(model: type[BaseModel], /, **values: Any) -> Item:
    """Return an item; an instance of the model would take ten times as long."""
    attributes = model.get_attributes()
    raw = {
        (attribute := attributes[name]).attr_name: {attribute.attr_type: attribute.serialize(value)}
        for name, value in values.items()
        if value is not None
    }
    return Item(model.Meta.table, raw)  # type: ignore[attr-defined]


@dataclass
class Run:
    """One session as it goes on."""

    month: Month
    number: int
    fate: str
    at: float
    worker: str
    fence: int = 1
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    cost: float = 0.0
    executions: list[Item] = field(default_factory=list)
    failed_agent: str | None = None
    error: str | None = None
    progress: int = 0
    current: str | None = None

    @property
    def session_id(self) -> str:
        return f"project_{int(self.created)}_{self.number % 10_000:04}"

    def __post_init__(self) -> None:
        self.created = self.at


def worker(month: Month, name: str, number: int) -> Item:
    dead, silent = name == month.dead, number == len(month.workers) - 2
    return _item(
        WorkerItem,
        worker_id=WORKER_IDS + name,
        status=WORKER,
        created_at=month.now - 86400 * (1 + number),
        due_at=month.now + (-1200 if dead else -20 if silent else 3000),
        died_at=month.now - 1170 if dead else None,
        draining=True if number == 3 else None,
        release="2.7.1" if number < 4 else "2.7.0",
        sessions=5,
        expires_at=month.now + 3600,
    )


def cell(
    hour: int, name: str, agent: str, dimension: str, samples: list[tuple[float, bool]]
) -> Item:
    moment = datetime.fromtimestamp(hour * 3600, UTC)
    totals = Totals.of([value for value, _ in samples], sum(failed for _, failed in samples))
    cell = f"{name}#{agent}#{moment:%H}#{dimension}#{'0' * 32}"
    return Item("metrics", to_item(moment.date().isoformat(), cell, 1, totals).serialize())


def attempt(
    run: Run, number: int, status: str, start: float, end: float | None, error: str | None
) -> dict[str, Any]:
    return {
        "number": number,
        "status": status,
        "start_time": start,
        "end_time": end,
        "error_message": error,
        "worker": run.worker,
        "begin_token": f"{number:016x}",
    }


def execution(run: Run, agent: str, status: str, attempts: dict[str, Any], used: list[int]) -> Item:
    last = list(attempts.values())[-1]
    run.tokens = [run.tokens[0] + used[0], run.tokens[1] + used[1]]
    run.cost += PRICE * sum(used)
    return _item(
        AgentExecution,
        execution_id=f"{run.session_id}-{agent}",
        agent_name=agent,
        project_id=run.session_id,
        status=status,
        start_time=last["start_time"],
        end_time=last["end_time"],
        failed_at=last["end_time"] if status == "FAILED" else None,
        error_message=last["error_message"],
        retry_count=len(attempts) - 1,
        fence=run.fence,
        variant=VARIANTS[run.number % 2] if agent == "search" else None,
        input_data={"session": run.session_id, "of": agent},
        output_data={"text": f"what {agent} made. " * 20, "of": agent},
        attempts=attempts,
        input_tokens=used[0] or None,
        output_tokens=used[1] or None,
        cost_usd=PRICE * sum(used) or None,
        model="large" if sum(used) else None,
        write_token=f"{run.number:016x}",
    )


def kept(run: Run, agent: str, number: int, start: float, kind: str, error: str) -> Item:
    return _item(
        AgentExecution,
        execution_id=f"{run.session_id}-{agent}",
        agent_name=attempt_key(agent, number),
        status=FAILED_ATTEMPT,
        failed_at=run.at,
        start_time=start,
        retry_count=number - 1,
        worker=run.worker,
        error_message=error,
        error_class=kind,
        traceback=_TRACEBACK.format(agent=agent, error=f"{kind}: {error}"),
    )


def stored(run: Run, user: str, thing: str, kind: str) -> Item:
    month, fate = run.month, run.fate
    status = {"completed": "COMPLETED", "abandoned": "ABANDONED", "backoff": "FAILED"}.get(fate)
    status = status or ("FAILED" if fate == "due" else "ACTIVE")
    due = {"backoff": month.now + month.dice.uniform(10, 1500), "due": run.at + 30}
    due |= {"live": run.at + 3600, "dead": run.at + 3600, "stalled": run.at + 10}
    owned = fate in ("live", "dead")
    failed = status in ("FAILED", "ABANDONED")
    return _item(
        PipelineSession,
        session_id=run.session_id,
        user_id=user,
        project_name=f"{thing} {run.number}",
        pipeline_type=kind,
        status=status,
        current_agent=run.current,
        progress=run.progress,
        created_at=run.created,
        last_updated=run.at,
        due_at=due.get(fate, run.at),
        metadata={"request": f"a {thing}"},
        fence=run.fence,
        lease_owner=run.worker,
        lease_token="t" * 16 if owned else None,
        worker_id=WORKER_IDS + run.worker if owned else None,
        release="2.7.1",
        resume_count=run.fence - 1 or None,
        failed_agent=run.failed_agent if failed else None,
        error_message=run.error if failed else None,
        input_tokens=run.tokens[0],
        output_tokens=run.tokens[1],
        cost_usd=run.cost,
    )


def project(run: Run, user: str, thing: str) -> Item:
    month = run.month
    made_of = month.dice.sample(_TECHNOLOGIES, 3)
    downloads = month.dice.choice((0, 0, 1, 1, 2, 5))
    for technology in made_of:
        month.sample(run.at, "projects_saved", dimension=technology)
    for _ in range(downloads):
        month.sample(run.at, "project_downloads")
    return _item(
        UserProject,
        user_id=user,
        project_id=run.session_id,
        project_name=f"{thing} {run.number}",
        description=f"a {thing}, made by the pipeline",
        tech_stack=made_of,
        download_count=downloads,
        last_accessed=run.at + 60,
        created_at=run.at,
        file_path=f"s3://projects/{run.session_id}.zip",
        size_mb=round(month.dice.lognormvariate(0, 1), 2),
    )
