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

from ministack.app import main
from ministack.core import iam_actions, iam_evaluator
from ministack.services import dynamodb, kms

ADMIN = "test"
OWN_KEY = "alias/aws/dynamodb"

_enforce = iam_evaluator.enforce
_resource = iam_actions.extract_resource_arn
_context = iam_actions.request_tag_context
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
    """Know the table that is named by its ARN, the alarms of a deletion, and the key of an alias."""
    found = _resource(service, method, path, headers, body, query, *more)
    sent, (region, account) = _read(body), more
    if service == "dynamodb" and found == "*":
        return sent.get("ResourceArn", found)
    if service == "monitoring" and sent.get("AlarmNames") and path.endswith("DeleteAlarms"):
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
    return context


def encryption(spec: Any) -> Any:
    """Report the account's own key for DynamoDB as AWS does, and not by its alias."""
    described = _encryption(spec)
    if described and described.get("KMSMasterKeyArn", "").endswith(f":{OWN_KEY}"):
        described["KMSMasterKeyArn"] = kms._resolve_key(OWN_KEY)["Arn"]
    return described


if __name__ == "__main__":
    judgements = Path(sys.argv.pop()).open("a", buffering=1)
    iam_evaluator.enforce = enforce
    iam_actions.extract_resource_arn = extract_resource_arn
    iam_actions.request_tag_context = request_tag_context
    dynamodb._sse_description_from_spec = encryption
    main()
