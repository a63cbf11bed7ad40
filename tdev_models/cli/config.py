"""`tdev config`: what is set, and from where."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from typing import NamedTuple

import botocore.session

from tdev_models import aws, settings
from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import Screen, place
from tdev_models.cli.tables import Column, Table
from tdev_models.dynamodb.transports.target import configured_endpoint
from tdev_models.settings import Settings

# The variables of what is not set by TDEV_ and the setting's name, the first first.
_VARIABLES = {
    "environment": ("TDEV_ENV",),
    "prefix": ("TDEV_TABLE_PREFIX",),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "endpoint": ("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"),
}
# What only programs set.
_OF_PROGRAMS = ("on_request", "json_default", "clock")


class Setting(NamedTuple):
    """One setting: its value, and where that is from."""

    name: str
    value: str
    source: str
    variable: str


def config(options: argparse.Namespace) -> int:
    """Print every setting that the environment gives."""
    screen = Screen(options.json)
    screen.print(place())
    found = settings_in_force(options)
    for setting in found:
        screen.line(setting._asdict())
    columns: list[Column[Setting]] = [
        Column(head="setting", cell=lambda one: one.name, kind="name"),
        Column(head="value", cell=lambda one: one.value, kind="name"),
        Column(head="from", cell=lambda one: one.source),
        Column(head="set by", cell=lambda one: one.variable, kind="name", drop=1),
    ]
    screen.print(Table("What is set", columns, found))
    return DONE


def settings_in_force(options: argparse.Namespace) -> list[Setting]:
    """Return the settings of the package, and AWS's own."""
    chosen = settings.current()
    found = []
    for field in fields(Settings):
        if field.name in _OF_PROGRAMS:
            continue
        value = getattr(chosen, field.name)
        names = _VARIABLES.get(field.name, (f"TDEV_{field.name.upper()}",))
        variable = next((name for name in names if os.environ.get(name)), None)
        option = {"environment": "env"}.get(field.name, field.name)
        source = "default" if value == field.default else "program"
        if getattr(options, option, None):
            source = f"--{option}"
        elif variable and value is not None:  # an endpoint may be ignored
            source = variable
        found.append(Setting(field.name, _shown(value), source, names[0]))
    return [*found, *_of_aws(chosen)]


def _shown(value: object) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(value) if isinstance(value, tuple) else f"{value}"


@aws.configuring()
def _of_aws(chosen: Settings) -> list[Setting]:
    """Return profile, region and where credentials come from, never what they are."""
    session = botocore.session.get_session()
    profile = session.get_config_variable("profile")
    found = [Setting("aws profile", profile or "default", _from("AWS_PROFILE"), "AWS_PROFILE")]
    if chosen.region is None:
        region = session.get_config_variable("region")
        source = "AWS configuration file" if region else "nowhere"
        found.append(Setting("aws region", region or "(not set)", source, "AWS_REGION"))
    if chosen.endpoint is None and (endpoint := configured_endpoint(session)):
        url = aws.without_user(endpoint)
        found.append(
            Setting("aws endpoint", url, "AWS configuration file", _VARIABLES["endpoint"][0])
        )
    credentials = session.get_credentials()
    where = "none found" if credentials is None else credentials.method
    name = "AWS_ACCESS_KEY_ID"
    return [
        *found,
        Setting("aws credentials", "(hidden)" if credentials else "(none)", where, name),
    ]


def _from(variable: str) -> str:
    return variable if os.environ.get(variable) else "default"
