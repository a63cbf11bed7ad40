"""The settings of an environment: billing, capacity, protection, backups, encryption, alarms."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from tdev_models.errors import InvalidRequest

_ARN = r"arn:aws[a-z-]*:{}:[a-z0-9-]+:\d{{12}}:{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The settings of one environment; the defaults are those of `dev`.

    Attributes:
        billing: `on-demand` or `provisioned`.
        read_units: provisioned read units of each table and of each index; with auto scaling at
            most `max_units`.
        write_units: provisioned write units, likewise.
        most_reads: the read units a second that an on-demand table, and each index, takes at most;
            0 is no limit.
        most_writes: the write units a second, likewise.
        autoscaling: whether auto scaling sets the provisioned units by the load.
        min_units: the least that auto scaling may set, for reads and for writes.
        max_units: the most that auto scaling may set.
        target_percent: the utilisation that auto scaling aims at, 20-90.
        deletion_protection: whether DynamoDB refuses to delete the table.
        backup_days: how far back point-in-time recovery reaches, 1-35; 0 turns it off.
        encryption: `aws-owned`, `kms` (the account's key for DynamoDB) or the ARN of a key.
        alarms: whether CloudWatch alarms exist.
        alarm_topic: ARN of the SNS topic that alarms notify; empty means none.
        tags: tags besides `application` and `environment`.
        account: the AWS account that it is in, 12 digits; another is refused. Empty means any.
        region: the region that it is in; another is refused. Empty means any.
        allow: what `--allow` allows, such as `delete-index:user-projects/old-index`.
        tables: other settings for `TABLE`, or units for `TABLE/INDEX`, which has the table's else.
    """

    billing: str = "on-demand"
    read_units: int = 5
    write_units: int = 5
    most_reads: int = 0
    most_writes: int = 0
    autoscaling: bool = False
    min_units: int = 5
    max_units: int = 50
    target_percent: float = 70.0
    deletion_protection: bool = False
    backup_days: int = 0
    encryption: str = "aws-owned"
    alarms: bool = False
    alarm_topic: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    account: str = ""
    region: str = ""
    allow: Sequence[str] = field(default_factory=list)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, (wanted, form) = getattr(self, setting.name), _TYPES[str(setting.type)]
            if type(value) is int and wanted is float:
                object.__setattr__(self, setting.name, float(value))
            elif type(value) is not wanted:
                raise InvalidRequest(setting.name, f"must be {form}, not {value!r}")
        for name, (valid, rule) in _RULES.items():
            if not valid(self):
                raise InvalidRequest(name, rule)
        for name in self.tables:
            self.of(name)

    def of(self, name: str) -> Environment:
        """Return the settings of `TABLE`, or of `TABLE/INDEX`."""
        table, _, index = name.partition("/")
        given = self.tables.get(name, {})
        own = _OF_AN_INDEX if index else _OF_A_TABLE
        if type(given) is not dict or given.keys() - own:
            rule = f"{name} must be a table with some of {', '.join(sorted(own))}, not {given!r}"
            raise InvalidRequest("tables", rule)
        base = self.of(table) if index else self
        return replace(base, tables={}, **given)


