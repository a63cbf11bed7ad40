"""Hostile input with fields encrypted; damaged messages among it."""

from __future__ import annotations

from tests import fuzz
from tests.kms import Kms


def test_hostile_input_to_encrypted_fields_gets_a_clear_error_and_nothing_else(kms: Kms) -> None:
    assert fuzz.main(5_000, 7, kms.new_key()) == 0
