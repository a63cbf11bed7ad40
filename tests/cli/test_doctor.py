"""`tdev doctor` and `tdev config`: what is wrong, what is set, and from where."""

from __future__ import annotations

import itertools
import pwd
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tdev_models import Settings, aws, settings
from tdev_models.cli import doctor, engine, main
from tdev_models.errors import AccessDenied
from tdev_models.migrations import calls
from tdev_models.migrations.apply import apply_all
from tests.cli.conftest import Tdev
from tests.transport.wire import ok, wired


@pytest.fixture
def store(strict_store: Settings) -> Settings:
    """Tables as migrations leave them."""
    apply_all(strict_store)
    return strict_store


def states(tdev: Tdev, *arguments: str) -> dict[str, str]:
    return {one["check"]: one["state"] for one in tdev("doctor", *arguments, "--json").lines}


def test_a_good_set_up_is_all_well_and_nothing_is_written(store: Settings, tdev: Tdev) -> None:
    printed = tdev("doctor")
    assert printed.code == 0
    assert printed.out.endswith("All well.\n")
    assert set(states(tdev).values()) == {"ok"}
    tables = ("pipeline-sessions", "agent-executions", "user-projects", "metrics")
    assert {f"{what} {table}" for what in ("table", "access") for table in tables} <= set(
        states(tdev)
    )
    client = aws.dynamodb(store)
    for table in tables:
        assert client.scan(TableName=store.table_name(table))["Items"] == []


def test_missing_and_outdated_tables_are_wrong_and_have_their_remedy(
    store: Settings, tdev: Tdev
) -> None:
    client = aws.dynamodb(store)
    client.delete_table(TableName=store.table_name("metrics"))
    client.update_table(
        TableName=store.table_name("user-projects"),
        GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": "recent-index"}}],
    )
    printed = tdev("doctor")
    assert printed.code == 1
    text = " ".join(printed.out.split())
    assert "table metrics wrong does not exist" in text
    assert "table user-projects wrong is not as declared: + index recent-index" in text
    remedy = f" tdev migrate apply --env {store.environment} --set like=dev'"
    assert "table user-projects, table metrics: look with" in text
    assert remedy in text
    assert states(tdev)["access user-projects"] == "wrong"  # the index cannot be queried
    assert "access metrics" not in states(tdev)


