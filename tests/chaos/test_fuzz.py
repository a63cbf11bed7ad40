"""As many hostile inputs as the suite has time for; `make fuzz` takes a million."""

from __future__ import annotations

from tests import fuzz


def test_hostile_input_gets_a_clear_error_and_nothing_else() -> None:
    assert fuzz.main(10_000, 7) == 0
