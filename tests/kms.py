"""A KMS for tests: moto's, with calls counted and some refused, and keys that are made at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from tdev_models import Settings, aws
from tdev_models.security import fields


class _Answer(NamedTuple):
    status_code: int


class Kms:
    """What the package asks of KMS.

    Attributes:
        calls: how often each operation was sent.
        refuses: the error code with which each of these operations is refused.
        data_keys: those that were handed out.
        seconds: how long each call takes.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.refuses: dict[str, str] = {}
        self.data_keys: set[bytes] = set()
        self.seconds = 0.0
        settings = Settings(region="us-east-1")
        self._admin = aws.create("kms", settings, None)
        self.client = aws.create("kms", settings, None)
        self.client.meta.events.register("before-call.kms", self._before)
        self.client.meta.events.register("after-call.kms", self._after)

    def new_key(self) -> str:
        """Return the ARN of a new key."""
        return str(self._admin.create_key()["KeyMetadata"]["Arn"])

    def forget(self) -> None:
        """Let every data key be asked for anew, as in another process."""
        fields._keys.clear()
        self.calls.clear()

    def _before(self, model: Any, **_: Any) -> Any:
        self.calls[model.name] += 1
        time.sleep(self.seconds)
        code = self.refuses.get(model.name)
        if code is None:
            return None
        status = 500 if code == "KMSInternalException" else 400
        answer = {"Error": {"Code": code, "Message": f"injected for {model.name}"}}
        return _Answer(status), {**answer, "ResponseMetadata": {"HTTPStatusCode": status}}

    def _after(self, parsed: dict[str, Any], **_: Any) -> None:
        if "Plaintext" in parsed:
            self.data_keys.add(parsed["Plaintext"])


@contextmanager
def watched(made: Kms) -> Iterator[Kms]:
    """Lead the package to a KMS, and watch what it sends there."""
    create = aws.create

    def client(service: str, *more: Any) -> Any:
        return made.client if service == "kms" else create(service, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aws, "create", client)
        made.refuses.clear()
        made.data_keys.clear()
        made.forget()
        yield made
        made.forget()


@contextmanager
def at(endpoint: str) -> Iterator[Kms]:
    """Yield the KMS at an endpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_KMS", endpoint)
        yield Kms()
