"""Every call that migrations may send to AWS, what its failure means, and how long it is tried."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import cache, cached_property
from math import inf
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError

from tdev_models import aws
from tdev_models.errors import (
    AccessDenied,
    InvalidRequest,
    StoreError,
    TdevError,
    Unavailable,
    from_response,
)
from tdev_models.retry import Backoff
from tdev_models.settings import Settings

OPERATIONS: Final = {
    "ListTables": ("dynamodb", "*"),
    "DescribeTable": ("dynamodb", "table"),
    "DescribeTimeToLive": ("dynamodb", "table"),
    "DescribeContinuousBackups": ("dynamodb", "table"),
    "ListTagsOfResource": ("dynamodb", "table"),
    "Scan": ("dynamodb", "table"),
    "UpdateItem": ("dynamodb", "rows"),
    "CreateTable": ("dynamodb", "table"),
    "UpdateTable": ("dynamodb", "table"),
    "UpdateTimeToLive": ("dynamodb", "table"),
    "UpdateContinuousBackups": ("dynamodb", "table"),
    "TagResource": ("dynamodb", "table"),
    "DescribeScalableTargets": ("application-autoscaling", "*"),
    "DescribeScalingPolicies": ("application-autoscaling", "*"),
    "RegisterScalableTarget": ("application-autoscaling", "scalable-target"),
    "DeregisterScalableTarget": ("application-autoscaling", "scalable-target"),
    "PutScalingPolicy": ("application-autoscaling", "scalable-target"),
    "DescribeAlarms": ("cloudwatch", "*"),
    "GetMetricStatistics": ("cloudwatch", "*"),
    "PutMetricAlarm": ("cloudwatch", "alarm"),
    "DeleteAlarms": ("cloudwatch", "alarm"),
    "DescribeKey": ("kms", "aws-key"),
    "GetCallerIdentity": ("sts", "*"),
}
"""The service and the kind of resource of each operation that can be sent, in code and policy."""


def is_read(operation: str) -> bool:
    """Return whether an operation changes nothing."""
    return operation.startswith(("Describe", "List", "Get", "Scan"))


RUN_SECONDS: Final = 3600.0
"""How long one run of apply may take, unless `--timeout` says otherwise."""


class Place(NamedTuple):
    """Where calls go; an engine of this machine has no account."""

    account: str
    region: str
    endpoint: str


class Limits(NamedTuple):
    """How long things are tried again and waited for, in seconds after their first failure.

    Attributes:
        read: a read that is throttled, refused for now or not answered.
        visible: a change that was accepted, until the live state shows it.
        rejected: a change that was rejected, until the live state shows that another run made it.
        first_pause: the upper limit of the first pause; it doubles with each try.
        longest_pause: the upper limit of every pause.
    """

    read: float
    visible: float
    rejected: float
    first_pause: float
    longest_pause: float


ON_AWS: Final = Limits(read=60, visible=120, rejected=15, first_pause=1, longest_pause=10)
LOCAL: Final = Limits(read=5, visible=1, rejected=1, first_pause=0.002, longest_pause=0.1)

# How the hosts of each partition end, and those that are reached by IPv6, too.
_AWS_HOSTS = (
    ".amazonaws.com",
    ".api.aws",
    ".amazonaws.com.cn",
    ".api.amazonwebservices.com.cn",
    ".amazonaws.eu",
    ".api.amazonwebservices.eu",
    ".c2s.ic.gov",
    ".api.aws.ic.gov",
    ".sc2s.sgov.gov",
    ".api.aws.scloud",
    ".cloud.adc-e.uk",
    ".api.cloud-aws.adc-e.uk",
    ".csp.hci.ic.gov",
    ".api.aws.hci.ic.gov",
)
_BUSY_CODES = {
    # Another change of the same resource is under way.
    "ResourceInUseException",
    "ContinuousBackupsUnavailableException",
    "ConcurrentUpdateException",
    "ConcurrentModificationException",
    # Throttled.
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "ProvisionedThroughputExceededException",
    "BandwidthLimitExceeded",
    "SlowDown",
    # No answer of use; most have a status of 5xx, which is enough.
    "RequestTimeout",
    "RequestTimeoutException",
    "PriorRequestNotComplete",
    # Others write the same row.
    "ReplicatedWriteConflictException",
    "TransactionConflictException",
    "TransactionInProgressException",
    "InternalServerError",
    "InternalServiceException",
    "InternalServiceFault",
    "ServiceUnavailable",
}
_ABSENT_CODES = {
    "ResourceNotFoundException",
    "TableNotFoundException",
    "ObjectNotFoundException",
    "ResourceNotFound",  # moto
}
# What says in an answer that there is more, and in the next request where that begins.
_PAGES = {"ListTables": ("LastEvaluatedTableName", "ExclusiveStartTableName")}
_RESOURCE_PARAMETERS = (
    "TableName",
    "ResourceArn",
    "ResourceId",
    "ResourceIds",
    "AlarmName",
    "AlarmNamePrefix",
    "AlarmNames",
    "KeyId",
)


class Absent(TdevError):
    """The resource that the call names does not exist."""


class Unsupported(TdevError):
    """The local engine does not know this operation; AWS knows all of them."""


class Busy(TdevError):
    """In use, throttled or not answered: it may succeed soon, and may have been carried out."""


class NotYet(Busy):
    """DynamoDB reports this only once it has created the table."""


class InProgress(TdevError):
    """DynamoDB is not finished, or accepts such a change only later: run the command again."""


class Calls:
    """Sends operations with one set of settings.

    Attributes:
        settings: region, endpoint and clock.
        backfill_units: the units a second that reading or filling rows, or building an index, may
            take; 0 leaves it to the table's own units.
    """

    def __init__(self, settings: Settings, backfill_units: int = 0) -> None:
        self.settings, self.backfill_units = settings, backfill_units

    @property
    def _meta(self) -> Any:
        """Where the calls to DynamoDB go: the AWS profile, too, may name an endpoint.

        Raises:
            TdevError: there are no credentials, or no region.
        """
        try:
            return _client("dynamodb", self.settings, None).meta
        except BotoCoreError as error:
            raise aws.error_of(error) from error

    @cached_property
    def local(self) -> bool:
        """Whether DynamoDB is an engine of this machine or network, not AWS."""
        return not (urlsplit(self._meta.endpoint_url).hostname or "").endswith(_AWS_HOSTS)

    @property
    def limits(self) -> Limits:
        """How long is tried again and waited; less on a local engine."""
        return LOCAL if self.local else ON_AWS

    def __call__(self, operation: str, **request: Any) -> dict[str, Any]:
        """Send one operation and return the response.

        A read is sent again while it is `Busy`, for `limits.read` seconds. A change is sent once:
        the live state shows whether it was carried out.

        Raises:
            Absent, Unsupported, Busy, InProgress: see there.
            AccessDenied: the message names the action and the resource.
            TdevError: any other failure, with AWS's own message.
        """
        backoff = None
        while True:
            try:
                return self._send(operation, request)
            except Busy as error:
                backoff = backoff or self.backoff(self.limits.read if is_read(operation) else 0)
                pause = backoff.pause_after(error)
                if pause is None:
                    raise
            time.sleep(pause)

    def every(self, operation: str, field: str, **request: Any) -> list[Any]:
        """Return what all pages of an answer hold in one of its fields."""
        ends, begins = _PAGES.get(operation, ("NextToken", "NextToken"))
        found: list[Any] = []
        while True:
            answer = self(operation, **request)
            found += answer[field]
            if not answer.get(ends):
                return found
            request[begins] = answer[ends]

    def place(self, account: str = "", region: str = "") -> Place:
        """Return where the calls go.

        Args:
            account: the account that it has to be, on AWS; empty means any.
            region: the region that it has to be, on AWS; empty means any.

        Raises:
            InvalidRequest: it is another account or region.
            TdevError: the account is unknown, and one was asked for.
        """
        live, endpoint = self._meta.region_name, self._meta.endpoint_url
        if self.local:
            return Place("", live, endpoint)
        if region not in ("", live):
            raise _elsewhere("region", region, live, f"set AWS_REGION={region}")
        try:
            found = self("GetCallerIdentity")["Account"]
        except TdevError:
            if account:
                raise
            found = "unknown"
        if account not in ("", found):
            raise _elsewhere("account", account, found, "use credentials of that account")
        return Place(found, live, endpoint)

    def backoff(self, budget_seconds: float = inf) -> Backoff:
        """Return the pauses of one thing that is waited for."""
        first_pauses: Mapping[type[Exception], float] = dict.fromkeys(
            (Busy, Absent, StoreError), self.limits.first_pause
        )
        return Backoff(budget_seconds, first_pauses, self.limits.longest_pause)

    def _send(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        service, _ = OPERATIONS[operation]
        # With a local engine for DynamoDB, the other services must not reach an AWS account.
        others = service != "dynamodb"
        endpoint = self._meta.endpoint_url if others and self.local else None
        try:
            client = _client(service, self.settings, endpoint)
            with aws.sending():
                response: dict[str, Any] = getattr(client, xform_name(operation))(**request)
            if operation == "DescribeTable" and "Table" not in response:
                raise Unavailable("the answer to DescribeTable is not that of DynamoDB")
        except ClientError as error:
            meaning = _meaning(error, service, operation, request)
            if isinstance(meaning, Unsupported) and not self.local:
                # As Unsupported, the part would be left out, and the plan would look clean.
                meaning = TdevError(f"{meaning}, but AWS knows it; check AWS_ENDPOINT_URL")
            raise meaning from error
        except BotoCoreError as error:
            meaning = aws.error_of(error)
            raise (Busy(str(meaning)) if isinstance(meaning, Unavailable) else meaning) from error
        except Unavailable as error:  # credentials that cannot be renewed now, or no answer of AWS
            raise Busy(str(error)) from error
        return response


def _elsewhere(name: str, wanted: str, found: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(
        name, f"the environment is declared in {wanted}, but the calls go to {found}: {remedy}"
    )


@cache
def _client(service: str, settings: Settings, endpoint: str | None) -> Any:
    if service == "dynamodb":
        return aws.dynamodb(settings)
    return aws.create(service, settings, endpoint)


# Which error a failure is, by its code and a part of its message; empty stands for any. The first
# row that fits decides; None leaves it to `from_response`.
_KINDS: Final[Sequence[tuple[type[TdevError] | None, Collection[str], Collection[str]]]] = (
    (Unsupported, {"404"}, ()),
    (Absent, _ABSENT_CODES, ()),
    (AccessDenied, {"AccessDenied", "AccessDeniedException"}, ()),
    # TTL can be changed once an hour; billing to on-demand, fewer units and another KMS key a few
    # times a day.
    (InProgress, (), ("within a fixed interval", "are limited")),
    # Either too many changes at once, which passes, or a quota of the account, which does not.
    (Busy, {"LimitExceededException"}, ("simultaneously", "being updated")),
    (None, {"LimitExceededException"}, ()),
    (NotYet, (), ("while table is in CREATING",)),
    # Auto scaling's failures when CloudWatch throttles it, and when its role, made at its first
    # use, is not known everywhere yet.
    (Busy, (), ("Rate exceeded", "Unable to assume IAM role")),
    (Busy, _BUSY_CODES, ()),
)


def _kind(code: str, status: int, message: str) -> type[TdevError] | None:
    if "UnknownOperation" in code or status == 501:
        return Unsupported
    for kind, codes, parts in _KINDS:
        if (not codes or code in codes) and (not parts or any(part in message for part in parts)):
            return kind
    return Busy if status == 429 or status >= 500 else None


def _meaning(
    error: ClientError, service: str, operation: str, request: dict[str, Any]
) -> TdevError:
    code = error.response["Error"].get("Code", "")
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    message = error.response["Error"].get("Message", "")
    resource = next((request[name] for name in _RESOURCE_PARAMETERS if name in request), "*")
    resource = ", ".join(resource) if isinstance(resource, list) else resource
    text = f"{service}:{operation}: {code}: {message}"
    texts: Mapping[type[TdevError], str] = {
        Unsupported: f"this endpoint does not know {service}:{operation}",
        Absent: message,
        AccessDenied: f"{service}:{operation} on {resource} is not allowed: {message}",
        InProgress: f"{text}; DynamoDB accepts this change later: run again then",
    }
    kind = _kind(code, status, message)
    if kind:
        return kind(texts.get(kind, text))
    named = {
        **error.response["Error"],
        "Message": f"{service}:{operation} on {resource}: {message}".removesuffix(": "),
    }
    return from_response({**error.response, "Error": named})
