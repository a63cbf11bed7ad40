"""TLS, the clock, and credentials that end."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from botocore import httpsession
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pynamodb.exceptions import DoesNotExist, GetError

from tdev_models import Settings, aws, get_pipeline_session, settings, sync
from tdev_models.dynamodb.blocking_client import drive
from tdev_models.dynamodb.transports import signing, target
from tdev_models.dynamodb.transports.blocking import BlockingTransport
from tdev_models.dynamodb.transports.loop import LoopTransport
from tdev_models.errors import ConfigurationError, NotFound, TdevError, Unavailable
from tdev_models.migrations import calls
from tdev_models.models import PipelineSession
from tests.transport.conformance import GET
from tests.transport.wire import Wire, ok, wired

pytestmark = pytest.mark.skipif("os.environ.get('TDEV_TRANSPORT')", reason="of the own transport")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_opened", {})
    monkeypatch.setattr(aws, "_clients", {})
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate of `localhost` that signs itself, and its key."""
    return certificate_of("localhost", tmp_path_factory.mktemp("tls"))


def certificate_of(host: str, folder: Path, days: int = 1) -> Path:
    """Make a certificate that signs itself and ends in so many days, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def serving(certificate: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    return context


async def both(current: Settings) -> None:
    """Send from a loop and from a thread, twice each."""
    for _ in range(2):
        response = await LoopTransport(current)("GetItem", GET)
        assert response == {"Item": GET["Key"]}
        response = await asyncio.to_thread(drive, BlockingTransport(current)("GetItem", GET))
        assert response == {"Item": GET["Key"]}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("by", ["variable", "profile"])
async def test_tls_with_the_certificates_that_botocore_would_trust(
    version: ssl.TLSVersion,
    by: str,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if by == "variable":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    else:
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {certificate}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with wired(serving(certificate, version)) as wire:
        await both(wire.settings())
        assert wire.made == 2


def by_a_loop(current: Settings) -> None:
    asyncio.run(LoopTransport(current)("GetItem", GET))


def by_a_thread(current: Settings) -> None:
    drive(BlockingTransport(current)("GetItem", GET))


def by_botocore(current: Settings) -> None:
    aws.call(current, "GetItem", GET)


def by_the_orm(current: Settings) -> None:
    with settings.use(current):
        PipelineSession.get("s")


def by_migrations(current: Settings) -> None:
    calls.Calls(current)("DescribeTable", TableName="x")


SENDERS = (by_a_loop, by_a_thread, by_botocore, by_the_orm, by_migrations)


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("what", ["of nobody", "of another host", "that has expired"])
def test_a_certificate_that_is_not_trusted_is_refused_with_the_remedy(
    what: str,
    send: Callable[[Settings], None],
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if what == "of another host":
        certificate = certificate_of("elsewhere.example", tmp_path)
    if what == "that has expired":
        certificate = certificate_of("localhost", tmp_path, days=-1)
    if what != "of nobody":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with wired(serving(certificate, ssl.TLSVersion.TLSv1_3)) as wire:
        with pytest.raises(ConfigurationError, match=r"is not trusted.*AWS_CA_BUNDLE"):
            send(wire.settings())
        assert wire.heads == []


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "profile"])
def test_who_names_the_certificates_is_heard(
    variable: str,
    send: Callable[[Settings], None],
    certificate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = None if variable == "profile" else (variable, str(certificate))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text(f"[default]\nca_bundle = {certificate}\n" * (not named))
    if named:
        monkeypatch.setenv(*named)
    with wired(serving(certificate, ssl.TLSVersion.TLSv1_2)) as wire:
        wire.answer = lambda request: ok({"Table": {}})
        with suppress(LookupError, DoesNotExist):
            send(wire.settings(retry_seconds=0))
        assert len(wire.heads) == 1


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_variable_that_is_empty_names_no_certificates(
    variable: str,
    send: Callable[[Settings], None],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "")
    with wired(serving(certificate, ssl.TLSVersion.TLSv1_3)) as wire:
        with pytest.raises(ConfigurationError, match=r"is not trusted.*AWS_CA_BUNDLE"):
            send(wire.settings())
        assert wire.heads == []


@pytest.mark.parametrize("send", SENDERS)
def test_certificates_that_cannot_be_read_are_named(
    send: Callable[[Settings], None], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/none/ca.pem")
    with wired(serving(certificate, ssl.TLSVersion.TLSv1_2)) as wire:
        with pytest.raises(ConfigurationError, match=r"/none/ca\.pem.*AWS_CA_BUNDLE"):
            send(wire.settings())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_tls_older_than_1_2_is_refused_whatever_the_interpreter_allows(
    version: ssl.TLSVersion,
    send: Callable[[Settings], None],
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lax(cafile: Any = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = version
        return context

    monkeypatch.setattr(ssl, "create_default_context", lax)
    monkeypatch.setattr(httpsession, "create_urllib3_context", lax)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    monkeypatch.setattr(calls, "LOCAL", calls.LOCAL._replace(read=0))
    with wired(serving(certificate, version)) as wire:
        with socket.create_connection(("127.0.0.1", wire.port)) as connection:
            # So the server does speak it, and this interpreter, too.
            lax().wrap_socket(connection, server_hostname="localhost").close()
        with pytest.raises((TdevError, GetError), match=r"connect|TLS|SSL"):
            send(wire.settings(retry_seconds=0))
        assert wire.heads == []


@pytest.fixture
def punctual() -> Iterator[Wire]:
    """A store that refuses requests signed more than five minutes before or after its time."""

    def answer(parameters: dict[str, Any]) -> bytes:
        stamp = wire.heads[-1].lower().partition(b"x-amz-date: ")[2][:16].decode().upper()
        signed = datetime.datetime.strptime(stamp + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
        date = formatdate(time.time(), usegmt=True).encode()
        status, body = b"200 OK", b"{}"
        if abs(signed - time.time()) > 300:
            code = "com.amazon.coral.service#InvalidSignatureException"
            error = {"__type": code, "message": "Signature expired"}
            status, body = b"400 Bad Request", json.dumps(error).encode()
        head = b"HTTP/1.1 %s\r\nDate: %s\r\nContent-Length: %d\r\n\r\n" % (status, date, len(body))
        return head + body

    with wired() as wire:
        wire.answer = answer
        yield wire


def set_clock(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    class Wrong:
        strftime, gmtime = staticmethod(time.strftime), staticmethod(time.gmtime)

        @staticmethod
        def time() -> float:
            return time.time() + off

    monkeypatch.setattr(signing, "time", Wrong)


@pytest.mark.parametrize("off", [-86400, 1800])
async def test_a_clock_that_is_off_costs_one_more_request(
    punctual: Wire, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, off)
    with settings.use(punctual.settings()):
        for expected in (2, 3):
            with pytest.raises(LookupError):
                await get_pipeline_session("s")
            assert len(punctual.heads) == expected
        with pytest.raises(LookupError):
            await asyncio.to_thread(sync.get_pipeline_session, "s")
        assert len(punctual.heads) == 4


async def test_requests_under_way_while_the_clock_is_corrected_are_sent_again(
    punctual: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, 1800)
    together, calls = threading.Barrier(10), itertools.count()
    refused = json.dumps({"__type": "x#InvalidSignatureException", "message": "late"}).encode()

    def answer(parameters: dict[str, Any]) -> bytes:
        if next(calls) >= 10:
            return ok({})
        together.wait(20)  # all are signed before the first is refused
        date = formatdate(time.time(), usegmt=True).encode()
        head = b"HTTP/1.1 400 Bad Request\r\nDate: %s\r\nContent-Length: %d\r\n\r\n"
        return head % (date, len(refused)) + refused

    punctual.answer = answer
    with settings.use(punctual.settings()):
        found = await asyncio.gather(
            *(get_pipeline_session(f"s{number}") for number in range(10)), return_exceptions=True
        )
    assert {type(one) for one in found} == {NotFound}


async def test_a_signature_refused_at_the_right_time_is_a_wrong_key(
    punctual: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = json.dumps({"__type": "x#InvalidSignatureException", "message": "no"}).encode()
    date = formatdate(time.time(), usegmt=True).encode()
    punctual.answer = lambda parameters: (
        b"HTTP/1.1 400 Bad Request\r\nDate: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (date, len(refused), refused)
    )
    with pytest.raises(ConfigurationError):
        await LoopTransport(punctual.settings())("GetItem", GET)
    assert len(punctual.heads) == 1


PROCESS = """
import datetime, json, pathlib, sys, time
counter = pathlib.Path(sys.argv[1])
number = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(number))
time.sleep(0.2)
if number > int(sys.argv[2]):
    sys.exit("no more credentials")
