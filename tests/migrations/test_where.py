"""Where a command acts, by which declaration, and what it will not do unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from botocore.session import get_session

from tdev_models import Settings, aws as clients
from tdev_models.migrations import calls
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.command import main
from tests.migrations.conftest import ENDPOINT
from tests.migrations.runs import prod, run
from tests.migrations.strict import StrictAws

ACCOUNT = "123456789012"  # moto's
ONLY = ("--table", "metrics")


@pytest.fixture
def as_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moto stand for AWS, with its account."""
    monkeypatch.setattr(calls, "_AWS_HOSTS", ("localhost",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, two below one that may hold the file of environments."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


@pytest.mark.usefixtures("as_aws")
def test_the_plan_begins_with_environment_account_region_and_endpoint(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prod("plan", environment, *ONLY)
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{environment}: account {ACCOUNT}, region us-east-1, {ENDPOINT}"
    )
    prod("plan", environment, *ONLY, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert [shown[n] for n in ("environment", "account", "region", "endpoint")] == [
        environment,
        ACCOUNT,
        "us-east-1",
        ENDPOINT,
    ]


def test_the_plan_for_a_local_engine_says_so(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prod("plan", environment, *ONLY)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{environment}: a local engine, region us-east-1, {ENDPOINT}"


def test_a_local_engine_that_the_profile_names_gets_the_calls_of_all_services(
    aws: StrictAws, environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    file = tmp_path / "config"
    file.write_text(
        f"[default]\nservices = mine\n[services mine]\ndynamodb =\n  endpoint_url = {ENDPOINT}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setattr(clients, "_clients", {})
    calls._client.cache_clear()
    assert Calls(Settings(environment=environment, region="us-east-1")).local
    assert prod("apply", environment, *ONLY) == 0
    assert {service for service, _, _ in aws.calls} >= {"application-autoscaling", "cloudwatch"}
    assert aws.endpoints == {ENDPOINT}
    calls._client.cache_clear()


def test_no_partition_of_aws_is_taken_for_a_local_engine() -> None:
    for partition in get_session().get_data("partitions")["partitions"]:
        for name in ("dnsSuffix", "dualStackDnsSuffix"):
            endpoint = f"https://dynamodb.some-region-1.{partition['outputs'][name]}"
            assert not Calls(Settings(endpoint=endpoint, region="some-region-1")).local, endpoint


@pytest.mark.usefixtures("as_aws")
def test_another_account_or_region_than_the_declared_one_is_refused_before_any_table_is_read(
    aws: StrictAws, environment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in ("plan", "apply", "status"):
        assert prod(what, environment, "--set", "account='210987654321'") == 64
        assert "declared in 210987654321, but the calls go to 123456789012" in (
            capsys.readouterr().err
        )
        assert {operation for _, operation, _ in aws.calls} == {"GetCallerIdentity"}
        aws.forget()
        assert prod(what, environment, "--set", "region=eu-west-1") == 64
        assert "set AWS_REGION=eu-west-1" in capsys.readouterr().err
        assert aws.calls == []
    for account in (f"'{ACCOUNT}'", ACCOUNT):
        here = ("--set", f"account={account}", "--set", "region=us-east-1")
        assert prod("plan", environment, *here, *ONLY) == 2


@pytest.mark.usefixtures("as_aws")
def test_an_unknown_account_stops_only_who_asks_for_one(aws: StrictAws, environment: str) -> None:
    aws.denied = {"GetCallerIdentity"}
    assert prod("plan", environment, *ONLY) == 2
    assert prod("plan", environment, *ONLY, "--set", f"account='{ACCOUNT}'") == 1


def test_the_file_of_environments_is_found_in_the_folder_or_above(
    aws: StrictAws, environment: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tdev.toml").write_text(f'[{environment}]\nlike = "prod"\nmax_units = 300\n')
    assert run("apply", environment, *ONLY) == 0
    assert f"as {folder / 'tdev.toml'} declares" in capsys.readouterr().out
    assert run("plan", environment, *ONLY) == 0
    # Another file is used only when it is named.
    (folder / "other.toml").write_text(f'[{environment}]\nlike = "prod"\nmax_units = 301\n')
    assert run("plan", environment, *ONLY, "--config", str(folder / "other.toml")) == 2


@pytest.mark.parametrize("name", ["prod", "dev"])
def test_a_setting_above_all_sections_is_named_and_not_ignored(
    aws: StrictAws, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / "tdev.toml").write_text(f'account = "{ACCOUNT}"\n[prod]\nmax_units = 60\n')
    assert run("plan", name, *ONLY) == 64
    assert "config: account must be a section, or stand in one such as [prod]" in (
        capsys.readouterr().err
    )
    assert aws.calls == []


def test_a_section_that_no_environment_can_have_is_named_and_not_ignored(
    aws: StrictAws, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tdev.toml").write_text(f'[production]\nlike = "prod"\naccount = "{ACCOUNT}"\n')
    for name in ("production", "prod"):
        assert run("plan", name, *ONLY) == 64
        assert "call the section [prod]" in capsys.readouterr().err
    assert aws.calls == []


def test_without_its_file_an_environment_is_not_rewritten(
    aws: StrictAws, environment: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/mine"
    topic = f"arn:aws:sns:us-east-1:{ACCOUNT}:pager"
    file = folder / "elsewhere.toml"
    file.write_text(
        f'[{environment}]\nlike = "prod"\nread_units = 300\nwrite_units = 300\nmin_units = 300\n'
        f'max_units = 900\nencryption = "{key}"\nalarm_topic = "{topic}"\n'
    )
    assert run("apply", environment, *ONLY, "--config", str(file)) == 0
    aws.forget()
    capsys.readouterr()
    assert prod("apply", environment, *ONLY) == 3
    assert aws.mutations == []
    shown = capsys.readouterr()
    for name in ("lower-capacity", "change-key", "silence-alarms"):
        assert f"--allow {name}:metrics" in shown.out
        assert f"--allow {name}:metrics" in shown.err  # a log has it, even without the plan
    aws.by_hand(
        "dynamodb",
        "UpdateTable",
        TableName=f"t-developer-{environment}-metrics",
        BillingMode="PAY_PER_REQUEST",
    )
    assert run("apply", environment, *ONLY, "--config", str(file)) == 3
    assert "--allow end-on-demand:metrics" in capsys.readouterr().err


def test_the_file_allows_as_well_as_the_command_and_to_nobody_else(
    aws: StrictAws, environment: str, folder: Path
) -> None:
    assert prod("apply", environment, *ONLY, "--set", "max_units=60") == 0
    file = folder / "tdev.toml"
    allow = 'allow = ["lower-capacity:metrics"]'
    file.write_text(f'[{environment}]\nlike = "other"\n[other]\nlike = "prod"\n{allow}\n')
    assert run("plan", environment, *ONLY) == 3
    file.write_text(f'[{environment}]\nlike = "prod"\n{allow}\n')
    assert run("apply", environment, *ONLY) == 0
    file.write_text(f'[{environment}]\nlike = "prod"\nallow = ["lower-capacty:metrics"]\n')
    assert run("plan", environment, *ONLY) == 64


def test_like_takes_what_the_file_says_of_the_other_environment(
    aws: StrictAws, environment: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "tdev.toml"
    file.write_text(f'[prod]\nmax_units = 77\n[{environment}]\nlike = "prod"\nbackup_days = 7\n')
    assert run("plan", environment, *ONLY) == 2
    shown = capsys.readouterr().out
    assert "scaling: 5-77" in shown
    assert "pitr: 7 days" in shown
    file.write_text(f'[{environment}]\nlike = "x"\n[x]\nlike = "{environment}"\n')
    assert main(["plan", "--env", environment]) == 64
