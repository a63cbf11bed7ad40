"""One botocore client per region and endpoint, shared by every table, thread and event loop."""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import orjson
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    ConnectionError as NotConnected,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    NoRegionError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from tdev_models.endpoints import ALLOW, in_clear_to
from tdev_models.errors import ConfigurationError, StoreError, TdevError, Unavailable, from_response
from tdev_models.forks import after_fork_in_child
from tdev_models.settings import Settings

# All others of botocore's own errors say that files, variables or settings are wrong.
_WITHOUT_ANSWER = (
    ChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NotConnected,
)

# Once there were credentials: whoever renews them may be there again, or somebody logs in again.
_OF_RENEWAL = (CredentialRetrievalError, SSOError, TokenRetrievalError)
_GIVING_CREDENTIALS = ("AssumeRole", "CreateOAuth2Token", "CreateToken", "GetRoleCredentials")

# How OpenSSL and, of another host's certificate, urllib3 say that they refuse a certificate.
_OF_CERTIFICATES = ("CERTIFICATE_VERIFY_FAILED", "doesn't match")
_LOCAL = "; or, for an engine on this machine, export what 'tdev local' prints"

_clients: dict[tuple[object, ...], Any] = {}
_MOST_CLIENTS = 16  # of which each holds some megabytes: a timeout may be what a deadline leaves
_lock = threading.Lock()
_sending = threading.local()