end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=float(sys.argv[3]))
print(json.dumps({"Version": 1, "AccessKeyId": f"KEY{number}", "SecretAccessKey": "s",
                  "SessionToken": "t", "Expiration": end.isoformat()}))
"""


@pytest.fixture
def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let botocore take credentials from a process that gives so many, for so many seconds."""

    def give(most: int, seconds: float) -> Path:
        (tmp_path / "issue.py").write_text(PROCESS)
        line = f"{sys.executable} {tmp_path / 'issue.py'} {tmp_path / 'count'} {most} {seconds}"
        (tmp_path / "config").write_text(f"[profile issued]\ncredential_process = {line}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "issued")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        return tmp_path / "count"

    return give


def keys_used(wire: Wire) -> list[bytes]:
    return [head.partition(b"Credential=")[2].partition(b"/")[0] for head in wire.heads]


async def test_credentials_that_last_are_fetched_once(issuer: Any) -> None:
    count = issuer(1, 3600)
    with wired() as wire:
        transport = LoopTransport(wire.settings())
        await asyncio.gather(*(transport("GetItem", GET) for _ in range(50)))
        await both(wire.settings())
        assert {*keys_used(wire)} == {b"KEY1"}
        assert b"X-Amz-Security-Token: t\n" in wire.heads[0]
    assert count.read_text() == "1"


async def test_credentials_near_their_end_are_renewed_while_the_loop_runs_on(issuer: Any) -> None:
    count = issuer(99, 60)  # botocore renews what ends within a quarter of an hour
    with wired() as wire:
        transport = LoopTransport(wire.settings())
        await transport("GetItem", GET)
        before = int(count.read_text())
        turns = 0

        async def running() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        watching = asyncio.create_task(running())
        await asyncio.gather(*(transport("GetItem", GET) for _ in range(20)))
        watching.cancel()
        assert int(count.read_text()) == before + 1  # one of the tasks' threads for all of them
        assert turns > 10
        assert keys_used(wire)[-1] == f"KEY{before + 1}".encode()


async def test_where_no_thread_is_left_for_new_credentials_it_is_tried_again(
    issuer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    issuer(99, 60)
    with wired() as wire:
        transport = LoopTransport(wire.settings())
        await transport("GetItem", GET)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(Unavailable, match="new thread"):
                await transport("GetItem", GET)
        await transport("GetItem", GET)


async def test_credentials_that_last_are_used_while_their_issuer_hangs(issuer: Any) -> None:
    count = issuer(99, 720)  # botocore renews them, and uses them while somebody else does so
    with wired() as wire:
        transport = LoopTransport(wire.settings())
        await transport("GetItem", GET)
        hanging = count.with_name("hanging")
        hanging.touch()
        waits = f"import os, time\nwhile os.path.exists({str(hanging)!r}): time.sleep(0.1)\n"
        count.with_name("issue.py").write_text(waits + PROCESS)
        try:
            async with asyncio.timeout(20):
                for _ in range(20):
                    await transport("GetItem", GET)
        finally:
            hanging.unlink()


_TRANSPORTS = pytest.mark.parametrize("transport", [None, "botocore"], ids=["own", "botocore"])


@_TRANSPORTS
async def test_credentials_that_cannot_be_renewed_are_tried_again(
    issuer: Any, transport: Literal["botocore"] | None
) -> None:
    count = issuer(99, 60)  # botocore must renew what ends within ten minutes
    with wired() as wire:
        chosen = replace(wire.settings(), transport=transport)
        awaited, blocking = LoopTransport(chosen), BlockingTransport(chosen)
        await awaited("GetItem", GET)
        count.write_text("99")
        with pytest.raises(Unavailable, match="no more credentials"):
            await awaited("GetItem", GET)
        with pytest.raises(Unavailable, match="no more credentials"):
            drive(blocking("GetItem", GET))
        count.write_text("0")  # whoever gives them out is there again
        await awaited("GetItem", GET)
        with settings.use(chosen, retry_seconds=0):
            PipelineSession("s").save()
            count.write_text("99")
            with pytest.raises(Unavailable, match="no more credentials"):
                PipelineSession("s").save()


@_TRANSPORTS
async def test_without_any_credentials_nothing_is_tried_again(
    issuer: Any, transport: Literal["botocore"] | None
) -> None:
    issuer(0, 3600)
    with wired() as wire:
        await has_no_credentials(
            replace(wire.settings(), transport=transport), "no more credentials"
        )


async def has_no_credentials(chosen: Settings, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        await LoopTransport(chosen)("GetItem", GET)
    with pytest.raises(ConfigurationError, match=why):
        drive(BlockingTransport(chosen)("GetItem", GET))


@dataclass
class Sts:
    """Gives out credentials of a role that end in a minute, until it refuses with a code."""

    refuses: str = ""

    def answer(self) -> tuple[int, str]:
        if self.refuses:
            error = f"<Error><Code>{self.refuses}</Code><Message>said STS</Message></Error>"
            return 403, f"<ErrorResponse>{error}</ErrorResponse>"
        end = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=1)).isoformat()
        given = (
            "<AccessKeyId>KEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{end}</Expiration>"
        )
        result = f"<AssumeRoleResult><Credentials>{given}</Credentials></AssumeRoleResult>"
        return 200, f"<AssumeRoleResponse>{result}</AssumeRoleResponse>"


@pytest.fixture
def sts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sts]:
    """Let botocore take its credentials from a role."""
    state = Sts()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, text = state.answer()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None: ...

    (tmp_path / "config").write_text(
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = own\n"
        "[profile own]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "role")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@_TRANSPORTS
async def test_a_role_is_asked_for_in_the_region_of_the_settings(
    sts: Sts, transport: Literal["botocore"] | None
) -> None:
    """As AWS_REGION alone gives it, which botocore does not know."""
    with wired() as wire:
        chosen = replace(wire.settings(), transport=transport)
        await LoopTransport(chosen)("GetItem", GET)
        drive(BlockingTransport(chosen)("GetItem", GET))
        assert {*keys_used(wire)} == {b"KEY"}


@_TRANSPORTS
async def test_the_credentials_of_a_role_are_not_logged(
    sts: Sts, transport: Literal["botocore"] | None, caplog: pytest.LogCaptureFixture
) -> None:
    with wired() as wire, caplog.at_level(logging.DEBUG):
        chosen = replace(wire.settings(), transport=transport)
        await LoopTransport(chosen)("GetItem", GET)
        drive(BlockingTransport(chosen)("GetItem", GET))
        with settings.use(chosen):
            PipelineSession("s").save()
        assert {*keys_used(wire)} == {b"KEY"}
    assert "botocore" in caplog.text
    assert "SessionToken" not in caplog.text


REFUSED = """
import logging
logging.basicConfig(level=logging.DEBUG)
from tdev_models import sync
try:
    sync.save_pipeline_session(session_id="s", status="ACTIVE")
except Exception as error:
    print(type(error).__name__)
"""


def test_a_stored_item_that_refuses_a_write_is_not_logged_where_no_client_was_made() -> None:
    item = {"session_id": {"S": "s"}, "status": {"S": "ENDED"}, "metadata": {"S": '"SECRET"'}}
    code = "ConditionalCheckFailedException"
    text = json.dumps({"__type": code, "message": "", "Item": item}).encode()
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(text)
    with wired() as wire:
        wire.answer = lambda request: head + text
        place = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}", "AWS_REGION": "us-east-1"}
        done = subprocess.run(
            [sys.executable, "-c", REFUSED],
            env={**os.environ, **place},
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout == "InvalidTransition\n"
    assert "DEBUG" in done.stderr
    assert "SECRET" not in done.stderr


@_TRANSPORTS
@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "InvalidClientTokenId"])
async def test_a_role_that_cannot_be_taken_is_a_matter_of_configuration(
    sts: Sts, code: str, transport: Literal["botocore"] | None
) -> None:
    sts.refuses = code
    with wired() as wire:
        await has_no_credentials(replace(wire.settings(), transport=transport), "said STS")


@_TRANSPORTS
@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken", "InvalidClientTokenId"])
async def test_a_role_that_cannot_be_renewed_is_tried_again(
    sts: Sts, code: str, transport: Literal["botocore"] | None
) -> None:
    with wired() as wire:
        chosen = replace(wire.settings(), transport=transport)
        awaited, blocking = LoopTransport(chosen), BlockingTransport(chosen)
        await awaited("GetItem", GET)
        sts.refuses = code
        with pytest.raises(Unavailable, match="said STS"):
            await awaited("GetItem", GET)
        with pytest.raises(Unavailable, match="said STS"):
            drive(blocking("GetItem", GET))
        sts.refuses = ""
        await awaited("GetItem", GET)
        with settings.use(chosen, retry_seconds=0):
            PipelineSession("s").save()
            sts.refuses = code
            with pytest.raises(Unavailable, match="said STS"):
                PipelineSession("s").save()
