"""The list of what `make mutation` removes, which takes too long for every run."""

from __future__ import annotations

from tests.mutation import TOKENS, mutants


def test_everything_that_is_to_be_removed_is_still_there() -> None:
    assert len(list(mutants())) > len(TOKENS)