def call(settings: Settings, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send one DynamoDB operation once, blocking, and return the response.

    Raises:
        TdevError: the error that the answer, or its absence, means (`errors.from_response`).
    """
    method = getattr(dynamodb(settings), xform_name(operation))
    try:
        with sending():
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
        return from_response(_answered(error).response, tables)
    if isinstance(error, NoRegionError):
        return ConfigurationError(f"no region: set AWS_REGION, or configure(region=...){_LOCAL}")
    if isinstance(error, NoCredentialsError):
        return ConfigurationError(
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an AWS profile"
            + _LOCAL
        )
    if isinstance(error, SSLError) and any(part in str(error) for part in _OF_CERTIFICATES):
        return untrusted(without_user(error.kwargs["endpoint_url"]), error.kwargs["error"])
    text = without_user(str(error))
    if isinstance(error, _WITHOUT_ANSWER):
        return Unavailable(text)
    return ConfigurationError(text[:1000])  # it may hold a setting, however long


def _answered(error: ClientError) -> ClientError:
    """Return the error as AWS gave it: PynamoDB's own, raised from it, lacks status and reasons."""
    return error.__cause__ if isinstance(error.__cause__, ClientError) else error


@contextmanager
def configuring() -> Iterator[None]:
    """Let whatever the AWS configuration leads botocore to be an error of this package.

    It reads files and variables, runs programs and asks for credentials, and of what these hold it
    raises many an error that is none of its own.
    """
    try:
        yield
    except TdevError:
        raise
    except (ClientError, BotoCoreError) as error:
        meaning = error_of(error)
        if isinstance(meaning, StoreError):  # of STS or SSO, not of DynamoDB
            meaning = ConfigurationError(f"there are no credentials: {without_user(str(error))}")
        raise meaning from error
    except Exception as error:
        raise ConfigurationError(
            "the AWS configuration, or what gives out its credentials, is not usable: "
            + _told(error)
        ) from error


def _told(error: Exception) -> str:
    # Texts of other kinds may show what was answered, and so credentials.
    is_shown = isinstance(error, OSError | RuntimeError | ValueError)
    return type(error).__name__ + (f": {without_user(str(error))}"[:1000] if is_shown else "")


def without_user(text: str) -> str:
    """Return a text without the users and passwords of its URLs: of endpoints and of proxies."""
    return re.sub(r"(?<=//)[^\s\"']*@", "***@", text)


def dynamodb(settings: Settings) -> Any:
    """Return the process's botocore client for these settings.

    Raises:
        TdevError: as for `create`.
    """
    key = (
        settings.region,
        settings.endpoint,
        settings.allow_http,
        settings.connect_timeout_seconds,
        settings.read_timeout_seconds,
        settings.max_connections,
    )
    client = _clients.get(key)
    if client is None:
        with _lock:
            client = _clients.get(key)
            if client is None:
                if len(_clients) >= _MOST_CLIENTS:
                    _clients.clear()
                client = _clients[key] = create("dynamodb", settings, settings.endpoint)
    return client


def session_of(settings: Settings) -> Any:
    """Return a new session of botocore; who gives out credentials is asked in a region, too."""
    session = botocore.session.get_session()
    if settings.region and not session.get_config_variable("region"):
        session.set_config_variable("region", settings.region)  # of AWS_REGION, which it ignores
    if not session.get_config_variable("ca_bundle"):
        # A variable that is empty names no file: earlier botocores then check no certificate.
        named = os.environ.get("REQUESTS_CA_BUNDLE") or True  # True: those that botocore brings
        session.set_config_variable("ca_bundle", named)
    return session


@configuring()
def create(service: str, settings: Settings, endpoint: str | None) -> Any:
    """Return a new botocore client of one service. It sends each request once.

    Raises:
        ConfigurationError: there are no credentials, or no region: now rather than at the first
            request, where botocore would remember that it found none; requests would travel
            unencrypted; the certificates, or anything else, cannot be read.
        TdevError: whoever gives out credentials refused, or did not answer.
    """
    session = session_of(settings)
    credentials = session.get_credentials()
    if credentials is None:
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
    refuse_clear_text(client.meta.endpoint_url, settings)
    certificates(session)
    frozen(credentials)  # fetches them; nothing of it may travel in clear
    _hold_tls_floor(client._endpoint.http_session)
    # Rules of the user's own, and the discovery of endpoints, decide with each request.
    client.meta.events.register_first(
        "before-send", lambda request, **_: refuse_clear_text(request.url, settings)
    )
    client.meta.events.register("before-parse.dynamodb", _check_answer)
    _keep_quiet()  # what was loaded for it, too
    return client


def frozen(credentials: Any) -> Any:
    """Return credentials as they are now, new ones where needed; it may block for seconds."""
    with quiet():
        return credentials.get_frozen_credentials()


def _check_answer(response_dict: Mapping[str, Any], **_: Any) -> None:
    """Refuse what botocore takes for an answer without members: a proxy's page, or damage.

    An item would seem not to exist, and a write to be done.
    """
    body, checksum = response_dict["body"], response_dict["headers"].get("x-amz-crc32")
    if checksum is not None and checksum != str(zlib.crc32(body)):
        raise HTTPClientError(error="the answer does not match its checksum")
    if response_dict["status_code"] < 300 and not _is_object(body):
        raise HTTPClientError(error="the answer is not the JSON of DynamoDB")


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except ValueError:
        return False


def refuse_clear_text(url: str, settings: Settings) -> None:
    """Refuse an endpoint that requests would reach unencrypted over a network.

    Raises:
        ConfigurationError: they would, and `allow_http` is off.
    """
    if settings.allow_http or url.startswith("https://"):
        return
    in_clear = in_clear_to(url, get_environ_proxies(url).get("http"))
    if in_clear is not None:
        by = "" if in_clear == url else " by a proxy (NO_PROXY excepts hosts)"
        raise ConfigurationError(
            f"requests to http://{urlsplit(url).hostname} would travel unencrypted{by}; settings, "
            f"AWS_ENDPOINT_URL or the AWS profile name this endpoint: {ALLOW}"
        )


def certificates(session: Any) -> str:
    """Return the file of the certificates that are trusted, for one of `session_of`.

    Raises:
        ConfigurationError: it cannot be read.
    """
    path: str = get_cert_path(named := session.get_config_variable("ca_bundle"))
    try:
        if named is not True:
            ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigurationError(
            f"the certificates in {path} cannot be read: {error}; "
            "AWS_CA_BUNDLE or the profile's ca_bundle names their file"
        ) from error
    return path


def untrusted(where: str, error: object) -> ConfigurationError:
    """Return the error of a server whose certificate was refused."""
    return ConfigurationError(
        f"{where} is not trusted: {error}; AWS_CA_BUNDLE, or the profile's ca_bundle, names the "
        "file of the certificates to trust. Of AWS itself this means that something in between "
        "answers, or that this machine's clock is wrong"
    )


def with_tls_floor(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a context that speaks TLS 1.2 or newer, however the interpreter is built."""
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    return context


def _hold_tls_floor(http_session: Any) -> None:
    """Let one botocore client speak TLS 1.2 or newer; botocore has no setting for it."""
    made = http_session._get_ssl_context
    http_session._get_ssl_context = lambda: with_tls_floor(made())  # of connections by a proxy
    with_tls_floor(http_session._manager.connection_pool_kw["ssl_context"])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep botocore, in this thread, from printing whole requests and responses at DEBUG."""
    before, _sending.active = getattr(_sending, "active", False), True
    try:
        yield
    finally:
        _sending.active = before


@contextmanager
def renewing() -> Iterator[None]:
    """Send quietly, and let credentials that botocore cannot renew be Unavailable."""
    try:
        with quiet():
            yield
    except _OF_RENEWAL as error:
        raise Unavailable(without_user(str(error))[:1000]) from error  # a program's, however long
    except ClientError as error:
        if _answered(error).operation_name.startswith(_GIVING_CREDENTIALS):
            raise Unavailable(f"the credentials cannot be renewed: {error}") from error
        raise


@contextmanager
def sending() -> Iterator[None]:
    """Send quietly, and let what says nothing of AWS's own answer be Unavailable.

    That is what botocore raises besides its own errors, and credentials that it cannot renew.
    """
    try:
        with renewing():
            yield
    except (TdevError, BotoCoreError, ClientError):
        raise
    except Exception as error:  # of credentials, or of an answer that is none of AWS's
        raise Unavailable(f"botocore has no usable answer: {_told(error)}") from error


def _without_payloads(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG or not getattr(_sending, "active", False)


def _keep_quiet() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("botocore."):
            logging.getLogger(name).addFilter(_without_payloads)


_keep_quiet()  # its parsers read refusals for the package's own transport, which has no client


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _clients.clear()


# A child must not write to its parent's connections.
after_fork_in_child(_after_fork)
