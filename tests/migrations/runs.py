"""Runs migrations as the tests need it, and declares tables that the models do not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pynamodb.attributes import NumberAttribute, UnicodeAttribute
from pynamodb.indexes import AllProjection, GlobalSecondaryIndex, IncludeProjection

from tdev_models.migrations import declared, environments
from tdev_models.migrations.apply import Run
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.command import main
from tdev_models.migrations.declared import Table
from tdev_models.migrations.diff import ALLOWABLE
from tdev_models.migrations.plan import plan
from tdev_models.models.base import BaseModel, TableMeta
from tdev_models.settings import Settings


def run(what: str, environment: str, *more: str) -> int:
    """Run the command and return its exit code; apply with --yes, as CI does."""
    return main([what, "--env", environment, *(["--yes"] if what == "apply" else []), *more])


def prod(what: str, environment: str, *more: str) -> int:
    """Run the command for an environment that is like `prod`."""
    return run(what, environment, "--set", "like=prod", *more)


def model(
    indexes: Mapping[str, Iterable[str]],
    ttl: str | None = None,
    number: frozenset[str] = frozenset(),
    include: frozenset[str] = frozenset(),
) -> type[BaseModel]:
    """Return a model of the table `things`.

    Args:
        indexes: the key attributes of each index, by its name.
        ttl: the attribute for TTL.
        number: the key attributes that hold numbers; the others hold text.
        include: the indexes that project one attribute instead of all.
    """

    def attribute(name: str, **role: Any) -> Any:
        return NumberAttribute(**role) if name in number else UnicodeAttribute(**role)

    def index(name: str, keys: Iterable[str]) -> Any:
        partition, *sort = keys
        projection = IncludeProjection(["note"]) if name in include else AllProjection()
        meta = type("Meta", (), {"index_name": name, "projection": projection})
        body = {"Meta": meta, partition: attribute(partition, hash_key=True)}
        body |= {key: attribute(key, range_key=True) for key in sort}
        return type("Made", (GlobalSecondaryIndex,), body)()

    meta = TableMeta("Meta", (), {"table": "things", "ttl_attribute": ttl})
    names = {key for keys in indexes.values() for key in keys}
    body: dict[str, Any] = {"Meta": meta, "thing_id": UnicodeAttribute(hash_key=True)}
    body |= {name: attribute(name, null=True) for name in sorted(names)}
    body |= {name.replace("-", "_"): index(name, keys) for name, keys in indexes.items()}
    made: type[BaseModel] = type("Thing", (BaseModel,), body)
    return made


def declare(settings: Settings, made: type[BaseModel], **profile: Any) -> list[Table]:
    """Return the declared table of a model, in an environment with the settings of `profile`."""
    return declared.tables(settings, environments.Environment(**profile), [made])


def apply(settings: Settings, tables: list[Table], allowed: Iterable[str] = ()) -> int:
    """Plan and apply, and return the number of calls that changed something."""
    calls, names = Calls(settings), set(allowed)
    return Run(calls, names, timeout_seconds=60).apply(plan(calls, tables, names))


def everything_allowed(tables: Iterable[Table]) -> set[str]:
    return {
        f"{kind}:{table.short}{end}"
        for table in tables
        for kind in ALLOWABLE
        for end in ["", *(f"/{index}" for index in table.indexes)]
    }
