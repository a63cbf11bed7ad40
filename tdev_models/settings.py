"""Where the package reads and writes: read from the environment, or given by the program."""

from __future__ import annotations

import inspect
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from tdev_models.endpoints import ALLOW, in_clear_to
from tdev_models.errors import InvalidRequest, shown
from tdev_models.results import AGENTS, RequestEvent
from tdev_models.retry import BEATS_A_LEASE, BEATS_MISSED, LONGEST_BEAT_SECONDS


class Transport(Protocol):
    """Sends one operation of DynamoDB, once.

    `await transport(operation, request)` sends `request`, the parameters as DynamoDB's API names
    them with typed values (`{"S": "x"}`, `{"B": b"..."}`), and returns the response in the same
    form: the members that the API documents, binaries as bytes, `ConsumedCapacity` as it came (it
    becomes `RequestEvent.units`). It changes neither of its arguments.

    It never tries again: the package does, counts the attempts, and sends the very same request.
    One that retries by itself hides attempts from `RequestEvent`, and outlasts `retry_seconds`.

    What it raises:
        ConditionFailed: a condition was not met; with the stored item, and in a transaction with
            the position of its part. Made, as all below, by `errors.from_response`.
        Throttled, Conflict, AccessDenied, ConfigurationError, ItemTooLarge, StoreError: the other
            answers of DynamoDB, with AWS's `code`.
        Unavailable: no usable answer (a broken connection, a timeout, 5xx). Perhaps carried out.
        CancelledError: the task was cancelled; perhaps carried out.

    It may be called from any thread and event loop, many at once, and in a child after a fork. In
    calls of `tdev_models.sync`, and in the package's own threads (heartbeats, metrics), which a
    program that only awaits has, too, it must not suspend, except in the transport that it wraps:
    such a request raises ConfigurationError.
    `tests/transport/conformance.py` checks a transport against all of this.
    """

    def __call__(self, operation: str, request: Mapping[str, Any], /) -> Awaitable[dict[str, Any]]:
        """Send one operation and return the response."""


_VARIABLES = {
    "environment": "TDEV_ENV",
    "prefix": "TDEV_TABLE_PREFIX",
    "region": "AWS_REGION or AWS_DEFAULT_REGION",
    "endpoint": "AWS_ENDPOINT_URL_DYNAMODB or AWS_ENDPOINT_URL",
}
_LONGEST = 1e9  # seconds or days
_MOST_AGENTS = 99  # their executions are read by one transaction
# The host names that botocore accepts: no underscore.
_HOST = re.compile(r"[A-Za-z0-9.:-]+")
_REGION = re.compile(r"(?!\d+\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_SECONDS_ABOVE_0 = (
    "lease_seconds",
    "stalled_after_seconds",
    "connect_timeout_seconds",
    "read_timeout_seconds",
)
_SECONDS_FROM_0 = ("retry_seconds", "owner_retry_seconds")
_SWITCHES = (
    *("allow_http", "automatic_metrics", "cancel_when_out_of_touch"),
    *("tracebacks", "kms_strict"),
)
_TEXTS = ("environment", "region", "endpoint", "prefix", "release", "kms_key", "json_nan")
_LISTS = ("agents", "kms_fields", "kms_former_keys")

ENCRYPTED_FIELDS = (
    "input_data",
    "output_data",
    "metadata",
    "error_message",
    "traceback",
    "description",
)
"""What field encryption encrypts, unless `kms_fields` says less."""

