from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.migrations.runs import prod
from tests.migrations.strict import StrictAws

SHORT = "pipeline-sessions"
OF_WRITES = {"PredefinedMetricType": "DynamoDBWriteCapacityUtilization"}
ONLY = ("--table", SHORT)
OTHER_KEY = "arn:aws:kms:us-east-1:123456789012:key/other"


class Hand:
    """Changes one property of the live table, as somebody does at the console."""

    def __init__(self, aws: StrictAws, environment: str) -> None:
        self.aws, self.name = aws, f"t-developer-{environment}-{SHORT}"

    def table(self, **change: Any) -> None:
        self.aws.by_hand("dynamodb", "UpdateTable", TableName=self.name, **change)

    def capacity(self, read: int, index: str = "") -> None:
        units = {"ProvisionedThroughput": {"ReadCapacityUnits": read, "WriteCapacityUnits": 5}}
        if index:
            update = {"Update": {"IndexName": index, **units}}
            self.table(GlobalSecondaryIndexUpdates=[update])
        else:
            self.table(**units)

    def backups(self, **recovery: Any) -> None:
        self.aws.by_hand(
            "dynamodb",
            "UpdateContinuousBackups",
            TableName=self.name,
            PointInTimeRecoverySpecification=recovery,
        )

    def ttl(self, enabled: bool, attribute: str = "expires_at") -> None:
        self.aws.by_hand(
            "dynamodb",
            "UpdateTimeToLive",
            TableName=self.name,
            TimeToLiveSpecification={"Enabled": enabled, "AttributeName": attribute},
        )

    def other_ttl(self, attribute: str) -> None:
        self.ttl(False)
        self.ttl(True, attribute)

    def tag(self, operation: str, **change: Any) -> None:
        arn = self.described()["TableArn"]
        self.aws.by_hand("dynamodb", operation, ResourceArn=arn, **change)

    def described(self) -> dict[str, Any]:
        answer = self.aws.by_hand("dynamodb", "DescribeTable", TableName=self.name)
        return dict(answer["Table"])

    def scaling(self, operation: str, index: str = "", kind: str = "Write", **change: Any) -> None:
        self.aws.by_hand(
            "application-autoscaling",
            operation,
            ServiceNamespace="dynamodb",
            ResourceId=f"table/{self.name}" + (f"/index/{index}" if index else ""),
            ScalableDimension=f"dynamodb:{'index' if index else 'table'}:{kind}CapacityUnits",
            **change,
        )

    def target_value(self, percent: float, **own: Any) -> None:
        self.scaling(
            "PutScalingPolicy",
            PolicyName=f"DynamoDBWriteCapacityUtilization:table/{self.name}",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": percent,
                "PredefinedMetricSpecification": OF_WRITES,
                **own,
            },
        )

    def alarm(self, what: str = "system-errors", save_as: str = "", **change: Any) -> None:
        alarm = self.aws.by_hand(
            "cloudwatch", "DescribeAlarms", AlarmNames=[f"{self.name}/{what}"]
        )["MetricAlarms"][0]
        names = ["EvaluationPeriods", "DatapointsToAlarm", "Threshold", "ComparisonOperator"]
        names += ["TreatMissingData", "Metrics", "AlarmDescription"]
        kept = {name: alarm[name] for name in names}
        name = f"{self.name}/{save_as or what}"
        self.aws.by_hand("cloudwatch", "PutMetricAlarm", **{"AlarmName": name, **kept, **change})

    def delete_alarm(self, what: str) -> None:
        self.aws.by_hand("cloudwatch", "DeleteAlarms", AlarmNames=[f"{self.name}/{what}"])

    def delete_index(self, name: str) -> None:
        self.table(GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": name}}])


DRIFTS: dict[str, tuple[str, Callable[[Hand], None]]] = {
    "table capacity above the range": ("! capacity", lambda hand: hand.capacity(99)),
    "table capacity below the range": ("~ capacity", lambda hand: hand.capacity(2)),
    "index capacity above the range": (
        "! capacity user-index",
        lambda hand: hand.capacity(99, "user-index"),
    ),
    "on-demand": ("! billing", lambda hand: hand.table(BillingMode="PAY_PER_REQUEST")),
    "range of auto scaling": (
        "~ scaling",
        lambda hand: hand.scaling("RegisterScalableTarget", MinCapacity=1, MaxCapacity=50),
    ),
    "auto scaling suspended": (
        "~ scaling user-index",
        lambda hand: hand.scaling(
            "RegisterScalableTarget",
            index="user-index",
            SuspendedState={"DynamicScalingOutSuspended": True},
        ),
    ),
    "auto scaling of one dimension gone": (
        "~ scaling status-index",
        lambda hand: hand.scaling("DeregisterScalableTarget", index="status-index"),
    ),
    "target of auto scaling": ("~ scaling", lambda hand: hand.target_value(30.0)),
    "policy of auto scaling gone": (
        "~ scaling",
        lambda hand: hand.scaling(
            "DeleteScalingPolicy",
            PolicyName=f"DynamoDBWriteCapacityUtilization:table/{hand.name}",
        ),
    ),
    "deletion protection off": (
        "+ protection",
        lambda hand: hand.table(DeletionProtectionEnabled=False),
    ),
    "backups off": ("+ pitr", lambda hand: hand.backups(PointInTimeRecoveryEnabled=False)),
    "backups shorter": (
        "~ pitr",
        lambda hand: hand.backups(PointInTimeRecoveryEnabled=True, RecoveryPeriodInDays=7),
    ),
    "key owned by AWS": ("~ encryption", lambda hand: hand.aws.encrypt_by_hand(hand.name, None)),
    "another key": ("! encryption", lambda hand: hand.aws.encrypt_by_hand(hand.name, OTHER_KEY)),
    "TTL off": ("+ ttl", lambda hand: hand.ttl(False)),
    "TTL on another attribute": (
        "~ ttl",
        lambda hand: hand.other_ttl("due_at"),
    ),
    "tag gone": (
        "+ tag application",
        lambda hand: hand.tag("UntagResource", TagKeys=["application"]),
    ),
    "tag changed": (
        "~ tag environment",
        lambda hand: hand.tag("TagResource", Tags=[{"Key": "environment", "Value": "x"}]),
    ),
    "alarm gone": (
        "+ alarm index/user-index/throttled-writes",
        lambda hand: hand.delete_alarm("index/user-index/throttled-writes"),
    ),
    "threshold of an alarm": ("~ alarm system-errors", lambda hand: hand.alarm(Threshold=100.0)),
    "periods of an alarm": ("~ alarm system-errors", lambda hand: hand.alarm(EvaluationPeriods=9)),
    "alarm disabled": ("~ alarm system-errors", lambda hand: hand.alarm(ActionsEnabled=False)),
    "alarm of an index that is gone": (
        "- alarm index/gone/throttled-reads",
        lambda hand: hand.alarm(save_as="index/gone/throttled-reads"),
    ),
    "index gone": ("+ index user-index", lambda hand: hand.delete_index("user-index")),
}


# What repairs the drift only when it is allowed: somebody may have had reasons.
LOSSES = {
    "! capacity": "lower-capacity",
    "! capacity user-index": "lower-capacity",
    "! billing": "end-on-demand",
    "! encryption": "change-key",
}


@pytest.fixture
def hand(aws: StrictAws, environment: str) -> Hand:
    assert prod("apply", environment, *ONLY) == 0
    return Hand(aws, environment)


def lines(environment: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = prod("plan", environment, *ONLY, "--json")
    changes = json.loads(capsys.readouterr().out)["changes"]
    return code, [f"{change['symbol']} {change['target']}" for change in changes]


def test_each_property_changed_by_hand_is_one_line_and_repaired(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str], subtests: pytest.Subtests
) -> None:
    for name, (line, change) in DRIFTS.items():
        with subtests.test(name):
            change(hand)
            allow = [f"--allow={LOSSES[line]}:{SHORT}"] if line in LOSSES else []
            assert lines(environment, capsys) == (3 if allow else 2, [line])
            assert prod("apply", environment, *ONLY, *allow) == 0
            assert lines(environment, capsys) == (0, [])


def test_capacity_that_auto_scaling_moved_within_its_range_is_no_drift(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.capacity(37)
    hand.capacity(37, "user-index")
    assert lines(environment, capsys) == (0, [])


def test_undeclared_tags_are_left(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.tag("TagResource", Tags=[{"Key": "cost-centre", "Value": "42"}])
    assert lines(environment, capsys) == (0, [])


def test_a_scaling_policy_made_at_the_console_is_changed_under_its_name(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = {"TargetValue": 30.0, "PredefinedMetricSpecification": OF_WRITES}
    ours = f"DynamoDBWriteCapacityUtilization:table/{hand.name}"
    hand.scaling("DeleteScalingPolicy", PolicyName=ours)
    hand.scaling(
        "PutScalingPolicy",
        PolicyName="by-hand",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
    assert prod("apply", environment, *ONLY) == 0
    assert lines(environment, capsys) == (0, [])


def test_a_scaling_policy_for_a_metric_of_somebodys_own_is_not_taken_for_that_of_the_utilisation(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = {"MetricName": "Waiting", "Namespace": "Queue", "Statistic": "Sum"}
    hand.scaling(
        "PutScalingPolicy",
        PolicyName="z-by-hand",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 100.0,
            "CustomizedMetricSpecification": metric,
        },
    )
    assert lines(environment, capsys) == (0, [])
    hand.target_value(30.0)
    assert prod("apply", environment, *ONLY) == 0
    assert lines(environment, capsys) == (0, [])


def test_what_no_declaration_can_say_is_reported_and_left(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.table(StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"})
    hand.alarm(OKActions=["arn:aws:sns:us-east-1:123456789012:well"], AlarmActions=[])
    hand.target_value(70.0, DisableScaleIn=True)
    described = hand.aws._after_DescribeTable

    def after(params: dict[str, Any], answer: Any) -> None:
        described(params, answer)
        answer["Table"]["TableClassSummary"] = {"TableClass": "STANDARD_INFREQUENT_ACCESS"}
        answer["Table"]["Replicas"] = [{"RegionName": "eu-west-1"}]

    hand.aws._after_DescribeTable = after  # type: ignore[method-assign]
    hand.aws.forget()
    expected = ["scaling", "alarm system-errors", "stream", "replicas", "class"]
    assert lines(environment, capsys) == (0, [f"= {name}" for name in expected])
    assert prod("plan", environment, *ONLY) == 0
    shown = capsys.readouterr().out
    for text in ("NEW_IMAGE", "eu-west-1", "STANDARD_INFREQUENT_ACCESS", "OKActions", "ScaleIn"):
        assert text in shown
    assert prod("apply", environment, *ONLY) == 0
    assert hand.aws.mutations == []


def test_what_is_left_alone_stays_when_its_alarm_or_its_policy_is_changed(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    well, unknown = (f"arn:aws:sns:us-east-1:123456789012:{name}" for name in ("well", "unknown"))
    near = "write-capacity-near-maximum"
    hand.alarm(near, AlarmActions=[], OKActions=[well], InsufficientDataActions=[unknown])
    own = {"DisableScaleIn": True, "ScaleInCooldown": 900, "ScaleOutCooldown": 30}
    hand.target_value(70.0, **own)
    assert lines(environment, capsys)[1] == ["= scaling", f"= alarm {near}"]
    assert prod("plan", environment, *ONLY) == 0
    shown = capsys.readouterr().out
    for text in (well, unknown, "ScaleInCooldown: 900", "ScaleOutCooldown: 30"):
        assert text in shown
    changed = ("--set", "max_units=100", "--set", "target_percent=60")
    assert prod("apply", environment, *ONLY, *changed) == 0
    (alarm,) = hand.aws.by_hand("cloudwatch", "DescribeAlarms", AlarmNames=[f"{hand.name}/{near}"])[
        "MetricAlarms"
    ]
    assert alarm["Threshold"] == 80.0
    assert (alarm["OKActions"], alarm["InsufficientDataActions"]) == ([well], [unknown])
    policies = hand.aws.by_hand(
        "application-autoscaling",
        "DescribeScalingPolicies",
        ServiceNamespace="dynamodb",
        ResourceId=f"table/{hand.name}",
    )["ScalingPolicies"]
    configured = [one["TargetTrackingScalingPolicyConfiguration"] for one in policies]
    assert [one["TargetValue"] for one in configured] == [60.0, 60.0]
    assert {**own, "TargetValue": 60.0, "PredefinedMetricSpecification": OF_WRITES} in configured
    (reads,) = [one for one in configured if "DisableScaleIn" not in one]
    assert reads.keys() == {"TargetValue", "PredefinedMetricSpecification"}


def test_an_index_under_construction_is_in_progress_and_no_drift(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hand.aws.look_creating_index(hand.name, "user-index")
    assert lines(environment, capsys) == (5, [])
    assert lines(environment, capsys) == (0, [])


def test_an_undeclared_index_or_table_is_reported_and_left(
    hand: Hand, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = [{"AttributeName": "failed_agent", "KeyType": "HASH"}]
    create: dict[str, Any] = {"IndexName": "by-hand", "KeySchema": key}
    create["Projection"] = {"ProjectionType": "ALL"}
    create["ProvisionedThroughput"] = {"ReadCapacityUnits": 1, "WriteCapacityUnits": 1}
    types = hand.described()["AttributeDefinitions"]
    types.append({"AttributeName": "failed_agent", "AttributeType": "S"})
    hand.table(AttributeDefinitions=types, GlobalSecondaryIndexUpdates=[{"Create": create}])
    hand.aws.by_hand(
        "dynamodb",
        "CreateTable",
        TableName=hand.name.replace(SHORT, "extra"),
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    assert lines(environment, capsys) == (0, ["= index by-hand"])
    assert prod("apply", environment) == 0
    hand.aws.forget()
    assert prod("apply", environment) == 0
    assert hand.aws.mutations == []
    assert "= extra  table  (not declared, left alone)" in capsys.readouterr().out
