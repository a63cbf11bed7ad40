"""Encrypts by the AWS Encryption SDK, with data keys that are cached within bounds.

The only module that imports the SDK. Encrypting and decrypting send nothing: where no usable data
key is cached they raise `KeyNeeded`, whose `fetch` calls KMS. So neither an event loop nor the
threads that compute wait for KMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import aws_encryption_sdk as sdk
from aws_encryption_sdk.caches import build_decryption_materials_cache_key
from aws_encryption_sdk.identifiers import Algorithm, CommitmentPolicy
from aws_encryption_sdk.materials_managers import (
    DecryptionMaterials,
    DecryptionMaterialsRequest,
    EncryptionMaterials,
    EncryptionMaterialsRequest,
)
from aws_encryption_sdk.materials_managers.base import CryptoMaterialsManager
from aws_encryption_sdk.structures import DataKey, EncryptedDataKey, MasterKeyInfo

from tdev_models.errors import ConfigurationError, PayloadDamaged, TdevError
from tdev_models.security.fields import KeyNeeded, UnknownKey
from tdev_models.security.kms import Kms
from tdev_models.settings import Settings

_ALGORITHM = Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
_CLIENT = sdk.EncryptionSDKClient(
    commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT, max_encrypted_data_keys=1
)
_PROVIDER = "aws-kms"

# How long, and for how many messages, a data key is used. A permission that was taken away works on
# for as long, where its data key is cached.
CACHE_SECONDS, CACHE_MESSAGES = 300.0, 10_000
_CACHED = 1000
_PARTITION = b"tdev"
# More than the header and the end of a message.
_OVERHEAD = 64 * 1024


class Keys:
    """The data keys of a process for one choice of KMS keys; used by all threads."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.kms_key
        self._accepted = {*filter(None, [settings.kms_key]), *settings.kms_former_keys}
        self._cache = sdk.LocalCryptoMaterialsCache(_CACHED)
        self._cached = self._over(_Uncached(self))
        self._filled = self._over(_FromKms(settings.kms_key, Kms(settings)))

    def _over(self, source: CryptoMaterialsManager) -> CryptoMaterialsManager:
        # Both see the same entries, since their partition is the same.
        return sdk.CachingCryptoMaterialsManager(
            cache=self._cache,
            backing_materials_manager=source,
            max_age=CACHE_SECONDS,
            max_messages_encrypted=CACHE_MESSAGES,
            partition_name=_PARTITION,
        )

    def encrypt(self, context: Mapping[str, str], data: bytes) -> bytes:
        """Return the message of some data, bound to a context.

        Raises:
            KeyNeeded: no data key is cached.
            ConfigurationError: there is no key to encrypt with.
        """
        if self._key is None:
            raise ConfigurationError("there is no key to encrypt with: set TDEV_KMS_KEY")
        with _CLIENT.stream(
            mode="e",
            source=data,
            materials_manager=self._cached,
            encryption_context=dict(context),
            algorithm=_ALGORITHM,
            frame_length=0,  # one block: frames cost bytes, and nothing here is streamed
        ) as message:
            encrypted: bytes = message.read(len(data) + _OVERHEAD)
        return encrypted

    def decrypt(self, context: Mapping[str, str], message: bytes) -> bytes:
        """Return the data of a message that was encrypted in this context under an accepted key.

        Raises:
            KeyNeeded: its data key is not cached.
            UnknownKey: its key is not among the accepted ones.
            PayloadDamaged: it is no such message, or of another context.
        """
        expected = _Expected(self._cached, dict(context), self._accepted)
        return _opened(message, expected)

    def key_of(self, message: bytes) -> str | None:
        """Return the KMS key that a message names, unchecked; None where it is no message."""
        try:
            _opened(message, _Peek())
        except _Peeked as peeked:
            return peeked.key
        except PayloadDamaged:
            pass
        return None

    def fetch(self, request: Any) -> None:
        """Let KMS make or decrypt the data key of a request, where it is not cached meanwhile.

        Raises:
            TdevError: as `Kms` does.
        """
        if isinstance(request, DecryptionMaterialsRequest):
            self._filled.decrypt_materials(request)
            return
        made = self._filled.get_encryption_materials(request)
        # What this process has encrypted it need not ask for.
        reads = DecryptionMaterialsRequest(
            algorithm=made.algorithm,
            encrypted_data_keys=made.encrypted_data_keys,
            encryption_context=made.encryption_context,
        )
        self._cache.put_decryption_materials(
            cache_key=build_decryption_materials_cache_key(_PARTITION, reads),
            decryption_materials=DecryptionMaterials(data_key=made.data_encryption_key),
        )


