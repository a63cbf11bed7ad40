"""Settings: the environment, configure() and use()."""

from __future__ import annotations

import pytest

from tdev_models import InvalidRequest, PipelineSession, Settings, configure, settings


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
            "AWS_ENDPOINT_URL": "http://a",
            "AWS_ENDPOINT_URL_DYNAMODB": "http://b",
        }
    )
    assert (only_default.region, only_default.endpoint) == ("r", "http://b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("environment", "Dev"),
        ("environment", "a b"),
        ("prefix", ""),
        ("lease_seconds", 0),
        ("lease_seconds", float("nan")),
        ("stalled_after_seconds", 100),
        ("endpoint", "127.0.0.1:8000"),
        ("lease", 1),
    ],
)
def test_a_wrong_setting_names_the_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "), settings.use(**{field: value}):
        pass


def test_a_variable_that_is_no_number_names_itself() -> None:
    with pytest.raises(InvalidRequest, match="TDEV_LEASE_SECONDS is not a number"):
        Settings.from_env({"TDEV_LEASE_SECONDS": "soon"})


def test_production_data_travels_by_https_only() -> None:
    with pytest.raises(InvalidRequest, match=r"^endpoint: "):
        Settings(environment="prod", endpoint="http://dynamodb.example")
    Settings(environment="prod", endpoint="http://127.0.0.1:8000")
    Settings(environment="prod", endpoint="https://dynamodb.example")


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
