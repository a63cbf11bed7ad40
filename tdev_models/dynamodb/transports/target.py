"""Where the requests of some settings go, by botocore's rules: endpoint, credentials, certificates.

Everything is asked of botocore, so that a request goes where botocore's own client would send it.
Where only that client can send it, `opened` returns None.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.handlers
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.credentials import Credentials
from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import InvalidConfigError, NoCredentialsError, NoRegionError
from botocore.utils import get_environ_proxies, validate_region_name

from tdev_models.aws import (
    certificates,
    configuring,
    frozen,
    refuse_clear_text,
    session_of,
    with_tls_floor,
    without_user,
)
from tdev_models.dynamodb.transports.signing import Signer
from tdev_models.errors import ConfigurationError, TdevError, Unavailable, shown
from tdev_models.forks import after_fork_in_child
from tdev_models.settings import Settings

_ACCOUNT_MODES: Final = ("preferred", "disabled", "required")
# From when on botocore lets all wait for the credentials that it has been fetching for minutes.
_LASTING_SECONDS: Final = 600
_RULES: Final = "dynamodb/2012-08-10/endpoint-rule-set-1"


class Target:
    """One endpoint, and what a request to it needs.

    Attributes:
        host: the name or address to connect to.
        port: the TCP port there.
        tls: how to encrypt; None where the endpoint is an http one.
        signer: makes the heads of requests.
    """

    def __init__(self, session: Any, endpoint: _Endpoint, credentials: Any) -> None:
        parts = urlsplit(endpoint.url)
        self.host = parts.hostname or ""
        self.tls = _tls(session) if parts.scheme == "https" else None
        default = 80 if self.tls is None else 443
        self.port = parts.port or default
        name = f"[{self.host}]" if ":" in self.host else self.host
        self.signer = Signer(
            name if self.port == default else f"{name}:{self.port}",
            endpoint.signing_region,
            endpoint.signing_name,
            f"{session.user_agent()} tdev-models",
        )
        self._credentials = credentials
        self._fixed = credentials if type(credentials) is Credentials else None
        self._given: Any = None

    def credentials(self) -> Any | None:
        """Return the credentials to sign with now, or None where new ones must be fetched first."""
        if self._fixed is not None:
            return self._fixed
        return None if self._credentials.refresh_needed() else self.renewed_credentials()

    def renewed_credentials(self) -> Any:
        """Return the credentials to sign with, new ones where needed; it may block for seconds.

        Raises:
            Unavailable: there were some, and they cannot be renewed now.
            TdevError: whoever gives them out refused, or did not answer.
        """
        try:
            with configuring():
                given = frozen(self._credentials)
        except TdevError as error:
            if self._given is None:
                raise
            raise Unavailable(f"the credentials cannot be renewed: {error}") from error
        self._given = given
        return given

    def lasting_credentials(self) -> Any | None:
        """Return the last ones, where they can be used while new ones are fetched, else None."""
        return None if self._credentials.refresh_needed(_LASTING_SECONDS) else self._given


def opened(settings: Settings) -> Target | None:
    """Return the process's target of these settings, or None: only botocore can send there.

    It may block for seconds, at the first call.

    Raises:
        ConfigurationError: region, credentials or certificates are missing, or not usable.
        TdevError: whoever gives out credentials refused, or did not answer.
    """
    if settings.transport == "botocore":
        return None
    key = settings.region, settings.endpoint, settings.allow_http
    with _lock:
        if key not in _opened:
            with configuring():
                _opened[key] = _open(settings)
        return _opened[key]


def intercepted() -> bool:
    """Return whether something in this process answers botocore's requests, as `mock_aws` does."""
    global _handlers_seen, _interceptors
    handlers = botocore.handlers.BUILTIN_HANDLERS
    if len(handlers) != _handlers_seen:
        _interceptors = [
            one[1]
            for one in handlers
            if one[0] == "before-send" or one[0].startswith("before-send.dynamodb")
        ]
        _handlers_seen = len(handlers)
    # moto's is there from its import on, and answers while a mock is open.
    return any(getattr(one, "enabled", True) for one in _interceptors)