# An alias would not do: what is stored names its key by ARN, and other keys are refused.
_KMS_KEY = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[\w-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides where a call goes and how leases run.

    Attributes:
        environment: names the tables, `t-developer-{environment}-...`; `production` means `prod`.
        region: AWS region; None leaves it to the AWS configuration files.
        endpoint: URL of DynamoDB; None means AWS.
        allow_http: whether requests may travel unencrypted to another machine. Plain http to this
            machine's loopback is always allowed.
        prefix: what every table name begins with.
        agents: the pipeline's agents, in their order; at most 99.
        lease_seconds: how long a worker counts as alive without a heartbeat, of which it sends six
            in that time, and one every 5 s at least; what it ran then runs elsewhere.
        cancel_when_out_of_touch: whether a worker that could not renew its lease in time stops its
            sessions, because they have effects that must not be doubled. Else they go on: what is
            stored is protected in any case.
        stalled_after_seconds: after how long without a write an ACTIVE session of bare calls, which
            no worker runs, counts as stalled; at least twice `lease_seconds`.
        retention_days: how long a session is kept, from its creation, with all its executions;
            None keeps everything.
        release: which version of the program this is, such as "2.7.1"; at most 200 bytes. Sessions
            and workers show it. Where two are numbers with dots between them, a worker of
            the lower one takes no session over that the higher one began.
        automatic_metrics: whether the package records metrics of its own; in the background.
        tracebacks: whether a failed attempt keeps the traceback of its error, which may hold what
            is secret in code and in errors' texts.
        kms_key: ARN of the KMS key under which fields are encrypted (extra `kms`); None encrypts
            nothing.
        kms_former_keys: ARNs of other keys under which stored fields may be encrypted.
        kms_fields: which fields are encrypted; those of `ENCRYPTED_FIELDS`.
        kms_strict: whether such a field that is stored in clear is refused; `tdev rekey` encrypts
            what was stored before there was a key.
        connect_timeout_seconds: how long one attempt may take to connect.
        read_timeout_seconds: how long one attempt may wait for its answer.
        retry_seconds: how long a request is tried again after its first attempt, where that may
            help (throttled, in conflict, without an answer); 0 never. Large payloads are tried
            for minutes.
        owner_retry_seconds: how long the owner of a session tries to store what its agents did:
            finished work is thrown away only then, or when the session was taken over.
        on_request: called with a `RequestEvent` after every request, where the call was made (in an
            event loop: be quick) or in a thread of the package's own. It may record metrics,
            except when it is called for a write of metrics: that is refused, and logged.
        max_connections: how many connections to DynamoDB one event loop opens at most, and all
            plain threads together keep open.
        transport: given the standard transport, returns the one to use (see `Transport`).
            "botocore" sends by botocore instead of the package's own; the package does so by itself
            behind a proxy and under moto's `mock_aws`.
        json_default: given a value that has no JSON form of its own, returns one that has, or
            raises TypeError. It may be called in a thread of the package's own.
        json_nan: NaN and the infinities, which JSON lacks, are stored as null; "refuse" refuses.
        clock: the time in epoch seconds.
    """

    environment: str = "dev"
    region: str | None = None
    endpoint: str | None = None
    allow_http: bool = False
    prefix: str = "t-developer"
    agents: tuple[str, ...] = AGENTS
    lease_seconds: float = 30.0
    cancel_when_out_of_touch: bool = False
    stalled_after_seconds: float = 3600.0
    retention_days: float | None = None
    release: str | None = None
    automatic_metrics: bool = True
    tracebacks: bool = True
    kms_key: str | None = None
    kms_former_keys: tuple[str, ...] = ()
    kms_fields: tuple[str, ...] = ENCRYPTED_FIELDS
    kms_strict: bool = False
    connect_timeout_seconds: float = 1.0
    read_timeout_seconds: float = 4.0
    retry_seconds: float = 20.0
    owner_retry_seconds: float = 900.0
    on_request: Callable[[RequestEvent], None] | None = None
    max_connections: int = 64
    transport: Callable[[Transport], Transport] | Literal["botocore"] | None = None
    json_default: Callable[[Any], Any] | None = None
    json_nan: Literal["null", "refuse"] = "null"
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        for field in _TEXTS:
            if isinstance(value := getattr(self, field), str):
                # Of an Enum that is a str, too, the value: names of tables are made of it.
                object.__setattr__(self, field, str.__str__(value))
        if self.environment == "production":
            object.__setattr__(self, "environment", "prod")
        for field in _SECONDS_ABOVE_0:
            _check_number(field, getattr(self, field))
        _check_release(self.release)
        if self.retention_days is not None:
            _check_number("retention_days", self.retention_days)
        for field in _SECONDS_FROM_0:
            _check_number(field, getattr(self, field), zero=True)
        if not (type(self.max_connections) is int and 1 <= self.max_connections <= 10_000):
            problem = f"must be a whole number from 1 to 10000, not {shown(self.max_connections)}"
            raise InvalidRequest("max_connections", problem)
        self._check_kinds()
        for field in ("environment", "prefix"):
            _check_name(field, getattr(self, field))
        object.__setattr__(self, "agents", _checked_agents(self.agents))
        self._check_kms()
        if not self.stalled_after_seconds >= 2 * self.lease_seconds:
            # A lease that ends later than this counts as made by a wrong clock.
            raise InvalidRequest(
                "stalled_after_seconds",
                f"is {self.stalled_after_seconds:g}, must be at least twice lease_seconds, "
                f"which is {self.lease_seconds:g}",
            )
        if self.endpoint is not None:
            _check_endpoint(self.endpoint)
            if not self.allow_http and in_clear_to(self.endpoint):
                problem = f"to {shown(self.endpoint)} data would travel unencrypted; {ALLOW}"
                raise InvalidRequest("endpoint", problem)

    def _check_kinds(self) -> None:
        for field in _SWITCHES:
            if not isinstance(value := getattr(self, field), bool):  # the text "off" would be true
                raise InvalidRequest(field, f"must be True or False, not {shown(value)}")
        for field in ("clock", "json_default", "on_request"):
            _check_function(field, getattr(self, field))
        if self.transport != "botocore":
            _check_function("transport", self.transport, 'a function or "botocore"')
        if self.json_nan not in ("null", "refuse"):
            raise InvalidRequest("json_nan", f"{shown(self.json_nan)} is not one of null, refuse")
        if not isinstance(self.region, str | None):
            raise InvalidRequest("region", f"must be a text, not {shown(self.region)}")
        if self.region and not _REGION.fullmatch(self.region):
            raise InvalidRequest("region", f"{shown(self.region)} is not like us-east-1")

    def _check_kms(self) -> None:
        for field in ("kms_former_keys", "kms_fields"):
            value = getattr(self, field)
            texts = _members(value)
            if texts is None or not all(isinstance(one, str) for one in texts):
                raise InvalidRequest(field, f"must be a list of texts, not {shown(value)}")
            object.__setattr__(self, field, tuple(map(str.__str__, texts)))
        for field, keys in (
            ("kms_key", () if self.kms_key is None else (self.kms_key,)),
            ("kms_former_keys", self.kms_former_keys),
        ):
            for key in keys:
                if not (isinstance(key, str) and _KMS_KEY.fullmatch(key)):
                    raise InvalidRequest(
                        field,
                        f"{shown(key)} is not the ARN of a key such as "
                        "arn:aws:kms:eu-west-1:123456789012:key/...; an alias will not do",
                    )
        for name in self.kms_fields:
            if name not in ENCRYPTED_FIELDS:
                known = ", ".join(ENCRYPTED_FIELDS)
                raise InvalidRequest("kms_fields", f"{shown(name)} is not one of {known}")
        if self.kms_strict and self.kms_key is None:
            raise InvalidRequest("kms_strict", "needs kms_key: nothing would be readable")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings that the environment gives.

        Reads TDEV_ENV, TDEV_TABLE_PREFIX, TDEV_RELEASE, TDEV_AGENTS (names with commas between
        them), TDEV_LEASE_SECONDS, TDEV_STALLED_AFTER_SECONDS, TDEV_RETENTION_DAYS,
        TDEV_AUTOMATIC_METRICS, TDEV_CANCEL_WHEN_OUT_OF_TOUCH, TDEV_TRACEBACKS and TDEV_ALLOW_HTTP
        (on or off), TDEV_CONNECT_TIMEOUT_SECONDS, TDEV_READ_TIMEOUT_SECONDS, TDEV_RETRY_SECONDS,
        TDEV_OWNER_RETRY_SECONDS, TDEV_JSON_NAN (null or refuse), TDEV_TRANSPORT (botocore),
        TDEV_MAX_CONNECTIONS, TDEV_KMS_KEY, TDEV_KMS_FORMER_KEYS and TDEV_KMS_FIELDS (with commas
        between them), TDEV_KMS_STRICT (on or off), AWS_REGION or AWS_DEFAULT_REGION,
        AWS_ENDPOINT_URL_DYNAMODB or AWS_ENDPOINT_URL (but for AWS_IGNORE_CONFIGURED_ENDPOINT_URLS).

        Raises:
            InvalidRequest: a variable holds no usable value; the field's name is in the message.
        """
        given: dict[str, Any] = {
            "environment": environ.get("TDEV_ENV"),
            "prefix": environ.get("TDEV_TABLE_PREFIX"),
            "release": environ.get("TDEV_RELEASE"),
            "kms_key": environ.get("TDEV_KMS_KEY"),
            "json_nan": environ.get("TDEV_JSON_NAN"),
            "transport": environ.get("TDEV_TRANSPORT"),
            "region": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION"),
            "endpoint": _endpoint(environ),
            **{field: _listed(environ.get(f"TDEV_{field.upper()}")) for field in _LISTS},
        }
        for field in (*_SECONDS_ABOVE_0, *_SECONDS_FROM_0, "retention_days", "max_connections"):
            if text := environ.get(f"TDEV_{field.upper()}"):
                try:
                    given[field] = int(text) if field == "max_connections" else float(text)
                except ValueError:
                    raise InvalidRequest(field, f"TDEV_{field.upper()} is not a number") from None
        for field in _SWITCHES:
            if text := environ.get(f"TDEV_{field.upper()}"):
                if text not in ("on", "off"):
                    problem = f"TDEV_{field.upper()} must be on or off, not {shown(text)}"
                    raise InvalidRequest(field, problem)
                given[field] = text == "on"
        try:
            return cls(**{name: value for name, value in given.items() if value not in (None, "")})
        except InvalidRequest as error:
            variable = _VARIABLES.get(error.field, f"TDEV_{error.field.upper()}")
            problem = str(error).partition(": ")[2]
            raise InvalidRequest(error.field, f"{problem} ({variable})") from None

    @property
    def heartbeat_seconds(self) -> float:
        """How often a worker renews its lease."""
        return min(LONGEST_BEAT_SECONDS, self.lease_seconds / BEATS_A_LEASE)

    @property
    def longest_try_seconds(self) -> float:
        """How long one attempt of a request takes at most."""
        return self.connect_timeout_seconds + self.read_timeout_seconds

    @property
    def long_silence_seconds(self) -> float:
        """After so long without an answer of the store other workers' leases may seem over."""
        return (1 + BEATS_MISSED) * self.heartbeat_seconds

    def table_name(self, table: str) -> str:
        """Return the physical name of one of the four tables."""
        return f"{self.prefix}-{self.environment}-{table}"


def _endpoint(environ: Mapping[str, str]) -> str | None:
    if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":  # as botocore does
        return None
    return environ.get("AWS_ENDPOINT_URL_DYNAMODB") or environ.get("AWS_ENDPOINT_URL")


def _listed(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",")) if text else None


