"""The package's own transport: encodes, signs, exchanges and decodes, in loops and in threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from tdev_models.dynamodb.transports import target as targets
from tdev_models.dynamodb.transports.answers import Answer
from tdev_models.dynamodb.transports.bodies import OPERATIONS, decoded, encoded
from tdev_models.dynamodb.transports.target import Target
from tdev_models.errors import TdevError, Unavailable
from tdev_models.settings import Settings

T = TypeVar("T")

# What DynamoDB says of a signature whose time is not its own; the first, of a wrong key, too.
_OF_CLOCKS: Final = frozenset(
    {"InvalidSignatureException", "RequestExpired", "RequestInTheFuture", "RequestTimeTooSkewed"}
)


class NativeTransport(ABC):
    """Sends each request once, by itself or, where only that can, by botocore."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._opened: tuple[Target | None] | None = None

    async def __call__(self, operation: str, request: Mapping[str, Any], /) -> dict[str, Any]:
        """Send one operation and return the response."""
        if self._opened is None:
            self._opened = (await self._aside(self._open),)
        (target,) = self._opened
        if target is None or operation not in OPERATIONS or targets.intercepted():
            return await self._by_botocore(operation, request)
        credentials = target.credentials() or await self._renewed_credentials(target)
        body, skew = encoded(request), target.signer.skew_seconds
        head = target.signer.head(operation, body, credentials)
        answer = await self._exchange(target, head + body)
        try:
            return decoded(answer, request)
        except TdevError as error:
            date = answer.headers.get("date")
            if error.code in _OF_CLOCKS and target.signer.corrects(date, skew):
                raise Unavailable(
                    f"this machine's clock is {-target.signer.skew_seconds:+.0f} s off, "
                    "so DynamoDB refused a signature; the next one has its time"
                ) from error
            raise

    def _open(self) -> Target | None:
        return targets.opened(self._settings)

    async def _renewed_credentials(self, target: Target) -> Any:
        return await self._aside(target.renewed_credentials)

    @abstractmethod
    async def _aside(self, work: Callable[[], T]) -> T:
        """Return the result of work that may block for long."""

    @abstractmethod
    async def _by_botocore(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]: ...

    @abstractmethod
    async def _exchange(self, target: Target, request: bytes) -> Answer: ...