_opened: dict[tuple[str | None, str | None, bool], Target | None] = {}
_lock = threading.Lock()
_interceptors: list[Any] = []
_handlers_seen = 0


def _open(settings: Settings) -> Target | None:
    session = session_of(settings)
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError()
    endpoint = _Endpoint(session, settings, credentials)
    parts = urlsplit(endpoint.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"the endpoint {shown(without_user(endpoint.url))} is not a URL such as "
            "http://127.0.0.1:8000; AWS_ENDPOINT_URL_DYNAMODB, AWS_ENDPOINT_URL or the profile's "
            "endpoint_url names it"
        )
    refuse_clear_text(endpoint.url, settings)
    only_botocore = (
        parts.path not in ("", "/")
        or parts.query
        or parts.username
        # NO_PROXY alone, and proxies for other schemes, are in there, too.
        or get_environ_proxies(endpoint.url).get(parts.scheme)
        or str(session.get_config_variable("endpoint_discovery_enabled")).lower() == "true"
        or _has_own_endpoints(session)
    )
    return None if only_botocore else Target(session, endpoint, credentials)


class _Endpoint:
    """What botocore's rules make of the settings, the environment and the profile."""

    def __init__(self, session: Any, settings: Settings, credentials: Any) -> None:
        named = settings.region or session.get_config_variable("region")
        if not named:
            raise NoRegionError()
        validate_region_name(named)
        # "fips-us-east-1" is an old name of a region and a wish.
        region = named.replace("fips-", "").replace("-fips", "")
        asked = _asked(session, settings.endpoint, region, region != named)
        if asked["Endpoint"]:  # before its host may be asked for credentials
            refuse_clear_text(asked["Endpoint"], settings)
        asked["AccountId"] = getattr(frozen(credentials), "account_id", None)
        loader = session.get_component("data_loader")
        provider = EndpointProvider(loader.load_data(_RULES), loader.load_data("partitions"))
        known = provider.ruleset.parameters
        found = provider.resolve_endpoint(
            **{name: value for name, value in asked.items() if name in known and value is not None}
        )
        schemes = found.properties.get("authSchemes", ())
        scheme: dict[str, str] = next((one for one in schemes if one["name"] == "sigv4"), {})
        self.url: str = found.url
        self.signing_region: str = scheme.get("signingRegion", region)
        self.signing_name: str = scheme.get("signingName", "dynamodb")


def _asked(session: Any, endpoint: str | None, region: str, fips: bool) -> dict[str, Any]:
    """Return what the rules are asked with, by the names of their parameters."""
    variable = session.get_config_variable
    mode = (variable("account_id_endpoint_mode") or "preferred").lower()
    if mode not in _ACCOUNT_MODES:
        message = f"account_id_endpoint_mode must be one of {_ACCOUNT_MODES}, not {shown(mode)}"
        raise InvalidConfigError(error_msg=message)
    given = endpoint or configured_endpoint(session)
    return {
        "Region": region,
        "Endpoint": given,
        "UseFIPS": not given and (fips or variable("use_fips_endpoint") or False),
        "UseDualStack": not given and (variable("use_dualstack_endpoint") or False),
        "AccountIdEndpointMode": mode,
    }


def configured_endpoint(session: Any) -> str | None:
    """Return the endpoint that the environment or the profile names, if any."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name="dynamodb",
    )
    url: str | None = provider.provide()
    return url


def _has_own_endpoints(session: Any) -> bool:
    """Return whether the user has put another `endpoints.json` in botocore's place."""
    loader = session.get_component("data_loader")
    return any(
        (Path(path) / "endpoints.json").exists()
        for path in loader.search_paths
        if path != loader.BUILTIN_DATA_PATH
    )


def _tls(session: Any) -> ssl.SSLContext:
    """Return a context of TLS 1.2 or newer, with the certificates that botocore would use."""
    return with_tls_floor(ssl.create_default_context(cafile=certificates(session)))


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _opened.clear()


after_fork_in_child(_after_fork)
