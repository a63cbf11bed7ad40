"""AWS as its documentation describes it: moto, and rules where moto allows too much."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import botocore.client
from botocore.exceptions import ClientError
from moto.moto_api._internal.models import moto_api_backend

_ORIGINAL = botocore.client.BaseClient._make_api_call
_KEY = "arn:aws:kms:us-east-1:123456789012:key/own"


class Killed(BaseException):
    """Ends a run as a kill does: nothing may catch it."""


class StrictAws:
    """Stands between botocore's clients and moto: applies rules, records, refuses, kills.

    All runs of a test share it.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Start again with an empty account."""
        moto_api_backend.reset()
        self.denied: set[str] = set()
        self.throttled: Counter[str] = Counter()
        self.one_ttl_change_an_hour = False
        self.rules = True
        self.endpoints: set[str] = set()
        self._creating: Counter[str] = Counter()
        self._updating: Counter[str] = Counter()
        self._creating_indexes: Counter[tuple[str, str]] = Counter()
        self._deleting_indexes: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        self._no_backups: Counter[str] = Counter()
        self._sse: dict[str, str | None] = {}
        self._most: dict[tuple[str, str], dict[str, int]] = {}
        self._ttl_changed: set[str] = set()
        self._stale_tags: dict[str, dict[str, Any]] = {}
        self.forget()

    # -------------------------------------------------------------------- what tests use

    @property
    def mutations(self) -> list[str]:
        return [operation for _, operation, _ in self.calls if _mutates(operation)]

    def by_hand(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        """Send without rules or records, as somebody at the console."""
        answer: dict[str, Any] = _ORIGINAL(_client(service, self.endpoint), operation, params)
        return answer

    def look_creating(self, table: str, times: int) -> None:
        """Describe the table as CREATING for a number of times."""
        self._creating[table] = times

    def look_creating_index(self, table: str, index: str) -> None:
        self._creating_indexes[table, index] = 1

    def encrypt_by_hand(self, table: str, key: str | None) -> None:
        self._sse[table] = key

    def forget(self) -> None:
        """Forget the recorded calls, and the kill."""
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.kill_at: tuple[int, str] | None = None
        self._mutations = 0

    def let_an_hour_pass(self) -> None:
        self._ttl_changed.clear()

    # -------------------------------------------------------------------- the wrapper

    def call(self, client: Any, operation: str, params: dict[str, Any]) -> Any:
        service = client.meta.service_model.service_name
        with self._lock:
            self.endpoints.add(client.meta.endpoint_url)
            mutates = _mutates(operation)
            self._mutations += mutates
            if mutates and self.kill_at == (self._mutations, "before"):
                raise Killed
            try:
                return self._answer(client, service, operation, params)
            finally:
                if mutates and self.kill_at == (self._mutations, "after"):
                    raise Killed

    def _answer(
        self, client: Any, service: str, operation: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        if operation in self.denied:
            code = "AccessDenied" if service == "cloudwatch" else "AccessDeniedException"
            raise _error(operation, code, "User is not authorized to perform it")
        self.calls.append((service, operation, params))
        if self.throttled[operation] > 0:
            self.throttled[operation] -= 1
            raise _error(operation, "ThrottlingException", "Rate exceeded")
        if not self.rules:
            unchecked: dict[str, Any] = _ORIGINAL(client, operation, params)
            return unchecked
        rule = getattr(self, f"_before_{operation}", None)
        answer: dict[str, Any] | None = rule(params) if rule else None
        if answer is None:
            answer = _ORIGINAL(client, operation, params)
        after = getattr(self, f"_after_{operation}", None)
        if after:
            after(params, answer)
        return answer

    # -------------------------------------------------------------------- DynamoDB

    def _live(self, table: str) -> dict[str, Any]:
        live: dict[str, Any] = self.by_hand("dynamodb", "DescribeTable", TableName=table)["Table"]
        return live

    def _limit(self, table: str, change: dict[str, Any]) -> None:
        place = table, change.get("IndexName", "")
        most = change["OnDemandThroughput"]
        if not most or any(units == 0 or units < -1 for units in most.values()):
            raise _invalid("UpdateTable", "use -1, or 1 and more")
        if self._most.get(place) == most:
            raise _invalid("UpdateTable", "The on-demand throughput will not change")
        self._most[place] = most

    def _before_CreateTable(self, params: dict[str, Any]) -> None:
        _check_definitions(params, params.get("GlobalSecondaryIndexes", ()))
        for index in [params, *params.get("GlobalSecondaryIndexes", ())]:
            _check_keys("CreateTable", index)
            provisioned = params["BillingMode"] == "PROVISIONED"
            if ("ProvisionedThroughput" in index) != provisioned:
                raise _invalid("CreateTable", "ProvisionedThroughput goes with PROVISIONED only")
            if "OnDemandThroughput" in index:
                if provisioned:
                    raise _invalid(
                        "CreateTable", "OnDemandThroughput goes with PAY_PER_REQUEST only"
                    )
                self._limit(params["TableName"], index)

    def _after_CreateTable(self, params: dict[str, Any], answer: Any) -> None:
        table = params["TableName"]
        self._creating[table] = 2
        self._no_backups[table] = 1
        sse = params.get("SSESpecification", {})
        self._sse[table] = sse.get("KMSMasterKeyId", _KEY) if sse.get("Enabled") else None

    def _after_DescribeTable(self, params: dict[str, Any], answer: Any) -> None:
        table, live = params["TableName"], answer["Table"]
        if live.get("BillingModeSummary", {}).get("BillingMode") == "PROVISIONED":
            del live["BillingModeSummary"]
        for status, remaining in (("UPDATING", self._updating), ("CREATING", self._creating)):
            if remaining[table] > 0:
                remaining[table] -= 1
                live["TableStatus"] = status
        indexes = live.setdefault("GlobalSecondaryIndexes", [])
        for index in indexes:
            if self._creating_indexes[table, index["IndexName"]] > 0:
                self._creating_indexes[table, index["IndexName"]] -= 1
                index["IndexStatus"] = "CREATING"
        for (its_table, name), (times, index) in list(self._deleting_indexes.items()):
            if its_table == table and times > 0:
                self._deleting_indexes[table, name] = times - 1, index
                indexes.append({**index, "IndexStatus": "DELETING"})
        for each in (live, *indexes):
            each.pop("OnDemandThroughput", None)
            if most := self._most.get((table, each.get("IndexName", ""))):
                each["OnDemandThroughput"] = most
        used = _key_attributes([live, *indexes])
        live["AttributeDefinitions"] = [
            a for a in live["AttributeDefinitions"] if a["AttributeName"] in used
        ]
        live.pop("SSEDescription", None)
        if key := self._sse.get(table):
            live["SSEDescription"] = {
                "Status": "ENABLED",
                "SSEType": "KMS",
                "KMSMasterKeyArn": key,
            }

    def _before_UpdateTable(self, params: dict[str, Any]) -> Any:
        table = params["TableName"]
        times = [self._creating[table], self._updating[table]]
        times += [n for (its_table, _), n in self._creating_indexes.items() if its_table == table]
        times += [
            n for (its_table, _), (n, _) in self._deleting_indexes.items() if its_table == table
        ]
        if any(times):
            raise _error("UpdateTable", "ResourceInUseException", f"{table} is being updated")
        live = self._live(table)
        billing = live.get("BillingModeSummary", {}).get("BillingMode")  # none after a restore
        on_demand = billing == "PAY_PER_REQUEST"
        updates = params.get("GlobalSecondaryIndexUpdates", [])
        indexed = [u for u in updates if "Update" not in u]
        if len(indexed) > 1:
            text = "Only 1 online index can be created or deleted simultaneously per table"
            raise _error("UpdateTable", "LimitExceededException", text)
        limits = [
            x
            for x in (params, *(u.get("Update", {}) for u in updates))
            if "OnDemandThroughput" in x
        ]
        updated = [u for u in updates if "ProvisionedThroughput" in u.get("Update", {})]
        throughput = "ProvisionedThroughput" in params or bool(updated)
        kinds = [
            throughput or "BillingMode" in params,
            bool(limits),
            bool(indexed),
            "SSESpecification" in params,
            "DeletionProtectionEnabled" in params,
        ]
        if sum(kinds) != 1:
            raise _invalid("UpdateTable", "only one kind of change at a time")
        if limits:
            if not on_demand:
                raise _invalid("UpdateTable", "OnDemandThroughput goes with PAY_PER_REQUEST only")
            for each in limits:
                self._limit(table, each)
            self._updating[table] = 2
            return {}
        self._check_throughput(params, live, on_demand, throughput)
        self._check_new_index(params, live, on_demand)
        if "SSESpecification" in params:
            sse = params["SSESpecification"]
            key = sse.get("KMSMasterKeyId", _KEY) if sse["Enabled"] else None
            if self._sse.get(table) == key:
                raise _invalid("UpdateTable", "Table is already encrypted by given KMSMasterKey")
            self._sse[table] = key
            self._updating[table] = 2
            return {}
        for update in indexed:
            if "Create" in update:
                self._creating_indexes[table, update["Create"]["IndexName"]] = 3
            else:
                name = update["Delete"]["IndexName"]
                named = [i for i in live["GlobalSecondaryIndexes"] if i["IndexName"] == name]
                if not named:
                    text = f"Requested resource not found: Index {name}"
                    raise _error("UpdateTable", "ResourceNotFoundException", text)
                (index,) = named
                self._deleting_indexes[table, name] = 2, index
        return None

    def _check_throughput(
        self, params: dict[str, Any], live: dict[str, Any], on_demand: bool, throughput: bool
    ) -> None:
        wanted = params.get("BillingMode")
        updates = [
            u["Update"] for u in params.get("GlobalSecondaryIndexUpdates", []) if "Update" in u
        ]
        live_indexes = {i["IndexName"]: i for i in live.get("GlobalSecondaryIndexes", ())}
        if wanted == "PROVISIONED" and on_demand:
            if {u["IndexName"] for u in updates} != live_indexes.keys():
                raise _invalid("UpdateTable", "ProvisionedThroughput must be given for every index")
            return
        if throughput and (on_demand or wanted == "PAY_PER_REQUEST"):
            raise _invalid("UpdateTable", "no throughput with PAY_PER_REQUEST")
        pairs = [(u, live_indexes[u["IndexName"]]) for u in updates]
        if "ProvisionedThroughput" in params:
            pairs.append((params, live))
        for new, old in pairs:
            names = ("ReadCapacityUnits", "WriteCapacityUnits")
            if all(
                new["ProvisionedThroughput"][n] == old["ProvisionedThroughput"][n] for n in names
            ):
                raise _invalid("UpdateTable", "The provisioned throughput will not change")

    def _check_new_index(
        self, params: dict[str, Any], live: dict[str, Any], on_demand: bool
    ) -> None:
        for update in params.get("GlobalSecondaryIndexUpdates", []):
            if "Create" in update:
                index = update["Create"]
                _check_keys("UpdateTable", index)
                if "OnDemandThroughput" in index:
                    self._limit(params["TableName"], index)
                if ("ProvisionedThroughput" in index) == on_demand:
                    raise _invalid(
                        "UpdateTable", "ProvisionedThroughput goes with PROVISIONED only"
                    )
                others = live.get("GlobalSecondaryIndexes", [])
                used = _key_attributes([live, *others])
                types = {a["AttributeName"]: a for a in params["AttributeDefinitions"]}
                if any(
                    types[a["AttributeName"]] != a
                    for a in live["AttributeDefinitions"]
                    if a["AttributeName"] in used & types.keys()
                ):
                    raise _invalid("UpdateTable", "Cannot change the type of an attribute in use")
                _check_definitions(
                    {**live, "AttributeDefinitions": params["AttributeDefinitions"]},
                    [*others, index],
                )
                if index["IndexName"] in {other["IndexName"] for other in others}:
                    raise _invalid("UpdateTable", "Attempting to create an index which exists")

    def _after_UpdateTable(self, params: dict[str, Any], answer: Any) -> None:
        if "DeletionProtectionEnabled" not in params:
            self._updating[params["TableName"]] = 2

    def _before_Scan(self, params: dict[str, Any]) -> None:
        if self._creating[params["TableName"]] > 0:
            raise _error("Scan", "ResourceNotFoundException", "Requested resource not found")

    def _before_UpdateTimeToLive(self, params: dict[str, Any]) -> None:
        table, wanted = params["TableName"], params["TimeToLiveSpecification"]
        if self._creating[table] + self._updating[table] > 0:
            raise _error("UpdateTimeToLive", "ResourceInUseException", f"{table} is being updated")
        answer = self.by_hand("dynamodb", "DescribeTimeToLive", TableName=table)
        live = answer["TimeToLiveDescription"]
        on = live["TimeToLiveStatus"] == "ENABLED"
        if self.one_ttl_change_an_hour and table in self._ttl_changed:
            text = "Time to live has been modified multiple times within a fixed interval"
            raise _invalid("UpdateTimeToLive", text)
        if wanted["Enabled"] == on:
            raise _invalid("UpdateTimeToLive", "TimeToLive is already as wanted")
        if not wanted["Enabled"] and live["AttributeName"] != wanted["AttributeName"]:
            raise _invalid("UpdateTimeToLive", "TimeToLive is active on a different AttributeName")
        self._ttl_changed.add(table)

    def _before_DescribeTimeToLive(self, params: dict[str, Any]) -> None:
        if self._creating[params["TableName"]] > 0:
            text = "Cannot describe time to live while table is in CREATING state"
            raise _invalid("DescribeTimeToLive", text)

    def _before_DescribeContinuousBackups(self, params: dict[str, Any]) -> None:
        if self._creating[params["TableName"]] > 0:
            raise _error("DescribeContinuousBackups", "TableNotFoundException", "Table not found")

    def _before_UpdateContinuousBackups(self, params: dict[str, Any]) -> None:
        if self._no_backups[params["TableName"]] > 0:
            self._no_backups[params["TableName"]] -= 1
            code, text = "ContinuousBackupsUnavailableException", "Backups are being enabled"
            raise _error("UpdateContinuousBackups", code, text)

    def _before_TagResource(self, params: dict[str, Any]) -> None:
        arn = params["ResourceArn"]
        self._stale_tags[arn] = self.by_hand("dynamodb", "ListTagsOfResource", ResourceArn=arn)

    def _before_ListTagsOfResource(self, params: dict[str, Any]) -> Any:
        if self._creating[params["ResourceArn"].split("/")[-1]] > 0:
            text = "Requested resource not found: ResourceArn"
            raise _error("ListTagsOfResource", "ResourceNotFoundException", text)
        return self._stale_tags.pop(params["ResourceArn"], None)

    # -------------------------------------------------------------------- other services

    def _targets(self, resource: str) -> set[str]:
        answer = self.by_hand(
            "application-autoscaling",
            "DescribeScalableTargets",
            ServiceNamespace="dynamodb",
            ResourceIds=[resource],
        )
        return {target["ScalableDimension"] for target in answer["ScalableTargets"]}

    def _before_DeregisterScalableTarget(self, params: dict[str, Any]) -> None:
        if params["ScalableDimension"] not in self._targets(params["ResourceId"]):
            code = "ObjectNotFoundException"
            raise _error("DeregisterScalableTarget", code, "No scalable target found")

    def _before_PutScalingPolicy(self, params: dict[str, Any]) -> None:
        if params["ScalableDimension"] not in self._targets(params["ResourceId"]):
            code = "ObjectNotFoundException"
            raise _error("PutScalingPolicy", code, "No scalable target registered")
        policies = self.by_hand(
            "application-autoscaling",
            "DescribeScalingPolicies",
            ServiceNamespace="dynamodb",
            ResourceId=params["ResourceId"],
        )["ScalingPolicies"]
        for policy in policies:
            same = policy["ScalableDimension"] == params["ScalableDimension"]
            tracking = policy["TargetTrackingScalingPolicyConfiguration"]
            same &= "PredefinedMetricSpecification" in tracking
            if same and policy["PolicyName"] != params["PolicyName"]:
                text = "Only one TargetTrackingScaling policy for a metric is allowed"
                raise _invalid("PutScalingPolicy", text)

    def _after_DescribeScalingPolicies(self, params: dict[str, Any], answer: Any) -> None:
        kept = self._targets(params["ResourceId"])
        answer["ScalingPolicies"] = [
            policy for policy in answer["ScalingPolicies"] if policy["ScalableDimension"] in kept
        ]

    def _before_PutMetricAlarm(self, params: dict[str, Any]) -> None:
        returned = [metric for metric in params["Metrics"] if metric["ReturnData"]]
        stats = [metric for metric in params["Metrics"] if "MetricStat" in metric]
        if len(returned) != 1 or len(stats) > 10 or len(params["AlarmName"]) > 255:
            raise _invalid("PutMetricAlarm", "one value of at most ten metrics")

    def _before_DescribeKey(self, params: dict[str, Any]) -> Any:
        return {"KeyMetadata": {"Arn": _KEY}}


@cache
def _client(service: str, endpoint: str) -> Any:
    session = botocore.session.get_session()
    return session.create_client(service, region_name="us-east-1", endpoint_url=endpoint)


def _mutates(operation: str) -> bool:
    return not operation.startswith(("Describe", "List", "Get", "Scan"))


def _error(operation: str, code: str, message: str, status: int = 400) -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },
        operation,
    )


def _invalid(operation: str, message: str) -> ClientError:
    return _error(operation, "ValidationException", message)


def _check_keys(operation: str, index: Mapping[str, Any]) -> None:
    if [key["KeyType"] for key in index["KeySchema"]] not in (["HASH"], ["HASH", "RANGE"]):
        raise _invalid(operation, "The first KeySchemaElement is not a HASH key type")


def _check_definitions(params: Mapping[str, Any], indexes: Any) -> None:
    if _key_attributes([params, *indexes]) != {
        a["AttributeName"] for a in params["AttributeDefinitions"]
    }:
        raise _invalid("UpdateTable", "Some AttributeDefinitions are not used, or missing")


def _key_attributes(described: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the attributes that the keys of tables and indexes are made of."""
    return {key["AttributeName"] for each in described for key in each["KeySchema"]}