def test_tables_are_as_the_file_of_environments_declares_them(
    store: Settings, tdev: Tdev, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, value in (("REGION", store.region), ("ENDPOINT_URL_DYNAMODB", store.endpoint)):
        monkeypatch.setenv(f"AWS_{variable}", str(value))
    file, section = tmp_path / "tdev.toml", f'[{store.environment}]\nlike = "dev"\n'
    file.write_text(f"{section}deletion_protection = true\n")
    (change,) = {one["found"] for one in tdev("doctor", "--json").lines if one["state"] == "wrong"}
    assert change == "is not as declared: + protection "
    command = f"tdev migrate apply --env {store.environment}"
    assert f"'{command}'" in tdev("doctor", width=60).out
    assert main([*command.split()[1:], "--yes"]) == 0
    assert set(states(tdev).values()) == {"ok"}
    file.write_text(f"{section}nonsense = true\n")
    assert states(tdev)["tdev.toml"] == "wrong"


@pytest.mark.parametrize("declared", [True, False])
def test_a_remedy_acts_where_the_doctor_looked(
    store: Settings,
    tdev: Tdev,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    declared: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1")
    other = f"{store.environment}-{declared}".lower()
    (tmp_path / "tdev.toml").write_text(f'[{other}]\nlike = "dev"\n' * declared)
    printed = tdev("doctor", "--env", other, "--json").lines
    (remedy,) = {one["remedy"] for one in printed if one["state"] == "wrong"}
    assert remedy.count("AWS_REGION=us-east-1") == 2
    words = shlex.split(remedy.split("'")[3])
    place = dict(word.split("=", 1) for word in words if word.startswith("AWS_"))
    monkeypatch.setattr(settings, "_configured", None)
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main([*words[len(place) + 1 :], "--yes"]) == 0
    assert set(states(tdev, "--env", other).values()) == {"ok"}


def test_each_denied_permission_is_named(
    store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denying(chosen: Settings, operation: str, request: Mapping[str, Any]) -> Any:
        assert operation != "PutItem"  # which the role need not be allowed
        if operation == "UpdateItem" or request.get("IndexName") == "status-index":
            raise AccessDenied(f"not authorized to perform: dynamodb:{operation}")
        return call(chosen, operation, request)

    call = aws.call
    monkeypatch.setattr(aws, "call", denying)
    found = {one["check"]: one for one in tdev("doctor", "--json").lines}
    assert found["access pipeline-sessions"]["found"] == "denied: Query on status-index, UpdateItem"
    assert found["access metrics"]["found"] == "denied: UpdateItem"
    assert f"tdev iam runtime --env {store.environment}" in found["access metrics"]["remedy"]


def test_a_clock_that_is_off_is_wrong(
    store: Settings, tdev: Tdev, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    (clock,) = (one for one in doctor.findings() if one.check == "clock")
    assert clock.state == "wrong"
    assert clock.found.startswith(("+59", "+60"))
    assert "synchronise" in clock.remedy


@pytest.mark.parametrize(
    ("answers_third", "found"),
    [(False, "no answer: "), (True, "the endpoint does not tell the time")],
    ids=["no answer", "no date"],
)
def test_a_clock_that_cannot_be_read_hides_nothing_else(answers_third: bool, found: str) -> None:
    text = b'{"__type": "ResourceNotFoundException", "message": "no table"}'
    head = b"HTTP/1.1 400 Bad Request\r\nDate: yesterday\r\nContent-Length: %d\r\n\r\n" % len(text)
    numbers = itertools.count(1)
    with wired() as wire:
        # The first two requests ask for the endpoint, the third for its clock.
        wire.answer = lambda _: b"" if next(numbers) == 3 and not answers_third else head + text
        with settings.use(wire.settings()):
            findings = {one.check: one for one in doctor.findings()}
    assert findings["clock"].state == "unknown"
    assert findings["clock"].found.startswith(found)
    assert findings["table metrics"].found == "does not exist"


def test_what_is_not_dynamodb_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LOCAL", calls.LOCAL._replace(read=0))
    with wired() as wire:
        wire.answer = lambda _: ok({"status": "up"})
        with settings.use(wire.settings(retry_seconds=0)):
            findings = {one.check: one for one in doctor.findings()}
    table = findings["table metrics"]
    assert table.state == "unknown"
    assert table.found.endswith("is not that of DynamoDB")


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Neither region nor credentials."""
    monkeypatch.setattr(settings, "_configured", None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_without_region_and_credentials_both_remedies_are_told(
    nothing_set: pytest.MonkeyPatch, tdev: Tdev
) -> None:
    found = states(tdev)
    assert (found["region"], found["credentials"]) == ("wrong", "wrong")
    assert "endpoint" not in found
    text = tdev("doctor").out
    assert "region: export AWS_REGION" in text
    assert "credentials: export AWS_PROFILE" in text


@pytest.mark.parametrize("line", ["region = x\ncredential_process = /none/such", "["])
def test_an_aws_configuration_that_is_not_usable_is_told(
    nothing_set: pytest.MonkeyPatch, tdev: Tdev, tmp_path: Path, line: str
) -> None:
    (tmp_path / "config").write_text(f"[profile p]\n{line}\n")
    nothing_set.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    nothing_set.setenv("AWS_PROFILE", "p")
    assert states(tdev)["credentials"] == "wrong"
    assert tdev("config").code == 1


def test_config_says_which_endpoint_the_profile_names(
    nothing_set: pytest.MonkeyPatch, tdev: Tdev, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        "[profile p]\nendpoint_url = https://me:secret@dynamo.lan:8000\n"
    )
    nothing_set.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    nothing_set.setenv("AWS_PROFILE", "p")
    found = {one["name"]: one for one in tdev("config", "--json").lines}["aws endpoint"]
    assert (found["value"], found["source"]) == (
        "https://***@dynamo.lan:8000",
        "AWS configuration file",
    )


def test_a_profile_that_is_missing_is_told(nothing_set: pytest.MonkeyPatch, tdev: Tdev) -> None:
    nothing_set.setenv("AWS_PROFILE", "none")
    found = states(tdev)
    assert (found["region"], found["credentials"]) == ("wrong", "wrong")
    assert tdev("config").err == "error: The config profile (none) could not be found\n"


def test_an_endpoint_without_an_answer_is_wrong(
    nothing_set: pytest.MonkeyPatch, tdev: Tdev
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        nothing_set.setenv(name, "x")
    found = states(tdev, "--endpoint", "http://127.0.0.1:1")
    assert found["endpoint"] == "wrong"
    assert "clock" not in found


def test_a_user_without_a_home_is_told_the_rest(
    nothing_set: pytest.MonkeyPatch, tdev: Tdev
) -> None:
    """As an application's container runs it."""

    def nobody(number: int) -> NoReturn:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", engine.OWN):
        nothing_set.delenv(name, raising=False)
    nothing_set.setattr(pwd, "getpwuid", nobody)
    found = {one["check"]: one for one in tdev("doctor", "--json").lines}
    assert found["local engine"]["found"].startswith("this user has no home")
    assert found["region"]["state"] == "wrong"


def test_a_wrong_variable_is_named(nothing_set: pytest.MonkeyPatch, tdev: Tdev) -> None:
    nothing_set.setenv("TDEV_LEASE_SECONDS", "soon")
    printed = tdev("doctor")
    assert printed.code == 1
    assert "TDEV_LEASE_SECONDS is not a number" in printed.out
    config = tdev("config")
    assert (config.code, config.out) == (64, "")
    assert "TDEV_LEASE_SECONDS is not a number" in config.err


def test_config_says_what_is_set_and_from_where(
    nothing_set: pytest.MonkeyPatch, tdev: Tdev
) -> None:
    nothing_set.setenv("TDEV_ENV", "production")
    nothing_set.setenv("TDEV_TRANSPORT", "botocore")
    nothing_set.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    nothing_set.setenv("AWS_ACCESS_KEY_ID", "AKIASECRET")
    nothing_set.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    given = tdev("config", "--endpoint", "http://127.0.0.1:1", "--json")
    found = {one["name"]: (one["value"], one["source"]) for one in given.lines}
    assert found["environment"] == ("prod", "TDEV_ENV")
    assert found["region"] == ("eu-west-1", "AWS_DEFAULT_REGION")
    assert found["endpoint"] == ("http://127.0.0.1:1", "--endpoint")
    assert found["lease_seconds"] == ("30.0", "default")
    assert found["transport"] == ("botocore", "TDEV_TRANSPORT")
    assert found["aws credentials"] == ("(hidden)", "env")
    assert "SECRET" not in given.out.upper()
    nothing_set.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    nothing_set.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    ignored = {one["name"]: one for one in tdev("config", "--json").lines}["endpoint"]
    assert (ignored["value"], ignored["source"]) == ("(not set)", "default")
    variables = {one["variable"] for one in given.lines}
    assert {"TDEV_AGENTS", "TDEV_JSON_NAN", "AWS_PROFILE"} <= variables
    assert tdev("config", width=60).out.startswith(" PROD  t-developer-prod-* on eu-west-1\n")
