"""Settings: the environment, configure() and use()."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from dataclasses import dataclass, fields
from typing import Any

import pytest

from tdev_models import AGENTS, InvalidRequest, PipelineSession, Settings, configure, settings
from tdev_models.settings import Transport

NUMBERS = [one.name for one in fields(Settings) if str(one.type) in ("float", "float | None")]
VARIABLES = {
    **{one.name: f"TDEV_{one.name.upper()}" for one in fields(Settings)},
    "environment": "TDEV_ENV",
    "prefix": "TDEV_TABLE_PREFIX",
    "region": "AWS_REGION",
    "endpoint": "AWS_ENDPOINT_URL",
}
ONLY_IN_PROGRAMS = {"on_request", "transport", "clock", "json_default"}


@dataclass(frozen=True)
class HoldsAList:
    """A hook that looks hashable."""

    seen: list[object]

    def __call__(self, event: object) -> None:
        self.seen.append(event)


@dataclass
class Unhashable:
    """A transport whose settings could not name a client."""

    def __call__(self, send: Transport) -> Transport:
        return send


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_configured", None)


def test_the_environment_gives_the_settings() -> None:
    found = Settings.from_env(
        {
            "TDEV_ENV": "production",
            "AWS_REGION": "eu-west-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": "https://x.example",
            "TDEV_LEASE_SECONDS": "2.5",
            "TDEV_STALLED_AFTER_SECONDS": "10",
            "TDEV_TABLE_PREFIX": "other",
        }
    )
    assert found == Settings(
        environment="prod",
        region="eu-west-1",
        endpoint="https://x.example",
        lease_seconds=2.5,
        stalled_after_seconds=10,
        prefix="other",
    )
    assert found.table_name("metrics") == "other-prod-metrics"
    assert Settings.from_env({}) == Settings()
    only_default = Settings.from_env(
        {
            "AWS_DEFAULT_REGION": "r",
            "AWS_ENDPOINT_URL": "https://a",
            "AWS_ENDPOINT_URL_DYNAMODB": "https://b",
        }
    )
    assert (only_default.region, only_default.endpoint) == ("r", "https://b")


@pytest.mark.parametrize(("ignore", "endpoint"), [("True", None), ("false", "https://a")])
def test_endpoints_of_the_environment_are_ignored_where_botocore_ignores_them(
    ignore: str, endpoint: str | None
) -> None:
    found = Settings.from_env(
        {"AWS_ENDPOINT_URL": "https://a", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": ignore}
    )
    assert found.endpoint == endpoint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("environment", "Dev"),
        ("environment", "a b"),
        ("prefix", ""),
        ("lease_seconds", 0),
        ("lease_seconds", float("nan")),
        ("lease_seconds", "60"),
        ("stalled_after_seconds", float("inf")),
        ("retention_days", float("inf")),
        ("retention_days", "30"),
        ("retention_days", -1),
        ("environment", 5),
        ("clock", 5),
        ("transport", Unhashable()),
        ("on_request", HoldsAList([])),
        *((name, asyncio.sleep) for name in sorted(ONLY_IN_PROGRAMS)),
        ("endpoint", "http://dynamodb_local:8000"),
        ("endpoint", "http://[::1"),
        ("endpoint", "http://localhost:99999"),
        ("stalled_after_seconds", 50),
        ("endpoint", "127.0.0.1:8000"),
        ("endpoint", 8000),
        ("region", ["eu-west-1"]),
        ("region", "eu west"),
        ("release", ""),
        ("release", 2.7),
        ("release", "2.7\udcff"),
        ("max_connections", True),
        ("agents", 5),
        ("kms_fields", 5),
        ("allow_http", "off"),
        ("automatic_metrics", "off"),
        ("cancel_when_out_of_touch", 1),
        ("tracebacks", None),
        ("kms_strict", "off"),
        ("lease", 1),
    ],
)
def test_a_wrong_setting_names_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "), settings.use(**{field: value}):
        pass


@pytest.mark.parametrize("field", [one.name for one in fields(Settings)])
def test_a_setting_is_explained(field: str) -> None:
    assert re.search(rf"\n {{4}}{field}: ", inspect.getdoc(Settings) or ""), (
        f"say what {field} means, under Attributes of the docstring of Settings"
    )
    variable = VARIABLES[field]
    assert field in ONLY_IN_PROGRAMS or variable in (Settings.from_env.__doc__ or ""), (
        f"read {field} from {variable} in Settings.from_env and name the variable in its "
        "docstring, or add the field to ONLY_IN_PROGRAMS here"
    )


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_is_checked_and_read_from_the_environment(field: str) -> None:
    accepted = [wrong for wrong in ("5000", -1, float("nan"), True) if takes(field, wrong)]
    assert not accepted, (
        f"{field} takes {accepted}: name it in _SECONDS_ABOVE_0 or _SECONDS_FROM_0, or check it in "
        "Settings.__post_init__"
    )
    found = Settings.from_env({VARIABLES[field]: "50", "TDEV_STALLED_AFTER_SECONDS": "5000"})
    if field != "stalled_after_seconds":
        assert getattr(found, field) == 50, f"Settings.from_env does not read {VARIABLES[field]}"


def takes(field: str, value: Any) -> bool:
    try:
        Settings(**{field: value})
    except InvalidRequest:
        return False
    return True


def test_a_variable_that_is_no_number_names_itself() -> None:
    with pytest.raises(InvalidRequest, match="TDEV_LEASE_SECONDS is not a number"):
        Settings.from_env({"TDEV_LEASE_SECONDS": "soon"})


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_wrong_region_names_the_variables_that_are_read(variable: str) -> None:
    with pytest.raises(InvalidRequest, match=r"\(AWS_REGION or AWS_DEFAULT_REGION\)$"):
        Settings.from_env({variable: "us east"})


def test_use_overrides_configure_which_overrides_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TDEV_ENV", "from-env")
    assert PipelineSession.Meta.table_name == "t-developer-from-env-pipeline-sessions"
    configure(environment="configured", region="r")
    assert PipelineSession.Meta.table_name == "t-developer-configured-pipeline-sessions"
    with settings.use(environment="inner") as chosen:
        assert (chosen.environment, chosen.region) == ("inner", "r")
        assert PipelineSession.Meta.table_name == "t-developer-inner-pipeline-sessions"
    assert settings.current().environment == "configured"


def test_the_environment_is_read_again_where_it_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "_configured", None)
    monkeypatch.setenv("TDEV_ENV", "one")
    first = settings.current()
    assert settings.current() is first
    monkeypatch.setenv("TDEV_ENV", "two")
    assert settings.current().environment == "two"
    os.environ["TDEV_ENV"] = "one"
    assert settings.current() == first
    with monkeypatch.context() as inner:
        inner.setattr(os, "environ", {"TDEV_ENV": "of another kind"})
        assert settings.current() == settings.current() == Settings.from_env()
    monkeypatch.setenv("TDEV_RETRY_SECONDS", "no number")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="TDEV_RETRY_SECONDS"):
            settings.current()


def test_the_agents_are_names_in_their_order() -> None:
    assert Settings().agents == AGENTS
    assert Settings.from_env({"TDEV_AGENTS": "plan, code"}).agents == ("plan", "code")
    assert Settings(agents=["plan"]).agents == ("plan",)  # type: ignore[arg-type]
    for wrong in (
        "plan",
        (),
        ("a", "a"),
        ("a#b",),
        ("a@b",),
        ("",),
        (1,),
        [f"a{n}" for n in range(100)],
    ):
        with pytest.raises(InvalidRequest, match=r"^agents: "):
            Settings(agents=wrong)  # type: ignore[arg-type]


KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234-abcd"


def test_the_environment_gives_the_keys_of_encrypted_fields() -> None:
    found = Settings.from_env(
        {
            "TDEV_KMS_KEY": KEY,
            "TDEV_KMS_FORMER_KEYS": f"{KEY}0, {KEY}1",
            "TDEV_KMS_FIELDS": "output_data,metadata",
            "TDEV_KMS_STRICT": "on",
        }
    )
    assert (found.kms_key, found.kms_former_keys) == (KEY, (f"{KEY}0", f"{KEY}1"))
    assert (found.kms_fields, found.kms_strict) == (("output_data", "metadata"), True)
    assert Settings().kms_key is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"kms_key": "alias/mine"}, "kms_key: 'alias/mine' is not the ARN of a key"),
        ({"kms_key": 7}, "kms_key: 7 is not the ARN of a key"),
        ({"kms_former_keys": KEY}, "kms_former_keys: must be a list"),
        ({"kms_former_keys": ("x",)}, "kms_former_keys: 'x' is not the ARN"),
        ({"kms_fields": ("output",)}, "kms_fields: 'output' is not one of input_data"),
        ({"kms_strict": True}, "kms_strict: needs kms_key"),
    ],
)
def test_a_wrong_setting_of_encrypted_fields_is_named(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(problem)}"):
        Settings(**changes)


def test_a_list_may_come_one_by_one() -> None:
    assert Settings(kms_fields=map(str, ["output_data"])).kms_fields == ("output_data",)  # type: ignore[arg-type]
