"""Tables whose fields are encrypted, and the KMS that holds their key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tdev_models import Settings, settings
from tests import kms
from tests.conftest import make_tables


@pytest.fixture(scope="session")
def moto_kms(moto: str) -> Iterator[kms.Kms]:
    """The KMS of moto's server."""
    with kms.at(moto) as made:
        yield made


@pytest.fixture(name="kms")
def _kms(moto_kms: kms.Kms) -> Iterator[kms.Kms]:
    with kms.watched(moto_kms) as watched:
        yield watched


@pytest.fixture
def encrypted_store(dynoxide: str, kms: kms.Kms, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Fresh tables, of which every secret field is encrypted."""
    made = make_tables(dynoxide, kms_key=kms.new_key(), retry_seconds=0.2)
    monkeypatch.setattr(settings, "_configured", made)
    return made
