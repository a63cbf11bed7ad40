"""Encrypts fields before they are planned into a request, and decrypts those of an item."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from tdev_models.dynamodb.client import Client
from tdev_models.dynamodb.shared_future import SharedFuture
from tdev_models.errors import (
    ConfigurationError,
    PayloadDamaged,
    TdevError,
    Unavailable,
    logged,
)
from tdev_models.forks import after_fork_in_child
from tdev_models.models.base import BaseModel
from tdev_models.results import Record, Undecrypted
from tdev_models.retry import Backoff, retry
from tdev_models.security.fields import (
    ENVELOPES,
    SUFFIX,
    KeyNeeded,
    Place,
    decrypted,
    encrypted,
    encrypts,
)

R = TypeVar("R", bound=Record)
T = TypeVar("T")

NOT_DECRYPTED = Undecrypted("(encrypted, and not decrypted here)")

# What is larger takes the processor so long that an event loop would notice.
_SMALL_BYTES = 64 * 1024

# Data keys that are being fetched now, by what they are needed for.
_flights: dict[Hashable, SharedFuture] = {}
after_fork_in_child(_flights.clear)


async def encrypt(
    client: Client, place: Place, data: bytes, retry_seconds: float | None = None
) -> bytes:
    """Return some data encrypted for its place.

    Raises:
        AccessDenied, ConfigurationError: KMS gives no data key.
        Throttled, Unavailable: KMS did not answer for `retry_seconds`, else for those of settings.
    """
    work = partial(encrypted, client.settings, place, data)
    return await _with_data_key(client, work, len(data), retry_seconds)


async def decrypt(client: Client, place: Place, message: bytes) -> bytes:
    """Return what was encrypted for a place.

    Raises:
        PayloadDamaged: it was changed, or encrypted for another place.
        AccessDenied, ConfigurationError: its key may not, or cannot, be used.
        Throttled, Unavailable: KMS did not answer.
    """
    work = partial(decrypted, client.settings, place, message)
    return await _with_data_key(client, work, len(message), None)


async def _with_data_key(
    client: Client, work: Callable[[], T], size: int, retry_seconds: float | None
) -> T:
    budget = client.settings.retry_seconds if retry_seconds is None else retry_seconds
    while True:
        try:
            return work() if size <= _SMALL_BYTES else await client.compute(work)
        except KeyNeeded as needed:
            fetch = partial(_fetch, client, needed)
            await retry(fetch, client.sleep, Backoff(budget))


async def _fetch(client: Client, needed: KeyNeeded) -> None:
    """Fetch a data key, or wait for whoever fetches it: in one thread, however many need it."""
    mine = SharedFuture()
    flight = _flights.setdefault(needed.name, mine)
    if flight is not mine:
        await client.wait_for(flight)
        return

    def end(error: BaseException | None) -> None:
        del _flights[needed.name]
        if error is not None and not isinstance(error, TdevError):  # an interruption is one's own
            error = Unavailable(f"no data key was fetched: {logged(error)}")
        mine.settle(error)

    def work() -> None:
        try:
            needed.fetch()
        except BaseException as error:
            end(error)
            raise
        end(None)

    try:
        await client.call(work)
    except RuntimeError as error:
        if _flights.get(needed.name) is not mine:
            raise
        end(error)
        raise Unavailable(f"there is no thread to ask KMS in: {error}") from error


async def encrypt_fields(
    client: Client,
    model: type[BaseModel],
    key: tuple[str, ...],
    values: Mapping[str, Any],
    retry_seconds: float | None = None,
) -> dict[str, Any]:
    """Return fields as they are to be stored: those that are secret under their encrypted names.

    Raises:
        AccessDenied, ConfigurationError, Throttled, Unavailable: as `encrypt`.
    """
    result = dict(values)
    for name, value in values.items():
        if value is not None and encrypts(client.settings, ENVELOPES.get(name, name)):
            place = Place(_table_of(model), key, name)
            data = str(value).encode()
            result[f"{name}{SUFFIX}"] = await encrypt(client, place, data, retry_seconds)
            del result[name]
    return result


async def check_encryption(client: Client, model: type[BaseModel]) -> None:
    """Raise, as `encrypt` does, if what is to be encrypted of a table cannot be."""
    if any(encrypts(client.settings, name) for name in encrypted_names(model)):
        await encrypt(client, Place(_table_of(model), (), ""), b"")


def is_plain(client: Client, item: BaseModel, name: str) -> bool:
    """Return whether a field, if it is set, stands in the item in clear, as it may."""
    stored, settings = item.attribute_values.get, client.settings
    if stored(f"{name}{SUFFIX}") is not None:
        return False
    refused = settings.kms_strict and encrypts(settings, ENVELOPES.get(name, name))
    return not refused or stored(name) is None


async def read_field(client: Client, item: BaseModel, name: str) -> Any:
    """Return one field of an item, decrypted where it is encrypted; None where it is not set.

    Raises:
        PayloadDamaged: it was changed or moved here, or stands in clear and `kms_strict` is set.
        AccessDenied, ConfigurationError, Throttled, Unavailable: as `decrypt`.
    """
    if is_plain(client, item, name):
        return getattr(item, name)
    message, place = getattr(item, f"{name}{SUFFIX}"), place_of(item, name)
    if message is None:
        raise PayloadDamaged(
            f"{place}: stored in clear, which kms_strict refuses; 'tdev rekey' encrypts it"
        )
    data = await decrypt(client, place, message)
    return type(item).get_attributes()[name].deserialize(data.decode())


def place_of(item: BaseModel, name: str) -> Place:
    """Return where an attribute of an item stands."""
    keys = [attribute for attribute in item.key_attributes() if attribute is not None]
    key = tuple(str(item.attribute_values[attribute.attr_name]) for attribute in keys)
    return Place(_table_of(type(item)), key, name)


async def decrypted_result(client: Client, kind: type[R], item: BaseModel) -> R:
    """Return the frozen result of an item that was read alone, its fields decrypted.

    A field that cannot be decrypted here is an `Undecrypted`; the others are there.

    Raises:
        Throttled, Unavailable: KMS did not answer.
    """
    names = [name for name in encrypted_names(type(item)) if not is_plain(client, item, name)]
    if not names:
        return kind.of(item.attribute_values)
    shown = {name: await shown_field(client, item, name) for name in names}
    return kind.of({**item.attribute_values, **shown})


async def shown_field(client: Client, item: BaseModel, name: str) -> Any:
    """Return a field as `read_field` does, or an Undecrypted where it cannot be decrypted."""
    try:
        return await read_field(client, item, name)
    except (ConfigurationError, PayloadDamaged) as error:
        return Undecrypted(f"(encrypted: {error})", error)


def listed_result(kind: type[R], item: BaseModel) -> R:
    """Return the frozen result of one item of a list: nothing is decrypted for it."""
    hidden = {
        name: NOT_DECRYPTED
        for name in encrypted_names(type(item))
        if f"{name}{SUFFIX}" in item.attribute_values
    }
    return kind.of({**item.attribute_values, **hidden} if hidden else item.attribute_values)


@cache
def encrypted_names(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the attributes of a model that may be encrypted, by their names in clear."""
    names = model.get_attributes()
    return tuple(name for name in names if f"{name}{SUFFIX}" in names)


def _table_of(model: type[BaseModel]) -> str:
    return str(model.Meta.table)  # type: ignore[attr-defined]