_OF_AN_INDEX = {
    "read_units",
    "write_units",
    "most_reads",
    "most_writes",
    "min_units",
    "max_units",
    "target_percent",
}
_OF_A_TABLE = {setting.name for setting in fields(Environment)} - {
    "account",
    "region",
    "allow",
    "tables",
}
_TYPES: Mapping[str, tuple[type, str]] = {
    "str": (str, "text in quotes"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "float": (float, "a number"),
    "Mapping[str, str]": (dict, 'a table: {name = "value"}'),
    "Mapping[str, Mapping[str, Any]]": (dict, "tables: [prod.tables.metrics]"),
    "Sequence[str]": (list, 'a list: ["lower-capacity:metrics"]'),
}
_UNITS_RULE = "must be at least 1, and at most max_units: auto scaling would lower it at once"


def _most_units(environment: Environment) -> float:
    scales = environment.autoscaling and environment.billing == "provisioned"
    return environment.max_units if scales else inf


_RULES: Mapping[str, Any] = {
    "billing": (
        lambda e: e.billing in ("on-demand", "provisioned"),
        "use on-demand or provisioned",
    ),
    "read_units": (lambda e: 1 <= e.read_units <= _most_units(e), _UNITS_RULE),
    "write_units": (lambda e: 1 <= e.write_units <= _most_units(e), _UNITS_RULE),
    "most_reads": (lambda e: e.most_reads >= 0, "use 1 or more, or 0 for no limit"),
    "most_writes": (lambda e: e.most_writes >= 0, "use 1 or more, or 0 for no limit"),
    "max_units": (
        lambda e: 1 <= e.min_units <= e.max_units,
        "use 1 <= min_units <= max_units",
    ),
    # AWS accepts no other target for DynamoDB.
    "target_percent": (lambda e: 20 <= e.target_percent <= 90, "use 20 to 90"),
    "backup_days": (lambda e: 0 <= e.backup_days <= 35, "use 1 to 35 days, or 0 for none"),
    "encryption": (
        lambda e: (
            e.encryption in ("aws-owned", "kms")
            or re.fullmatch(_ARN.format("kms", r"key/[\w-]+"), e.encryption)
        ),
        "use aws-owned, kms or the ARN of a key; an alias cannot be compared with the live table",
    ),
    "alarm_topic": (
        lambda e: not e.alarm_topic or re.fullmatch(_ARN.format("sns", r"[\w.-]+"), e.alarm_topic),
        "must be the ARN of an SNS topic",
    ),
    "tags": (
        lambda e: all(type(value) is str for value in e.tags.values()),
        "every value must be text",
    ),
    "account": (lambda e: not e.account or re.fullmatch(r"\d{12}", e.account), "use 12 digits"),
    "allow": (lambda e: all(type(name) is str for name in e.allow), "every name must be text"),
}

BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "dev": {},
    "prod": {
        "billing": "provisioned",
        "autoscaling": True,
        "deletion_protection": True,
        "backup_days": 35,
        "encryption": "kms",
        "alarms": True,
    },
}


FILE = "tdev.toml"
"""The file of environments that is used when none is named."""


def find_file(folder: Path) -> Path | None:
    """Return the file of environments of a folder, or of the nearest folder above that has one."""
    return next((file for at in (folder, *folder.parents) if (file := at / FILE).is_file()), None)


def load(
    name: str, file: Path | None = None, changes: Mapping[str, Any] | None = None
) -> Environment:
    """Return the settings of one environment.

    Args:
        name: `dev`, `prod` or a section of the file.
        file: TOML; the section `[name]` holds fields of `Environment`, and `like = "prod"` to start
            from another environment: from its section, too, but for what that `allow`s.
        changes: fields that override the file's, `like` included.

    Raises:
        InvalidRequest: an unknown environment or field, a wrong value, a file that cannot be read.
    """
    try:
        sections = tomllib.loads(file.read_text("utf-8")) if file else {}
    except (OSError, ValueError) as error:
        raise InvalidRequest("config", str(error)) from error
    for section in sections:  # a setting above all of them would change nothing
        _section(sections, section)
    if "production" in sections:  # `--env production` looks for [prod]
        raise InvalidRequest("config", "production means prod: call the section [prod]")
    given, base, passed = {**_section(sections, name), **(changes or {})}, name, {name}
    while (like := given.pop("like", base)) != base:
        if type(like) is not str:
            raise InvalidRequest("like", f"must be text in quotes, not {like!r}")
        if like in passed:
            raise InvalidRequest("like", f"{name} is like {like}, which leads back to {like}")
        passed.add(base := like)
        inherited = _section(sections, base)
        inherited.pop("allow", None)
        given = {**inherited, **given}
    if base not in BUILT_IN:
        known = ", ".join(sorted({*BUILT_IN, *sections}))
        raise InvalidRequest(
            "environment",
            f"{base!r} is not declared (known: {known}); give it a section in {FILE} or in"
            " the file of --config, or --set like=dev",
        )
    settings = [setting.name for setting in fields(Environment)]
    for key in given:
        if key not in settings:
            raise InvalidRequest(key, f"unknown setting; use one of like, {', '.join(settings)}")
    return Environment(**{**BUILT_IN[base], **given})


def _section(sections: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = sections.get(name, {})
    if not isinstance(section, dict):
        raise InvalidRequest("config", f"{name} must be a section, or stand in one such as [prod]")
    return {**section}
