"""Every call that migrations may send to AWS, and what its failure means."""

from __future__ import annotations

import random
import time
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError

from tdev_models import aws
from tdev_models.errors import AccessDenied, TdevError, Unavailable, from_response
from tdev_models.settings import Settings

OPERATIONS: Final = {
    "ListTables": ("dynamodb", "*"),
    "DescribeTable": ("dynamodb", "table"),
    "DescribeTimeToLive": ("dynamodb", "table"),
    "DescribeContinuousBackups": ("dynamodb", "table"),
    "ListTagsOfResource": ("dynamodb", "table"),
    "Scan": ("dynamodb", "table"),
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
}
"""Service and kind of resource of each operation; nothing else can be sent. IAM is made of it."""

_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
_RETRIED = {
    "ResourceInUseException",
    "ContinuousBackupsUnavailableException",
    "ConcurrentUpdateException",
    "ConcurrentModificationException",
    "ThrottlingException",
    "Throttling",
    "RequestLimitExceeded",
    "ProvisionedThroughputExceededException",
    "InternalServerError",
    "InternalServiceException",
    "InternalServiceFault",
    "ServiceUnavailable",
}
_ABSENT = {
    "ResourceNotFoundException",
    "TableNotFoundException",
    "ObjectNotFoundException",
    "ResourceNotFound",  # moto
}
_DENIED = {"AccessDenied", "AccessDeniedException"}
# TTL an hour; to on-demand, fewer units and another key a few times a day.
_LATER = ("within a fixed interval", "are limited")
# CloudWatch throttles auto scaling, which tells it as a failure; its role is new at its first use.
_PASSES = ("Rate exceeded", "Unable to assume IAM role")
_NAMES = (
    "TableName",
    "ResourceArn",
    "ResourceId",
    "ResourceIds",
    "AlarmName",
    "AlarmNames",
    "KeyId",
)


class Absent(TdevError):
    """What the call names does not exist."""


class Unsupported(TdevError):
    """The engine does not know this operation; AWS knows them all."""


class Busy(TdevError):
    """Refused for now: in use, throttled or no answer. The live state tells what happened."""


class NotYet(Busy):
    """DynamoDB tells this only once the table is made."""


class InProgress(TdevError):
    """DynamoDB is still at work, or takes such a change only later; the next run goes on."""


class Calls:
    """Sends operations with one set of settings.

    Attributes:
        local: whether the endpoint is not AWS, so that waiting can be short.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        host = urlsplit(settings.endpoint or "https://dynamodb.amazonaws.com").hostname or ""
        self.local = not host.endswith(_AWS_HOSTS)

    def __call__(self, operation: str, **request: Any) -> dict[str, Any]:
        """Send one operation and return the answer; a read that is throttled is tried again.

        Raises:
            Absent, Unsupported, Busy, InProgress: as they say.
            AccessDenied: the message names the action and the resource.
            TdevError: any other failure, with AWS's own message.
        """
        reads = operation.startswith(("Describe", "List", "Get", "Scan"))
        for attempt in range(7 if reads else 0):
            try:
                return self._send(operation, request)
            except Busy:
                self.pause(attempt)
        return self._send(operation, request)

    def pause(self, attempt: int) -> None:
        """Sleep before another attempt: longer each time, with jitter, short on a local engine."""
        least, most = (0.002, 0.1) if self.local else (1.0, 10.0)
        time.sleep(min(most, least * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0))

    def _send(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        service, _ = OPERATIONS[operation]
        # What is meant for a local DynamoDB must not reach the alarms of an account.
        endpoint = self.settings.endpoint if self.local or service == "dynamodb" else None
        try:
            client = _client(service, self.settings, endpoint)
            with aws.quiet():
                response: dict[str, Any] = getattr(client, xform_name(operation))(**request)
        except ClientError as error:
            meaning = _meaning(error, service, operation, request)
            if isinstance(meaning, Unsupported) and not self.local:
                # AWS knows them all: the endpoint is wrong, and the part only looks as if absent.
                meaning = TdevError(f"{meaning}: a wrong AWS_ENDPOINT_URL?")
            raise meaning from error
        except BotoCoreError as error:
            meaning = aws.error_of(error)
            raise (Busy(str(error)) if isinstance(meaning, Unavailable) else meaning) from error
        return response


@cache
def _client(service: str, settings: Settings, endpoint: str | None) -> Any:
    if service == "dynamodb":
        return aws.dynamodb(settings)
    return aws.create(service, settings, endpoint)


def _meaning(
    error: ClientError, service: str, operation: str, request: dict[str, Any]
) -> TdevError:
    code = error.response["Error"].get("Code", "")
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    message = error.response["Error"].get("Message", "")
    if "UnknownOperation" in code or code == "404" or status == 501:
        return Unsupported(f"this endpoint does not know {service}:{operation}")
    if code in _ABSENT:
        return Absent(message)
    if code in _DENIED:
        what = next((request[name] for name in _NAMES if name in request), "*")
        what = ", ".join(what) if isinstance(what, list) else what
        return AccessDenied(f"{service}:{operation} on {what} is not allowed: {message}")
    told = f"{service}:{operation}: {code}: {message}"
    if any(text in message for text in _LATER):
        return InProgress(f"{told}; run again then")
    if code == "LimitExceededException":
        # One code for what passes in seconds and for quotas, which waiting does not raise.
        passes = "simultaneously" in message or "being updated" in message
        return Busy(told) if passes else from_response(error.response)
    if "while table is in CREATING" in message:
        return NotYet(told)
    if any(text in message for text in _PASSES):
        return Busy(told)
    return Busy(told) if code in _RETRIED or status >= 500 else from_response(error.response)
