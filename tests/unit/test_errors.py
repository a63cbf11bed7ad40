"""AWS codes become errors in one place."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest

from tdev_models import errors


def response(code: str, status: int = 400, message: str = "m", **more: Any) -> dict[str, Any]:
    return {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **more,
    }


@pytest.mark.parametrize(
    ("code", "status", "message", "kind"),
    [
        ("AccessDeniedException", 400, "not authorized: dynamodb:Query", errors.AccessDenied),
        ("ExpiredTokenException", 400, "", errors.ConfigurationError),
        ("ResourceNotFoundException", 400, "no table", errors.ConfigurationError),
        ("ThrottlingException", 400, "", errors.Throttled),
        ("ProvisionedThroughputExceededException", 400, "", errors.Throttled),
        ("TransactionConflictException", 400, "", errors.Conflict),
        ("ReplicatedWriteConflictException", 409, "", errors.Conflict),  # of global tables
        ("Throttling", 400, "", errors.Throttled),
        ("429", 429, "", errors.Throttled),  # by what stands in between, without a code
        ("TooManyRequests", 429, "", errors.Throttled),
        ("RequestTimeoutException", 400, "", errors.Unavailable),
        ("InternalServerError", 500, "", errors.Unavailable),
        ("BadGateway", 502, "", errors.Unavailable),
        (
            "ValidationException",
            400,
            "Item size has exceeded the maximum allowed size",
            errors.ItemTooLarge,
        ),
        ("ValidationException", 400, "bad expression", errors.StoreError),
        ("SomethingNew", 418, "tea", errors.StoreError),
    ],
)
def test_a_code_becomes_its_error(
    code: str, status: int, message: str, kind: type[errors.TdevError]
) -> None:
    error = errors.from_response(response(code, status, message))
    assert type(error) is kind
    assert message in str(error)


def test_what_is_denied_is_named_with_its_tables() -> None:
    error = errors.from_response(response("AccessDeniedException", message="no: Query"), "a,b")
    assert str(error) == "no: Query (a,b)"


def test_an_unknown_answer_keeps_code_status_and_message() -> None:
    error = errors.from_response(response("SomethingNew", 418, "tea"))
    assert isinstance(error, errors.StoreError)
    assert (error.code, error.status, str(error)) == (
        "SomethingNew",
        418,
        "SomethingNew (418): tea",
    )


def test_a_missing_table_names_the_remedy() -> None:
    missing = errors.from_response(response("ResourceNotFoundException"), "t-developer-dev-metrics")
    assert "(t-developer-dev-metrics); create the tables with 'tdev migrate apply" in str(missing)


@pytest.mark.parametrize(
    "code",
    [
        "ExpiredTokenException",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    ],
)
def test_credentials_that_are_refused_name_the_remedy(code: str) -> None:
    refused = errors.from_response(response(code, message="The security token is not valid"))
    assert str(refused).startswith("The security token is not valid; renew the AWS credentials")
    assert "start the process anew" in str(refused), "what it has read of a file it keeps"


@pytest.mark.parametrize(
    ("codes", "kind", "position"),
    [
        (["None", "ConditionalCheckFailed"], errors.ConditionFailed, 1),
        (["ConditionalCheckFailed", "TransactionConflict"], errors.ConditionFailed, 0),
        (["TransactionConflict", "None"], errors.Conflict, None),
        (["None", "ThrottlingError"], errors.Throttled, None),
        (["ValidationError", "None"], errors.ItemTooLarge, None),
        (["SomethingNew", "None"], errors.StoreError, None),
    ],
)
def test_a_cancelled_transaction_is_what_cancelled_it(
    codes: list[str], kind: type[errors.TdevError], position: int | None
) -> None:
    too_large = "Item size to update has exceeded the maximum allowed size"
    reasons = [{"Code": code, "Message": too_large, "Item": {"k": {"S": code}}} for code in codes]
    error = errors.from_response(
        response("TransactionCanceledException", CancellationReasons=reasons)
    )
    assert type(error) is kind
    if isinstance(error, errors.ConditionFailed):
        assert error.position == position
        assert error.item == {"k": {"S": "ConditionalCheckFailed"}}


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest("output", "is a class", ".files[3]"),
        errors.InvalidTransition("session s", "COMPLETED", "ACTIVE"),
        errors.StoreError("SomethingNew", 418, "tea"),
        errors.NotFound("there is no session s"),
        errors.ConditionFailed({"fence": {"N": "2"}}, 1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_reaches_another_process_as_it_is(error: errors.TdevError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        there = pickle.loads(pickle.dumps(error, protocol))
        assert (type(there), str(there), vars(there)) == (type(error), str(error), vars(error))
    assert str(copy.copy(error)) == str(error)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    tree = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    internal = {"TdevError", "ConditionFailed"}
    defined = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.TdevError)
    }
    assert set(tree) == defined - internal
