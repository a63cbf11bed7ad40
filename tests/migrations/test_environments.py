"""The environments that are built in."""

from __future__ import annotations

import pytest

from tdev_models import Settings
from tdev_models.migrations.environments import BUILT_IN, load


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_environment_has_settings_that_exist(name: str) -> None:
    load(name)
    Settings(environment=name)  # its name can be part of a table's
