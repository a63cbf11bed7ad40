"""`tdev doctor` tries the key of encrypted fields."""

from __future__ import annotations

import json

import pytest

from tdev_models import Settings, settings
from tdev_models.cli import main
from tests.kms import Kms


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    main(["doctor", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return next((line for line in lines if line["check"] == "encryption key"), {})


def test_the_key_is_tried(
    encrypted_store: Settings, kms: Kms, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(capsys)["state"] == "ok"
    assert kms.calls == {"GenerateDataKey": 1, "Decrypt": 1}


@pytest.mark.parametrize("operation", ["GenerateDataKey", "Decrypt"])
def test_what_the_role_may_not_do_with_it_is_said(
    encrypted_store: Settings, kms: Kms, operation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kms.refuses[operation] = "AccessDeniedException"
    wrong = found(capsys)
    assert wrong["state"] == "wrong"
    assert f"kms:{operation}" in wrong["found"]
    assert "tdev iam" in wrong["remedy"]


def test_a_key_that_does_not_exist_is_said(
    encrypted_store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000"
    with settings.use(kms_key=key):
        assert found(capsys)["state"] == "wrong"


def test_without_a_key_none_is_tried(
    strict_store: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(capsys) == {}
