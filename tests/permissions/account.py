"""An AWS account that enforces IAM, with one role that the package acts in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import botocore.session

from tdev_models import aws
from tdev_models.dynamodb.transports import target
from tdev_models.migrations import calls
from tdev_models.security import fields
from tests.moto import wait_until_it_listens

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-permissions/bin/python"
REGION = "us-east-1"
ROLE = "tdev"
EVERYTHING = [{"Effect": "Allow", "Action": "*", "Resource": "*"}]
NOTHING = [{"Effect": "Deny", "Action": "*", "Resource": "*"}]

Statement: TypeAlias = Mapping[str, Any]


class Judgement(NamedTuple):
    """One decision of IAM about one part of a request of the role."""

    verdict: str
    action: str
    resource: str

    @property
    def name(self) -> str:
        """The name of what is asked for: a table, an alarm, a key."""
        return self.resource.partition("/index/")[0].rpartition("/")[2]


class Account:
    """What the administrator does, and what IAM has judged.

    Attributes:
        endpoint: of all its services.
        counted: how often IAM allowed, and denied, each action to the role.
    """

    def __init__(self, endpoint: str, judgements: Path) -> None:
        self.endpoint, self._file, self._read = endpoint, judgements, 0
        self.counted: Counter[tuple[str, str]] = Counter()
        self._policy: Sequence[Statement] = EVERYTHING
        self.iam, self.kms = self._client("iam"), self._client("kms")
        self.iam.create_role(
            RoleName=ROLE,
            AssumeRolePolicyDocument=json.dumps(
                {
                    "Version": "2012-10-17",
                    "Statement": [
                        {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": "*"}
                    ],
                }
            ),
        )
        self.may(self._policy)
        key = self.new_key()
        self.kms.create_alias(AliasName="alias/aws/dynamodb", TargetKeyId=key)
        self.credentials: Mapping[str, str] = self._client("sts").assume_role(
            RoleArn=f"arn:aws:iam::000000000000:role/{ROLE}", RoleSessionName="tests"
        )["Credentials"]

    def _client(self, service: str) -> Any:
        return botocore.session.get_session().create_client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def new_key(self) -> str:
        """Return the ARN of a new key of KMS."""
        return str(self.kms.create_key()["KeyMetadata"]["Arn"])

    def may(self, statements: Sequence[Statement]) -> None:
        """Let the role do this and nothing else, from now on."""
        self._policy = statements
        document = {"Version": "2012-10-17", "Statement": statements}
        self.iam.put_role_policy(
            RoleName=ROLE, PolicyName=ROLE, PolicyDocument=json.dumps(document)
        )

    @contextmanager
    def administered(self) -> Iterator[None]:
        """Let the role do everything inside the block, which is not counted."""
        policy = self._policy
        self.judged()
        self.may(EVERYTHING)
        try:
            yield
        finally:
            self.may(policy)
            self._unread()

    def judged(self) -> list[Judgement]:
        """Return what IAM has decided since the last call, and count it."""
        found = self._unread()
        self.counted.update((one.verdict, one.action) for one in found)
        return found

    def _unread(self) -> list[Judgement]:
        with self._file.open() as file:
            file.seek(self._read)
            text = file.read()
            self._read = file.tell()
        return [Judgement(*line.split(" ")) for line in text.splitlines()]


def without(statements: Sequence[Statement], one: Judgement) -> list[Statement]:
    """Return a policy that allows all that these statements do but one action on one resource."""
    split: list[Statement] = []
    for statement in statements:
        actions, resources = listed(statement["Action"]), listed(statement["Resource"])
        for action in actions:
            left = [
                resource
                for resource in resources
                if (action, True) != (one.action, fnmatchcase(one.resource, resource))
            ]
            if left:
                split.append({**statement, "Action": action, "Resource": left})
    return split


def listed(value: str | Sequence[str]) -> list[str]:
    """Return what a policy writes as one text or as a list, as a list."""
    return [value] if isinstance(value, str) else [*value]


@contextmanager
def opened(directory: Path) -> Iterator[Account]:
    """Start ministack on a port of its own, and yield its account."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    judgements = directory / "judgements"
    judgements.touch()
    settings = {"AUTH": "true", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TDEV_"))
    }
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [PYTHON, Path(__file__).with_name("judge.py"), judgements],
            env={**inherited, **settings, "LOG_LEVEL": "WARNING"},
            cwd=directory,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until_it_listens(process, port, (directory / "log").read_text)
        yield Account(f"http://127.0.0.1:{port}", judgements)
    finally:
        process.terminate()
        process.wait(10)


def forget_credentials() -> None:
    """Let the package look for credentials and data keys anew, as another process would."""
    aws._clients.clear()
    target._opened.clear()
    calls._client.cache_clear()
    fields._keys.clear()
