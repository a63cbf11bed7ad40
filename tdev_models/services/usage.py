"""What agents use: tokens and money, counted once, and the budget of a session."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pynamodb.expressions.update import Action

from tdev_models import validation
from tdev_models.dynamodb.expressions import set_to
from tdev_models.errors import BudgetSpent, InvalidRequest, shown
from tdev_models.models import AgentExecution, PipelineSession
from tdev_models.workers.lease import Lease

_MOST = 10**15
_TOKENS = validation.whole(0, _MOST)
# Of an amount of money. DynamoDB refuses to add up what has more than 38 digits in all.
_DECIMALS = 12
_MODEL = validation.key(200, part=True)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one try of an agent has used so far.

    It is stored by adding, in the transaction that ends the try: whose condition lets no second
    copy of the write through, so that nothing is added twice.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    model: str | None = None

    def plus(self, input_tokens: Any, output_tokens: Any, cost_usd: Any, model: Any) -> Usage:
        """Return the sum with what was checked of a caller's numbers.

        Raises:
            InvalidRequest: a number is negative, above 1e15 or of another type.
        """
        cost = validation.number("cost_usd", cost_usd)
        if not 0 <= cost <= _MOST:
            raise InvalidRequest("cost_usd", f"{shown(cost_usd)} is not from 0 to 1e15")
        return Usage(
            self.input_tokens + _TOKENS("input_tokens", input_tokens),
            self.output_tokens + _TOKENS("output_tokens", output_tokens),
            round(self.cost_usd + cost, _DECIMALS),
            self.model if model is None else _MODEL("model", model),
        )

    def added_to_execution(self) -> list[Action]:
        """Return the actions that add it to its execution."""
        model = [] if self.model is None else [set_to(AgentExecution.model, self.model)]
        return [*self._added_to(AgentExecution), *model]

    def added_to_session(self) -> list[Action]:
        """Return the actions that add it to its session."""
        return self._added_to(PipelineSession)

    def _added_to(self, model: type[AgentExecution] | type[PipelineSession]) -> list[Action]:
        numbers: Mapping[str, float] = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": self.cost_usd,
        }
        return [model.get_attributes()[name].add(value) for name, value in numbers.items() if value]


NOTHING = Usage()


def is_spent(cost_usd: float | None, budget_usd: float | None) -> bool:
    """Return whether agents have cost what they may: without a budget, whatever they like."""
    cost = cost_usd or 0.0
    # The sum of ten times 0.1 is a little less than 1.
    return budget_usd is not None and (cost >= budget_usd or math.isclose(cost, budget_usd))


def is_raised(spender: Lease | PipelineSession, budget_usd: float | None) -> bool:
    """Return whether a budget that is spent is raised; what failed without money counts no more."""
    cost = spender.cost_usd
    return is_spent(cost, spender.budget_usd) and not is_spent(cost, budget_usd)


def check_budget(lease: Lease) -> None:
    """Raise BudgetSpent if the agents of a session have cost what they may."""
    spent, budget = lease.cost_usd, lease.budget_usd
    if is_spent(spent, budget):
        raise BudgetSpent(
            f"session {lease.session_id} has spent {spent:g} USD of its budget of {budget:g} USD; "
            "to go on, track it again, or save it, with a larger budget_usd"
        )
