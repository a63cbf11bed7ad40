"""The two calls of KMS that field encryption makes. No data key is printed, not even at DEBUG."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from tdev_models import aws
from tdev_models.errors import (
    AccessDenied,
    ConfigurationError,
    PayloadDamaged,
    TdevError,
    Throttled,
    Unavailable,
)
from tdev_models.settings import Settings

_BY_CODE: Mapping[str, type[TdevError]] = {
    "AccessDeniedException": AccessDenied,
    "InvalidCiphertextException": PayloadDamaged,
    "IncorrectKeyException": PayloadDamaged,
    "DependencyTimeoutException": Unavailable,
    "KeyUnavailableException": Unavailable,
    "KMSInternalException": Unavailable,
    "LimitExceededException": Throttled,
    "ThrottlingException": Throttled,
}


class DataKey(NamedTuple):
    """A data key, and itself encrypted under a key of KMS."""

    plain: bytes
    encrypted: bytes

    def __repr__(self) -> str:
        return "DataKey(...)"


class Kms:
    """Sends each call once, blocking; each region has a client of its own, made at first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._clients = settings, dict[str, Any]()

    def new_data_key(self, key: str, context: Mapping[str, str]) -> DataKey:
        """Return a new data key of 256 bits under a key, bound to a context.

        Raises:
            AccessDenied: kms:GenerateDataKey is not allowed on the key.
            ConfigurationError: the key does not exist, is disabled, or is of another kind.
            Throttled, Unavailable: safe to call again.
        """
        answer = self._call(
            "GenerateDataKey",
            key,
            ("Plaintext", "CiphertextBlob"),
            lambda client: client.generate_data_key(
                KeyId=key, NumberOfBytes=32, EncryptionContext=dict(context)
            ),
        )
        return DataKey(answer["Plaintext"], answer["CiphertextBlob"])

    def decrypted(self, key: str, encrypted: bytes, context: Mapping[str, str]) -> DataKey:
        """Return a data key that was encrypted under this key and context.

        Raises:
            PayloadDamaged: it was not.
            AccessDenied: kms:Decrypt is not allowed on the key; others as `new_data_key`.
        """
        answer = self._call(
            "Decrypt",
            key,
            ("Plaintext",),
            lambda client: client.decrypt(
                KeyId=key, CiphertextBlob=encrypted, EncryptionContext=dict(context)
            ),
        )
        return DataKey(answer["Plaintext"], encrypted)

    def _call(
        self, action: str, key: str, members: tuple[str, ...], send: Callable[[Any], Any]
    ) -> Any:
        region = key.split(":")[3]
        try:
            if region not in self._clients:
                settings = replace(self._settings, region=region)
                self._clients[region] = aws.create("kms", settings, None)
            with aws.sending():
                answer = send(self._clients[region])
            if not all(answer.get(member) for member in members):  # a proxy's page, for instance
                raise Unavailable(f"kms:{action} on {key}: the answer is not that of KMS")
            return answer
        except ClientError as error:
            raise _meaning(error, f"kms:{action} on {key}") from error
        except BotoCoreError as error:
            raise aws.error_of(error) from error


def _meaning(error: ClientError, what: str) -> TdevError:
    code = error.response["Error"].get("Code", "Unknown")
    message = error.response["Error"].get("Message") or code
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    kind = _BY_CODE.get(code, Unavailable if status >= 500 else ConfigurationError)
    meaning = kind(f"{what}: {message} ({code})")
    meaning.code = code
    return meaning
