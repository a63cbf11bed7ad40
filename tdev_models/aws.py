"""One botocore client per region and endpoint, shared by every table, thread and event loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointProviderError,
    InvalidConfigError,
    InvalidRegionError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from tdev_models.errors import ConfigurationError, TdevError, Unavailable, from_response
from tdev_models.forks import after_fork_in_child
from tdev_models.settings import Settings

_OF_CONFIGURATION = (
    CredentialRetrievalError,
    EndpointProviderError,
    InvalidConfigError,
    InvalidRegionError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

_LOCAL = "; or, for an engine on this machine, export what 'tdev local' prints"

_clients: dict[tuple[object, ...], Any] = {}
_lock = threading.Lock()
_sending = threading.local()


def call(settings: Settings, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send one DynamoDB operation once, blocking, and return the response.

    Raises:
        TdevError: the error that the answer, or its absence, means (`errors.from_response`).
    """
    try:
        method = getattr(dynamodb(settings), xform_name(operation))
        with quiet():
            response: dict[str, Any] = method(**request)
    except (ClientError, BotoCoreError) as error:
        raise error_of(error, tables_of(request)) from error
    return response


def tables_of(request: Mapping[str, Any]) -> str:
    """Return the names of the tables that a request reaches."""
    parts = request.get("TransactItems", ())
    names = {part["TableName"] for item in parts for part in item.values()}
    return request.get("TableName") or ",".join(sorted(names))


def error_of(error: ClientError | BotoCoreError, tables: str = "") -> TdevError:
    """Return the error that a failure of a request to these tables means."""
    if isinstance(error, ClientError):
        return from_response(error.response, tables)
    if isinstance(error, NoRegionError):
        return ConfigurationError(f"no region: set AWS_REGION, or configure(region=...){_LOCAL}")
    if isinstance(error, PartialCredentialsError):
        return ConfigurationError(str(error))
    if isinstance(error, NoCredentialsError):
        return ConfigurationError(
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an AWS profile"
            + _LOCAL
        )
    if isinstance(error, _OF_CONFIGURATION):
        return ConfigurationError(str(error))
    return Unavailable(str(error))


def dynamodb(settings: Settings) -> Any:
    """Return the process's botocore client for these settings.

    Raises:
        NoCredentialsError, NoRegionError: there are none.
    """
    key = (
        settings.region,
        settings.endpoint,
        settings.connect_timeout_seconds,
        settings.read_timeout_seconds,
        settings.max_connections,
    )
    if key not in _clients:
        with _lock:
            if key not in _clients:
                _clients[key] = create("dynamodb", settings, settings.endpoint)
    return _clients[key]


def create(service: str, settings: Settings, endpoint: str | None) -> Any:
    """Return a new botocore client of one service. It sends each request once.

    Raises:
        NoCredentialsError, NoRegionError: now rather than at the first request, where botocore
            would remember that it found none.
    """
    session = botocore.session.get_session()
    if session.get_credentials() is None:
        raise NoCredentialsError()
    config = Config(
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": 1},  # `tdev_models.retry` decides
        max_pool_connections=settings.max_connections,
        parameter_validation=False,
        user_agent_extra="tdev-models",
    )
    client = session.create_client(
        service, region_name=settings.region, endpoint_url=endpoint, config=config
    )
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("botocore."):
            logging.getLogger(name).addFilter(_without_payloads)
    return client


@contextmanager
def quiet() -> Iterator[None]:
    """Keep botocore, in this thread, from printing whole requests and responses at DEBUG."""
    _sending.active = True
    try:
        yield
    finally:
        _sending.active = False


def _without_payloads(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG or not getattr(_sending, "active", False)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _clients.clear()


# A child must not write to its parent's connections.
after_fork_in_child(_after_fork)
