from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.httpsession import URLLib3Session

from tdev_models.migrations import calls
from tdev_models.migrations.apply import apply_all
from tdev_models.migrations.calls import Calls
from tdev_models.models import UserProject
from tdev_models.settings import Settings
from tests import raw
from tests.migrations.runs import apply, declare, model, prod, run
from tests.migrations.strict import StrictAws


@pytest.mark.parametrize("rules", [True, False], ids=["as documented", "moto alone"])
@pytest.mark.parametrize("like", ["dev", "prod"])
def test_a_second_apply_sends_no_mutation_and_plan_is_clean(
    aws: StrictAws, environment: str, like: str, rules: bool
) -> None:
    aws.rules = rules
    profile = ["--set", f"like={like}"]
    assert run("plan", environment, *profile) == 2
    assert aws.mutations == []
    assert run("apply", environment, *profile) == 0
    assert aws.mutations
    aws.forget()
    assert run("apply", environment, *profile) == 0
    assert aws.mutations == []
    assert run("plan", environment, *profile) == 0
    assert run("status", environment, *profile) == 0


@pytest.mark.parametrize("rules", [True, False], ids=["as documented", "moto alone"])
def test_prod_is_what_the_plan_asks_for(aws: StrictAws, environment: str, rules: bool) -> None:
    aws.rules = rules
    assert prod("apply", environment) == 0
    name = f"t-developer-{environment}-pipeline-sessions"
    live = aws.by_hand("dynamodb", "DescribeTable", TableName=name)["Table"]
    assert live["DeletionProtectionEnabled"]
    assert live["BillingModeSummary"]["BillingMode"] == "PROVISIONED"
    for described in [live, *live["GlobalSecondaryIndexes"]]:
        assert described["ProvisionedThroughput"]["ReadCapacityUnits"] == 5
        assert described["ProvisionedThroughput"]["WriteCapacityUnits"] == 5
    backups = aws.by_hand("dynamodb", "DescribeContinuousBackups", TableName=name)
    recovery = backups["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    assert recovery["PointInTimeRecoveryStatus"] == "ENABLED"
    targets = aws.by_hand(
        "application-autoscaling", "DescribeScalableTargets", ServiceNamespace="dynamodb"
    )["ScalableTargets"]
    ours = [t for t in targets if t["ResourceId"].startswith(f"table/{name}")]
    assert {(t["MinCapacity"], t["MaxCapacity"]) for t in ours} == {(5, 50)}
    assert len(ours) == 8
    alarms = aws.by_hand("cloudwatch", "DescribeAlarms", AlarmNamePrefix=f"{name}/")["MetricAlarms"]
    assert len(alarms) == 17
    policies = aws.by_hand(
        "application-autoscaling", "DescribeScalingPolicies", ServiceNamespace="dynamodb"
    )["ScalingPolicies"]
    scaled = {(t["ResourceId"], t["ScalableDimension"]) for t in targets}
    assert {(p["ResourceId"], p["ScalableDimension"]) for p in policies} == scaled
    assert len(policies) == len(scaled) == 2 * 10
    assert all("FILL(" in alarm["Metrics"][-1]["Expression"] for alarm in alarms)


def test_dev_becomes_prod_on_the_same_tables(aws: StrictAws, environment: str) -> None:
    assert run("apply", environment, "--set", "like=dev") == 0
    allow = [f"--allow=end-on-demand:{table}" for table in raw.KEYS]
    assert prod("apply", environment) == 3
    assert prod("apply", environment, *allow) == 0
    assert prod("plan", environment) == 0
    billing = [params for _, op, params in aws.calls if "BillingMode" in params and op[0] == "U"]
    assert len(billing) == 4


def test_prod_becomes_dev_again_once_each_loss_is_allowed(aws: StrictAws, environment: str) -> None:
    only = ["--table=user-projects"]
    losses = ("disable-protection", "disable-pitr", "change-key", "silence-alarms")
    allow = [f"--allow={kind}:user-projects" for kind in losses]
    assert prod("apply", environment, *only) == 0
    assert run("apply", environment, "--set", "like=dev", *only) == 3
    assert run("apply", environment, "--set", "like=dev", *only, *allow) == 0
    assert run("plan", environment, "--set", "like=dev", *only) == 0
    scaled = 1 + len(UserProject._indexes)  # reads and writes of the table and of each index
    assert aws.mutations.count("DeregisterScalableTarget") == 2 * scaled


def test_what_dynoxide_does_not_know_is_not_checked_and_the_rest_is_applied(
    dynoxide: str,
    environment: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", dynoxide)
    assert prod("plan", environment) == 2
    assert prod("apply", environment) == 0
    capsys.readouterr()
    assert prod("plan", environment) == 0
    shown = capsys.readouterr().out
    for part in ("pitr", "scaling", "alarm"):
        assert f"{part}  (not checked: this endpoint does not know" in shown


def test_dynoxide_accepts_a_new_index_another_ttl_and_a_dropped_index(
    dynoxide: str, environment: str
) -> None:
    settings = Settings(environment=environment, region="us-east-1", endpoint=dynoxide)
    apply(settings, declare(settings, model({"by-a": ["a"]}, ttl="old_expiry")))
    changed = declare(settings, model({"by-b": ["b", "c"]}, ttl="expires_at"), tags={"team": "x"})
    assert apply(settings, changed, {"delete-index:things/by-a"}) == 5
    assert apply(settings, changed) == 0


@pytest.mark.usefixtures("short_reads")
def test_an_endpoint_that_accepts_no_connection_is_an_error(
    environment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert run("plan", environment, "--set", "like=dev", "--table", "metrics") == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.usefixtures("short_reads")
def test_a_part_that_cannot_be_read_is_an_error_and_never_clean(
    aws: StrictAws, like_prod: str
) -> None:
    aws.throttled["DescribeAlarms"] = 10_000
    assert prod("plan", like_prod, "--table=metrics") == 1
    aws.throttled.clear()
    assert prod("plan", like_prod, "--table=metrics") == 0


def test_a_table_that_is_being_created_is_in_progress_and_no_part_of_it_reads_as_absent(
    aws: StrictAws, like_prod: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"t-developer-{like_prod}-metrics"
    aws.look_creating(name, times=1)
    capsys.readouterr()
    assert prod("plan", like_prod, "--table=metrics") == 5
    assert "\n+ " not in capsys.readouterr().out
    aws.look_creating(name, times=3)
    aws.forget()
    assert prod("apply", like_prod, "--table=metrics") == 0
    assert aws.mutations == []


def test_apply_all_creates_the_tables_of_any_settings(dynoxide: str, environment: str) -> None:
    settings = Settings(environment=environment, region="us-east-1", endpoint=dynoxide)
    assert apply_all(settings) == 6
    assert apply_all(settings) == 0


def test_a_local_endpoint_keeps_every_service_local(
    aws: StrictAws, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    calls._client.cache_clear()  # clients of other tests were made with the variable
    profile = {"billing": "provisioned", "autoscaling": True, "alarms": True, "encryption": "kms"}
    apply(settings, declare(settings, model({}), **profile))
    assert {service for service, _, _ in aws.calls} == {
        "dynamodb",
        "application-autoscaling",
        "cloudwatch",
        "kms",
    }
    assert aws.endpoints == {settings.endpoint}


def test_an_endpoint_of_aws_is_for_dynamodb_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sent(BaseException):
        pass

    def send(session: Any, request: Any) -> Any:
        raise Sent(urlsplit(request.url).hostname)

    monkeypatch.setattr(URLLib3Session, "send", send)
    private = "vpce-1.dynamodb.eu-west-1.vpce.amazonaws.com"
    send_to = Calls(Settings(endpoint=f"https://{private}", region="eu-west-1"))
    with pytest.raises(Sent, match=private):
        send_to("UpdateTable", TableName="t")
    with pytest.raises(Sent, match=r"monitoring\.eu-west-1\.amazonaws\.com"):
        send_to("DeleteAlarms", AlarmNames=["t"])