def _members(value: Any) -> tuple[Any, ...] | None:
    """Return what a list holds; None where it is none."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else None


def _check_number(field: str, value: Any, *, zero: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and 0 <= value <= _LONGEST and (value or zero)):
        least = "of at least" if zero else "above"
        problem = f"must be a number {least} 0, at most {_LONGEST:g}, not {shown(value)}"
        raise InvalidRequest(field, problem)


def _check_function(field: str, value: Any, wanted: str = "a function") -> None:
    if value is not None and not callable(value):
        raise InvalidRequest(field, f"must be {wanted}, not {shown(value)}")
    if inspect.iscoroutinefunction(value):  # whatever it returned, nobody would await
        raise InvalidRequest(field, f"must be a plain function, not the coroutine {shown(value)}")
    try:
        hash(value)  # clients are kept by their settings
    except TypeError as error:
        problem = f"must be hashable ({error}); give a function, or a method of an object"
        raise InvalidRequest(field, problem) from None


def _check_release(release: Any) -> None:
    try:
        size = len(release.encode()) if isinstance(release, str) else 0
    except UnicodeEncodeError:  # bytes of the variable that are no UTF-8
        size = 0
    if release is not None and not 0 < size <= 200:
        raise InvalidRequest("release", f"must be a text of 1 to 200 bytes, not {shown(release)}")


def _check_name(field: str, value: Any) -> None:
    if not (isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,60}", value)):
        problem = f"must be made of lower-case letters, digits and dashes, not {shown(value)}"
        raise InvalidRequest(field, problem)


def _checked_agents(agents: Any) -> tuple[str, ...]:
    names = _members(agents) or ()
    if not 0 < len(names) <= _MOST_AGENTS or len({*names}) < len(names):
        problem = f"must be 1 to {_MOST_AGENTS} different names, not {shown(agents)}"
        raise InvalidRequest("agents", problem)
    for name in names:
        size = len(name.encode(errors="replace")) if isinstance(name, str) else 0
        if not (0 < size <= 255 and not {"#", "@"}.intersection(name) and name.isprintable()):
            raise InvalidRequest(
                "agents", f"{shown(name)} is not a name of 1 to 255 bytes without '#' and '@'"
            )
    return tuple(map(str.__str__, names))  # of an Enum that is a str, too, the values


def _check_endpoint(endpoint: str) -> None:
    if isinstance(endpoint, str) and "@" in endpoint:  # not shown: a password may be in it
        raise InvalidRequest("endpoint", "holds a user; requests are signed, so leave it out")
    try:
        url = urlsplit(endpoint if isinstance(endpoint, str) else "")
        usable = url.port != 0 and _HOST.fullmatch(url.hostname or "")
    except ValueError:
        url, usable = urlsplit(""), None
    if url.scheme not in ("http", "https") or not usable:
        raise InvalidRequest(
            "endpoint",
            f"{shown(endpoint)} is not a URL such as http://127.0.0.1:8000; "
            "a host has letters, digits, dots and dashes",
        )


_configured: Settings | None = None
_read: tuple[dict[Any, Any], Settings] | None = None
_override: ContextVar[Settings | None] = ContextVar("tdev_settings", default=None)
_FIELDS = {field.name for field in fields(Settings)}


def current() -> Settings:
    """Return the settings in force: of `use`, else of `configure`, else of the environment."""
    return _override.get() or _configured or _of_environment()


def _of_environment() -> Settings:
    """Return what the environment gives, read again only where it has changed."""
    global _read
    # Its dictionary itself: to ask `os.environ` for each variable takes a hundred times as long.
    variables = getattr(os.environ, "_data", None)
    if _read is None or variables is None or _read[0] != variables:
        _read = dict(variables or ()), Settings.from_env()
    return _read[1]


def configure(settings: Settings | None = None, /, **changes: Any) -> Settings:
    """Set the settings of the whole process, and return them.

    Args:
        settings: what to start from; when not given, what was configured before, else the
            environment's.
        changes: fields to change, by name.

    Raises:
        InvalidRequest: an unknown field or a wrong value.
    """
    global _configured
    _configured = _changed(settings or _configured or Settings.from_env(), changes)
    return _configured


@contextmanager
def use(settings: Settings | None = None, /, **changes: Any) -> Iterator[Settings]:
    """Override the settings inside a `with` block, for this task or thread only.

    Args:
        settings: what to start from; the settings in force when not given.
        changes: fields to change, by name.

    Raises:
        InvalidRequest: an unknown field or a wrong value.
    """
    chosen = _changed(settings or current(), changes)
    token = _override.set(chosen)
    try:
        yield chosen
    finally:
        _override.reset(token)


def _changed(settings: Settings, changes: dict[str, Any]) -> Settings:
    for name in changes:
        if name not in _FIELDS:
            raise InvalidRequest(name, f"unknown setting; use one of {', '.join(sorted(_FIELDS))}")
    return replace(settings, **changes) if changes else settings
