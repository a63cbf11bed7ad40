"""Every error that the package raises, and the one place where AWS codes become errors.

::

    TdevError
    ├── InvalidRequest      the caller's input; nothing was sent (also a ValueError)
    ├── ConfigurationError  region, credentials, permissions or tables are missing
    │   └── AccessDenied    the role may not do this
    ├── NotFound            no such item (also a LookupError)
    ├── WrongUser           the session belongs to another user
    ├── InvalidTransition   the state machine forbids this change of status
    ├── LeaseHeld           another worker owns the session
    ├── LeaseLost           this worker owned the session and no longer does
    ├── BudgetSpent         the session has spent its budget; no further agent begins
    ├── EffectInDoubt       a side effect was begun before, and nobody knows whether it happened
    ├── Conflict            others wrote the same item again and again; safe to call again
    ├── Throttled           refused for capacity after all retries; safe to call again
    ├── Unavailable         no answer after all retries; perhaps written; safe to call again
    ├── PayloadDamaged      a stored item or payload is not what was written
    ├── ItemTooLarge        the item would pass DynamoDB's 400 KB
    └── StoreError          any other answer of DynamoDB, with its code, status and message
"""

from __future__ import annotations

import copyreg
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 80
_LONG_TEXTS = (str, bytes, bytearray, memoryview)


class _Shortly(reprlib.Repr):
    """Looks at no more of a value than it shows."""

    def repr_int(self, x: int, level: int) -> str:
        digits = int(x.bit_length() * 0.30103)
        return super().repr_int(x, level) if digits < 1000 else f"<int of {digits:,} digits>"

    def repr_instance(self, x: Any, level: int) -> str:
        if isinstance(x, _LONG_TEXTS) and len(x) > _SHOWN:
            return f"{self.repr_instance(x[:_SHOWN], level)}..."
        return super().repr_instance(x, level)


_shortly = _Shortly()
_shortly.maxstring = _shortly.maxother = _SHOWN


def shown(value: object) -> str:
    """Return a value as an error's text shows it: short, whatever it is."""
    return _shortly.repr(value)


def plain(text: str) -> str:
    """Return a text in one line, without characters that control the terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in " ".join(text.split("\n"))
    )


class TdevError(Exception):
    """The root of every error of this package.

    Attributes:
        code: the AWS error code; None where the error is not an answer of AWS.
    """

    code: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an error's text becomes the arguments of a class that takes others: a process
        # pool, whose parent cannot load what an agent raised, breaks or waits for ever.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidRequest(TdevError, ValueError):
    """The caller's input is wrong; nothing was sent.

    Attributes:
        field: the name of the offending field.
    """

    def __init__(self, field: str, problem: str, path: str = "") -> None:
        # The path leads to the part of the field's value that is wrong: `.files[3].size`.
        super().__init__(f"{field}{path}: {problem}")
        self.field = field


class ConfigurationError(TdevError):
    """The environment lacks something; the message names the remedy."""


class AccessDenied(ConfigurationError):
    """The role may not do this; the message is AWS's own, with the action, and names the tables."""


class NotFound(TdevError, LookupError):
    """There is no such item, or not for the given user."""


class WrongUser(TdevError):
    """The session belongs to another user than the call names; nothing was changed or claimed."""


class InvalidTransition(TdevError):
    """The state machine forbids this change; nothing was changed.

    Attributes:
        current: the stored status.
        wanted: the status that was asked for.
    """

    def __init__(self, what: str, current: str | None, wanted: str, remedy: str = "") -> None:
        super().__init__(f"{what} is {current} and cannot become {wanted}{remedy and '; '}{remedy}")
        self.current, self.wanted = current, wanted


def logged(error: BaseException) -> str:
    """Return an error as logs show it: the package's own with their text, others by their class.

    What a runner, an agent or a hook raises may hold what is secret. It is stored with the session,
    for those who may read it.
    """
    own = isinstance(error, TdevError) and not isinstance(error, InvalidRequest)
    return f"{type(error).__name__}: {error}" if own else type(error).__name__


def expired_error(key: str) -> InvalidTransition:
    """Return the error of a write to an item that has expired."""
    return InvalidTransition(key, "EXPIRED", "live again", "use another id")


class LeaseHeld(TdevError):
    """Another worker owns the session, so a call without its lease changes nothing."""


class LeaseLost(TdevError):
    """This worker's lease was taken over or ended; its write changed nothing.

    Attributes:
        session_id: the session; None where other code than the package's has raised it.
    """

    session_id: str | None = None


class BudgetSpent(TdevError):
    """The session has spent its `budget_usd`, so the next agent does not begin."""


class EffectInDoubt(TdevError):
    """A side effect was begun before and its result was never stored: it may have happened."""


class Throttled(TdevError):
    """DynamoDB refused for capacity after all retries; safe to call again."""