def _opened(message: bytes, materials: CryptoMaterialsManager) -> bytes:
    stream = _CLIENT.stream(
        mode="d", source=message, materials_manager=materials, max_body_length=len(message)
    )
    try:
        data: bytes = stream.read(len(message))
    except (TdevError, KeyNeeded, _Peeked):
        raise
    except Exception as error:  # whatever the bytes of others lead to
        raise PayloadDamaged(f"it cannot be decrypted ({type(error).__name__})") from None
    finally:
        stream.footer = None  # else to close what failed would be an error, too
        stream.close()
    return data


def _name_of(request: Any) -> tuple[Any, ...]:
    context = tuple(sorted(request.encryption_context.items()))
    if isinstance(request, DecryptionMaterialsRequest):
        return context, frozenset(request.encrypted_data_keys)
    return (context,)


class _Uncached(CryptoMaterialsManager):  # type: ignore[misc]
    """Says that a data key is not cached."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def get_encryption_materials(self, request: EncryptionMaterialsRequest) -> NoReturn:
        request.plaintext_length = 0  # or the caching manager would not keep it
        raise KeyNeeded((self._keys, *_name_of(request)), lambda: self._keys.fetch(request))

    def decrypt_materials(self, request: DecryptionMaterialsRequest) -> NoReturn:
        raise KeyNeeded((self._keys, *_name_of(request)), lambda: self._keys.fetch(request))


class _FromKms(CryptoMaterialsManager):  # type: ignore[misc]
    """Asks KMS for data keys."""

    def __init__(self, key: str | None, kms: Kms) -> None:
        self._key, self._kms = key, kms

    def get_encryption_materials(self, request: EncryptionMaterialsRequest) -> EncryptionMaterials:
        made = self._kms.new_data_key(self._key or "", request.encryption_context)
        info = MasterKeyInfo(_PROVIDER, self._key)
        return EncryptionMaterials(
            algorithm=_ALGORITHM,
            data_encryption_key=DataKey(info, made.plain, made.encrypted),
            encrypted_data_keys={EncryptedDataKey(info, made.encrypted)},
            encryption_context=request.encryption_context,
        )

    def decrypt_materials(self, request: DecryptionMaterialsRequest) -> DecryptionMaterials:
        (stored,) = request.encrypted_data_keys
        info, encrypted = stored.key_provider, stored.encrypted_data_key
        found = self._kms.decrypted(_key_in(stored), encrypted, request.encryption_context)
        return DecryptionMaterials(data_key=DataKey(info, found.plain, encrypted))


class _Expected(CryptoMaterialsManager):  # type: ignore[misc]
    """Lets messages of one context and of accepted keys through, before KMS is asked."""

    def __init__(
        self, source: CryptoMaterialsManager, context: dict[str, str], accepted: set[str]
    ) -> None:
        self._source, self._context, self._accepted = source, context, accepted

    def get_encryption_materials(self, request: EncryptionMaterialsRequest) -> NoReturn:
        raise AssertionError("nothing is encrypted through what reads")

    def decrypt_materials(self, request: DecryptionMaterialsRequest) -> DecryptionMaterials:
        if request.encryption_context != self._context:
            raise PayloadDamaged("it was encrypted for another table or environment")
        (stored,) = request.encrypted_data_keys
        if _key_in(stored) not in self._accepted:
            raise UnknownKey(
                f"it is encrypted under {_key_in(stored)[:200]}, which is neither TDEV_KMS_KEY nor "
                "one of TDEV_KMS_FORMER_KEYS"
            )
        return self._source.decrypt_materials(request)


class _Peeked(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class _Peek(CryptoMaterialsManager):  # type: ignore[misc]
    """Stops at the header."""

    def get_encryption_materials(self, request: EncryptionMaterialsRequest) -> NoReturn:
        raise AssertionError("nothing is encrypted through what reads")

    def decrypt_materials(self, request: DecryptionMaterialsRequest) -> NoReturn:
        (stored,) = request.encrypted_data_keys
        raise _Peeked(_key_in(stored))


def _key_in(stored: EncryptedDataKey) -> str:
    if stored.key_provider.provider_id != _PROVIDER:
        raise PayloadDamaged("it is not encrypted under a key of KMS")
    key = stored.key_provider.key_info
    return key.decode(errors="replace") if isinstance(key, bytes) else str(key)
