"""What is encrypted, and how each of it is bound to the place where it stands.

A data key belongs to one environment and table: they are the encryption context. Key and attribute
stand inside what is encrypted, and are compared when it is decrypted: data keys are cached by the
context, which therefore is the same for all rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tdev_models.errors import ConfigurationError, PayloadDamaged
from tdev_models.forks import after_fork_in_child
from tdev_models.settings import Settings

if TYPE_CHECKING:
    from tdev_models.security.keys import Keys

SUFFIX = "_encrypted"
"""Ends the name of the Binary attribute that stands beside a String attribute, instead of it."""

ENVELOPES = {"input_ref": "input_data", "output_ref": "output_data"}
"""The envelopes of large payloads, which are encrypted where the payload is."""

_keys: dict[Any, Keys] = {}


class KeyNeeded(Exception):
    """No usable data key is cached; try again after `fetch`, which calls KMS and blocks.

    All that need the same one have the same `name`, and one of them fetches it.
    """

    def __init__(self, name: Hashable, fetch: Callable[[], object]) -> None:
        super().__init__("a data key is needed")
        self.name, self.fetch = name, fetch


class UnknownKey(ConfigurationError):
    """Something is encrypted under a key that the settings do not name."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an encrypted attribute stands.

    Attributes:
        table: the table, such as `agent-executions`.
        key: the item's key.
        attribute: the attribute's name in clear.
    """

    table: str
    key: tuple[str, ...]
    attribute: str

    def context(self, settings: Settings) -> Mapping[str, str]:
        """Return what its data keys are bound to."""
        return {"environment": settings.environment, "table": settings.table_name(self.table)}

    @property
    def mark(self) -> bytes:
        """What stands before the data."""
        return json.dumps([*self.key, self.attribute], separators=(",", ":")).encode() + b"\n"

    def __str__(self) -> str:
        return f"{self.table} {', '.join(self.key)}: {self.attribute}"


def check_installed(settings: Settings) -> None:
    """Raise ConfigurationError if encryption is set and the extra is not installed."""
    if (settings.kms_key or settings.kms_former_keys) and find_spec("aws_encryption_sdk") is None:
        raise ConfigurationError(
            "TDEV_KMS_KEY is set, and aws-encryption-sdk is not installed: "
            "pip install 'tdev-models[kms]'"
        )


def encrypts(settings: Settings, field: str) -> bool:
    """Return whether a field is to be encrypted."""
    return settings.kms_key is not None and field in settings.kms_fields


def key_for(settings: Settings, field: str) -> str | None:
    """Return the key under which a field is to be encrypted; None where it is not."""
    return settings.kms_key if encrypts(settings, field) else None


def encrypted(settings: Settings, place: Place, data: bytes) -> bytes:
    """Return some data encrypted for its place.

    Raises:
        KeyNeeded: no data key is cached.
    """
    return _keys_at_hand(settings).encrypt(place.context(settings), place.mark + data)


def decrypted(settings: Settings, place: Place, message: bytes) -> bytes:
    """Return what was encrypted for this place.

    Raises:
        KeyNeeded: its data key is not cached.
        PayloadDamaged: it was changed, or encrypted for another place.
        UnknownKey: it needs a key that the settings do not name.
        ConfigurationError: they name none.
    """
    if settings.kms_key is None and not settings.kms_former_keys:
        raise ConfigurationError(
            f"{place} is encrypted: set TDEV_KMS_KEY, or TDEV_KMS_FORMER_KEYS to read it only"
        )
    try:
        data = _keys_at_hand(settings).decrypt(place.context(settings), message)
    except (ConfigurationError, PayloadDamaged) as error:
        raise type(error)(f"{place}: {error}") from None
    if not data.startswith(place.mark):
        raise PayloadDamaged(f"{place}: it was encrypted for another item or attribute")
    return data[len(place.mark) :]


def key_of(settings: Settings, message: bytes) -> str | None:
    """Return the key under which a message is, as it says itself; None where it is in clear."""
    return keys_of(settings).key_of(message)


def is_current(settings: Settings, message: bytes) -> bool:
    """Return whether a message is encrypted under the key that new ones are, as it says itself."""
    return key_of(settings, message) == settings.kms_key


def keys_of(settings: Settings) -> Keys:
    """Return the process's data keys for these settings."""
    from tdev_models.security.keys import Keys

    name = _name_of(settings)
    found = _keys.get(name)
    return found or _keys.setdefault(name, Keys(settings))


def _keys_at_hand(settings: Settings) -> Keys:
    name = _name_of(settings)
    found = _keys.get(name)
    if found is None:  # to import the SDK takes long
        raise KeyNeeded(name, lambda: keys_of(settings))
    return found


def _name_of(settings: Settings) -> tuple[Any, ...]:
    return (
        settings.kms_key,
        settings.kms_former_keys,
        settings.allow_http,
        settings.connect_timeout_seconds,
        settings.read_timeout_seconds,
    )


after_fork_in_child(_keys.clear)
