"""The oldest botocore that is allowed knows all that migrations send; `make test-floor` runs it."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.session import get_session
from botocore.validate import ParamValidator

from tdev_models import Settings
from tdev_models.migrations import declared, environments
from tdev_models.migrations.calls import OPERATIONS
from tdev_models.migrations.diff import diff
from tdev_models.migrations.live import Live
from tdev_models.migrations.steps import next_step


@pytest.mark.parametrize("like", [{"like": "prod"}, {"like": "dev", "most_writes": 9}])
def test_botocore_knows_every_parameter_that_makes_a_table(like: dict[str, Any]) -> None:
    session = get_session()
    for table in declared.tables(Settings(), environments.load("new", None, like)):
        for change in diff(table, Live()):
            step = next_step(table, Live(), change)
            service, _ = OPERATIONS[step.operation]
            model = session.get_service_model(service).operation_model(step.operation)
            report = ParamValidator().validate(step.request, model.input_shape)
            assert not report.has_errors(), report.generate_report()
