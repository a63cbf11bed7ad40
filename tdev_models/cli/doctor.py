"""`tdev doctor`: what is wrong with the set-up, each with its remedy."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import nullcontext
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from tdev_models import aws, settings
from tdev_models.cli import engine
from tdev_models.cli.codes import DONE, FAILED
from tdev_models.cli.permissions import tried
from tdev_models.cli.screen import Screen, place
from tdev_models.cli.tables import Column, Table, status
from tdev_models.errors import AccessDenied, ConfigurationError, InvalidRequest, TdevError
from tdev_models.migrations import declared, environments
from tdev_models.migrations.calls import Calls
from tdev_models.migrations.plan import plan
from tdev_models.security.fields import Place, check_installed
from tdev_models.security.kms import Kms
from tdev_models.settings import Settings

OK, WRONG, UNKNOWN = "ok", "wrong", "unknown"
_MOST_SKEW_SECONDS = 5
_MISSING = "does not exist"


class Finding(NamedTuple):
    """What one check has found, and what to do about it."""

    check: str
    state: str
    found: str
    remedy: str = ""


def doctor(options: argparse.Namespace) -> int:
    """Print each check as it is made; return 1 where something is wrong."""
    screen = Screen(options.json)
    found: list[Finding] = []
    with nullcontext() if screen.json else screen.console.status("checking..."):
        for finding in findings():
            screen.line(finding._asdict())
            found.append(finding)
    columns: list[Column[Finding]] = [
        Column(head="check", cell=lambda one: one.check, kind="name"),
        Column(head="state", cell=lambda one: status(one.state)),
        Column(head="found", cell=lambda one: one.found, kind="name"),
    ]
    if found[0].state == OK:
        screen.print(place())
    screen.print(Table("Doctor", columns, found))
    remedies = dict.fromkeys(one.remedy for one in found if one.remedy)
    for remedy in remedies:
        checks = ", ".join(one.check for one in found if one.remedy == remedy)
        screen.whole(f"{checks}: {remedy}")
    wrong = sum(one.state == WRONG for one in found)
    screen.print(f"{wrong} of {len(found)} checks found something wrong." if wrong else "All well.")
    return FAILED if wrong else DONE


def findings() -> Iterator[Finding]:
    """Yield what each check finds; those that need what is missing are left out."""
    try:
        chosen = settings.current()
    except TdevError as error:
        yield Finding("environment", WRONG, str(error), "set the variable, or unset it")
        return
    tables = chosen.table_name("*")
    yield Finding("environment", OK, f"{chosen.environment}: tables {tables}")
    yield _engine()
    needed = [_region(chosen), _credentials(chosen)]
    yield from needed
    if any(one.state == WRONG for one in needed):
        return
    endpoint = _endpoint(chosen)
    yield endpoint
    if endpoint.state == OK:
        yield _clock(chosen)
        forms = list(_tables(chosen))
        yield from forms
        yield from _permissions(chosen, {one.check for one in forms if one.found == _MISSING})
    if chosen.kms_key:
        yield _key(chosen, chosen.kms_key)


def _engine() -> Finding:
    try:
        if name := engine.available():
            return Finding("local engine", OK, name)
    except ConfigurationError as error:
        return Finding("local engine", UNKNOWN, str(error))
    remedy = "for 'tdev local': put npm on PATH, or pip install 'tdev-models[local]'"
    return Finding("local engine", UNKNOWN, "none", remedy)


def _region(chosen: Settings) -> Finding:
    if chosen.region:
        return Finding(
            "region", OK, f"{chosen.region} (AWS_REGION, AWS_DEFAULT_REGION or --region)"
        )
    try:
        with aws.configuring():
            region = botocore.session.get_session().get_config_variable("region")
    except TdevError as error:
        return Finding("region", WRONG, str(error), "check AWS_PROFILE and AWS_CONFIG_FILE")
    if region:
        return Finding("region", OK, f"{region} (AWS configuration)")
    return Finding("region", WRONG, "none", "export AWS_REGION=..., or --region")


def _credentials(chosen: Settings) -> Finding:
    try:
        with aws.configuring():
            credentials = aws.session_of(chosen).get_credentials()
            if credentials is not None:
                aws.frozen(credentials)  # renews what has expired
    except TdevError as error:
        return Finding("credentials", WRONG, str(error), "log in again, or check AWS_PROFILE")
    if credentials is None:
        remedy = "export AWS_PROFILE=..., or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return Finding("credentials", WRONG, "none", remedy)
    return Finding("credentials", OK, f"from {credentials.method}")


def _answer(chosen: Settings) -> tuple[dict[str, Any], float]:
    """Return the headers of DynamoDB's answer to a small request, whatever it says, and its time.

    Raises:
        TdevError: there is no answer.
    """
    client = aws.dynamodb(chosen)
    begun = time.perf_counter()
    try:
        with aws.sending():
            answer = client.get_item(
                TableName=chosen.table_name("pipeline-sessions"),
                Key={"session_id": {"S": "#doctor"}},
            )
    except ClientError as error:
        answer = error.response
    except BotoCoreError as error:
        raise aws.error_of(error) from error
    return answer["ResponseMetadata"], time.perf_counter() - begun


def _endpoint(chosen: Settings) -> Finding:
    try:
        url = aws.dynamodb(chosen).meta.endpoint_url
        metadata, _ = _answer(chosen)
        _, seconds = _answer(chosen)  # without connecting
    except TdevError as error:
        return Finding(
            "endpoint",
            WRONG,
            f"no answer: {error}",
            "check the network and AWS_ENDPOINT_URL_DYNAMODB; on this machine: tdev local",
        )
    server = metadata["HTTPHeaders"].get("server", "")
    what = f" ({server})" if server else ""
    scheme = urlsplit(url).scheme
    return Finding("endpoint", OK, f"{url}{what} answers in {1000 * seconds:.0f} ms by {scheme}")


def _clock(chosen: Settings) -> Finding:
    try:
        metadata, seconds = _answer(chosen)
        date = parsedate_to_datetime(metadata["HTTPHeaders"].get("date", "")).timestamp()
    except TdevError as error:
        return Finding("clock", UNKNOWN, f"no answer: {error}")
    except ValueError:
        return Finding("clock", UNKNOWN, "the endpoint does not tell the time")
    # Headers tell whole seconds, some time within the request.
    skew = time.time() - seconds / 2 - date - 0.5
    found = f"{skew:+.1f} s against the endpoint, to a second"
    if abs(skew) <= _MOST_SKEW_SECONDS:
        return Finding("clock", OK, found)
    remedy = "synchronise this machine's clock (chrony, systemd-timesyncd)"
    return Finding("clock", WRONG, found, remedy)


def _tables(chosen: Settings) -> Iterator[Finding]:
    """Yield whether each table is as the models declare it, for its environment."""
    look, change, ask = (
        _command(chosen, f"migrate {what}") for what in ("plan", "apply", "status")
    )
    remedy = f"look with '{look}', then '{change}'"
    try:
        file = environments.find_file(Path.cwd())
        environment = environments.load(chosen.environment, file, _undeclared(chosen))
    except InvalidRequest as error:
        yield Finding(environments.FILE, WRONG, str(error), "correct it")
        return
    for table in declared.tables(chosen, environment):
        what = f"table {table.short}"
        try:
            (planned,) = plan(Calls(chosen), [table], rows=False)
        except TdevError as error:
            yield Finding(what, UNKNOWN, str(error))
            continue
        if not planned.live.description:
            if denied := planned.live.denied:
                hint = f"migrations read tables by a role of their own: '{ask}'"
                yield Finding(what, UNKNOWN, denied[0], hint)
            else:
                yield Finding(what, WRONG, _MISSING, remedy)
            continue
        pending = [change for change in planned.changes if change.symbol != "="]
        if pending:
            changes = "; ".join(
                f"{one.symbol} {one.target.kind} {one.target.index}" for one in pending
            )
            yield Finding(what, WRONG, f"is not as declared: {changes}", remedy)
        else:
            yield Finding(what, OK, "as declared")


def _undeclared(chosen: Settings) -> dict[str, str]:
    """Return what migrations must be told of an environment that nobody declares."""
    try:
        environments.load(chosen.environment, environments.find_file(Path.cwd()))
    except InvalidRequest as error:
        return {"like": "dev"} if error.field == "environment" else {}
    return {}


def _command(chosen: Settings, command: str) -> str:
    """Return a command about these tables; what takes no --region has it from its variable."""
    places = {"AWS_REGION": chosen.region, "AWS_ENDPOINT_URL_DYNAMODB": chosen.endpoint}
    elsewhere = [
        f"{name}={shlex.quote(value)}"
        for name, value in places.items()
        if value and value != os.environ.get(name)
    ]
    more = [f"--set {name}={value}" for name, value in _undeclared(chosen).items()]
    return " ".join([*elsewhere, f"tdev {command} --env {chosen.environment}", *more])


def _policy(chosen: Settings) -> str:
    command = _command(chosen, "iam runtime")
    return f"print the policy with '{command}' and attach it to the role"


def _permissions(chosen: Settings, missing: set[str]) -> Iterator[Finding]:
    """Yield which of the three permissions the credentials have on each table, by trying them."""
    for table, errors in tried(chosen).items():
        what = f"access {table}"
        if f"table {table}" in missing:
            continue
        denied = {action: one for action, one in errors.items() if isinstance(one, AccessDenied)}
        other = [str(one) for one in errors.values() if not isinstance(one, AccessDenied)]
        if denied:
            yield Finding(what, WRONG, f"denied: {', '.join(denied)}", _policy(chosen))
        elif other:
            yield Finding(what, WRONG, other[0])
        else:
            yield Finding(what, OK, "GetItem, Query, UpdateItem")


def _key(chosen: Settings, key: str) -> Finding:
    """Return whether the key of encrypted fields makes data keys and decrypts them."""
    kms, context = Kms(chosen), Place("agent-executions", (), "").context(chosen)
    try:
        check_installed(chosen)
        kms.decrypted(key, kms.new_data_key(key, context).encrypted, context)
    except AccessDenied as error:
        return Finding("encryption key", WRONG, str(error), _policy(chosen))
    except TdevError as error:
        return Finding("encryption key", WRONG, str(error))
    return Finding("encryption key", OK, "GenerateDataKey, Decrypt")