class Unavailable(TdevError):
    """No usable answer after all retries: the write may or may not have happened.

    Safe to call again: every write of this package may be sent twice, except that `record_metric`
    and `record_download` without a `download_id` count a second call.
    """


class PayloadDamaged(TdevError):
    """A stored item cannot be read, or chunks of a payload are missing; the message names it."""


class ItemTooLarge(TdevError):
    """The item would pass DynamoDB's limit of 400 KB; nothing was changed."""


class StoreError(TdevError):
    """Any other answer of DynamoDB.

    Attributes:
        code: the AWS error code.
        status: the HTTP status.
    """

    def __init__(self, code: str, status: int, message: str) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.code, self.status = code, status


class ConditionFailed(TdevError):
    """A condition was not met; services raise an error of their own for it.

    Attributes:
        item: the stored item as DynamoDB returned it, or None if there is none.
        position: which item of a transaction failed.
    """

    def __init__(self, item: Mapping[str, Any] | None, position: int = 0) -> None:
        super().__init__("the condition of a write was not met")
        self.item, self.position = item, position


class Conflict(TdevError):
    """Other writes of the same item came in between, again and again; nothing was changed."""


_BY_CODE: Mapping[str, type[TdevError]] = {
    "AccessDeniedException": AccessDenied,
    "UnrecognizedClientException": ConfigurationError,
    "InvalidSignatureException": ConfigurationError,
    "ExpiredTokenException": ConfigurationError,
    "MissingAuthenticationTokenException": ConfigurationError,
    "ProvisionedThroughputExceededException": Throttled,
    "Throttling": Throttled,
    "ThrottlingException": Throttled,
    "RequestLimitExceeded": Throttled,
    "ReplicatedWriteConflictException": Conflict,
    "TransactionConflictException": Conflict,
    "TransactionInProgressException": Conflict,
    "InternalServerError": Unavailable,
    "RequestTimeoutException": Unavailable,
    "ServiceUnavailable": Unavailable,
}

# Why a transaction was cancelled: the first of these reasons that is present. They can be tried
# again; a failed condition goes before them (`_cancelled`) and is final.
_CANCELLATIONS: tuple[tuple[str, type[TdevError]], ...] = (
    ("TransactionConflict", Conflict),
    ("ProvisionedThroughputExceeded", Throttled),
    ("ThrottlingError", Throttled),
)


def from_response(response: Mapping[str, Any], tables: str = "") -> TdevError:
    """Return the error that one AWS error response to a request for these tables means.

    Args:
        response: as botocore parses it: `Error` with `Code` and `Message`, `ResponseMetadata` with
            `HTTPStatusCode`, and beside them `Item` or `CancellationReasons`.
        tables: their names, for the message.
    """
    code = response.get("Error", {}).get("Code", "Unknown")
    error = _meaning(code, response, tables)
    error.code = code
    return error


def _meaning(code: str, response: Mapping[str, Any], tables: str) -> TdevError:
    message = response.get("Error", {}).get("Message", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "ConditionalCheckFailedException":
        return ConditionFailed(response.get("Item"))
    if code == "TransactionCanceledException":
        return _cancelled(response.get("CancellationReasons", []), code, status, message)
    if code == "ResourceNotFoundException":
        return ConfigurationError(
            f"{message or 'table not found'}{tables and f' ({tables})'}; "
            "create the tables with 'tdev migrate apply --env ...'"
        )
    if code in _BY_CODE:
        return _known(_BY_CODE[code], message or code, tables)
    # An answer without a code: botocore puts the HTTP status in its place.
    status = status or (int(code) if code.isdigit() else 0)
    if status in (408, 429) or status >= 500:
        return (Throttled if status == 429 else Unavailable)(f"{code} ({status}): {message}")
    return _refused(code, status, message)


def _known(kind: type[TdevError], text: str, tables: str) -> TdevError:
    if kind is ConfigurationError:
        # botocore reads those of variables and files once.
        text += "; renew the AWS credentials, or check them, and start the process anew"
    # AWS names the resource of most denials, not of all.
    return kind(f"{text} ({tables})" if kind is AccessDenied and tables else text)


def _cancelled(
    reasons: Sequence[Mapping[str, Any]], code: str, status: int, message: str
) -> TdevError:
    """Return what a cancelled transaction means."""
    codes = [reason.get("Code") for reason in reasons]
    if "ConditionalCheckFailed" in codes:
        position = codes.index("ConditionalCheckFailed")
        return ConditionFailed(reasons[position].get("Item"), position)
    for reason, kind in _CANCELLATIONS:
        if reason in codes:
            return kind(message)
    message = " ".join(filter(None, (reason.get("Message") for reason in reasons)))
    return _refused("ValidationException" if "ValidationError" in codes else code, status, message)


def _refused(code: str, status: int, message: str) -> TdevError:
    if code == "ValidationException" and "size" in message.lower() and "exceed" in message.lower():
        return ItemTooLarge(message)
    return StoreError(code, status, message)
