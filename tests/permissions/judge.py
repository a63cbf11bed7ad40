"""ministack that enforces IAM, run by the Python of its own environment: `judge.py FILE`.

Each judgement of a request, but the administrator's, is a line of FILE: `allowed` or `denied`, the
action, the resource. The line is there before the answer is. Where ministack asks IAM for something
else than AWS does, it is corrected here, and not in the package.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ministack.app import SERVICE_HANDLERS, main
from ministack.core import iam_actions, iam_evaluator, router
from ministack.services import dynamodb, kms

ADMIN = "test"
OWN_KEY = "alias/aws/dynamodb"
SCALING, ALARMS = "application-autoscaling", "monitoring"

_enforce = iam_evaluator.enforce
_resource = iam_actions.extract_resource_arn
_context = iam_actions.request_tag_context
_alarms = SERVICE_HANDLERS[ALARMS]
_encryption = dynamodb._sse_description_from_spec


def _read(body: bytes) -> dict[str, Any]:
    try:
        read = json.loads(body)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def enforce(key: str, action: str, service: str, region: str, **more: Any) -> Any:
    """Judge as ministack does, and write the judgement down."""
    refusal = _enforce(key, action, service, region, **more)
    if key != ADMIN:
        verdict = "denied" if refusal else "allowed"
        judgements.write(f"{verdict} {action} {more.get('resource_arn', '*')}\n")
    return refusal


def extract_resource_arn(
    service: str, method: str, path: str, headers: Any, body: bytes, query: Any, *more: Any
) -> Any:
    """Know the table of an ARN, the alarms of a deletion, and the key of an alias."""
    found = _resource(service, method, path, headers, body, query, *more)
    sent, (region, account) = _read(body), more
    if service == SCALING and "Describe" not in headers["x-amz-target"]:
        return f"arn:aws:{SCALING}:{region}:{account}:scalable-target/0"
    if service == "dynamodb" and found == "*":
        return sent.get("ResourceArn", found)
    if service == ALARMS and headers.get("x-amz-target", "").endswith(".DeleteAlarms"):
        return f"arn:aws:cloudwatch:{region}:{account}:alarm:{sent['AlarmNames'][0]}"
    if service == "kms" and sent.get("KeyId") == OWN_KEY:
        return kms._resolve_key(OWN_KEY)["Arn"]
    return found


def request_tag_context(service: str, action: str, body: bytes, params: Any) -> dict[str, Any]:
    """Let conditions ask for what a request to KMS holds."""
    context, sent = dict(_context(service, action, body, params)), _read(body)
    if service == "kms":
        for name, value in sent.get("EncryptionContext", {}).items():
            context[f"kms:EncryptionContext:{name}"] = value
        if str(sent.get("KeyId")).startswith("alias/"):
            context["kms:RequestAlias"] = sent["KeyId"]
    if service == SCALING:
        context[f"{SCALING}:service-namespace"] = sent["ServiceNamespace"]
    return context


def encryption(spec: Any) -> Any:
    """Report the account's own key for DynamoDB as AWS does, and not by its alias."""
    described = _encryption(spec)
    if described and described.get("KMSMasterKeyArn", "").endswith(f":{OWN_KEY}"):
        described["KMSMasterKeyArn"] = kms._resolve_key(OWN_KEY)["Arn"]
    return described


async def alarms(method: str, path: str, headers: Any, body: bytes, query: Any) -> Any:
    """Keep the metric math of alarms, which ministack forgets."""
    status, answered, answer = await _alarms(method, path, headers, body, query)
    operation, sent = headers.get("x-amz-target", "").rpartition(".")[2], _read(body)
    if operation == "PutMetricAlarm":
        metrics[sent["AlarmName"]] = sent["Metrics"]
    elif operation == "DescribeAlarms" and status == 200:
        described = json.loads(answer)
        for alarm in described["MetricAlarms"]:
            alarm["Metrics"] = metrics[alarm["AlarmName"]]
        answer = json.dumps(described).encode()
    return status, {name: one for name, one in answered.items() if "rc32" not in name}, answer


class Scaling:
    """Application Auto Scaling, which ministack lacks, as far as migrations use it."""

    def __init__(self) -> None:
        self.targets: dict[tuple[str, str], dict[str, Any]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}

    async def __call__(
        self, method: str, path: str, headers: Any, body: bytes, query: Any
    ) -> tuple[int, dict[str, str], bytes]:
        """Answer one request."""
        sent, operation = _read(body), headers["x-amz-target"].rpartition(".")[2]
        answer = getattr(self, operation)(sent) or {}
        return 200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(answer).encode()

    def DescribeScalableTargets(self, sent: dict[str, Any]) -> dict[str, Any]:
        names = sent.get("ResourceIds", [])
        found = [one for (name, _), one in self.targets.items() if not names or name in names]
        return {"ScalableTargets": found}

    def DescribeScalingPolicies(self, sent: dict[str, Any]) -> dict[str, Any]:
        found = [one for (name, _), one in self.policies.items() if name == sent["ResourceId"]]
        return {"ScalingPolicies": found}

    def RegisterScalableTarget(self, sent: dict[str, Any]) -> None:
        self.targets[sent["ResourceId"], sent["ScalableDimension"]] = sent

    def DeregisterScalableTarget(self, sent: dict[str, Any]) -> None:
        del self.targets[sent["ResourceId"], sent["ScalableDimension"]]
        self.policies.pop((sent["ResourceId"], sent["ScalableDimension"]), None)

    def PutScalingPolicy(self, sent: dict[str, Any]) -> None:
        self.policies[sent["ResourceId"], sent["ScalableDimension"]] = sent


if __name__ == "__main__":
    metrics: dict[str, Any] = {}
    with Path(sys.argv.pop()).open("a", buffering=1) as judgements:
        iam_evaluator.enforce = enforce
        iam_actions.extract_resource_arn = extract_resource_arn
        iam_actions.request_tag_context = request_tag_context
        dynamodb._sse_description_from_spec = encryption
        SERVICE_HANDLERS[ALARMS] = alarms
        SERVICE_HANDLERS[SCALING] = Scaling()
        router.SERVICE_PATTERNS[SCALING] = {"target_prefixes": ["AnyScaleFrontendService"]}
        iam_actions.SERVICE_TO_IAM_NAMESPACE[SCALING] = SCALING
        main()
