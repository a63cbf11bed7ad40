"""A DynamoDB engine on this machine: dynoxide where it is available, else moto's server."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tdev_models.errors import ConfigurationError

VERSION = "1.2.1"
PACKAGE = f"@dynoxide/linux-x64@{VERSION}"
SHA512 = "sBHqlxJ9ANkLluFkYRfd5r8Y0ApFew4FhOrlhgRAgD4XzEoFOukEo1nuBTQ1+jTtofqwn4NWQ2k0Tn5mNTjgUg=="
SHA256 = "be909b7910d3fb552e85db10ef3c8ebae4bd35fee0f26dffdb6dfa5cc656426e"
"""Of the program in it: checked at each start, since others may write to a cache."""
NPM_SECONDS = 120
OWN = "TDEV_DYNOXIDE"
"""The variable that names a program to run instead. One on PATH is not run for its name alone."""
START_SECONDS = 30
END_SECONDS = 5


class _NoDynoxide(Exception):
    """Why dynoxide cannot run here."""


class Engine:
    """A running engine; the `with` block ends it.

    Attributes:
        endpoint: its URL.
        name: `dynoxide` or `moto`.
        pid: its process.
        keeps_data: whether what is written outlives it.
        notice: why it is not dynoxide, or keeps no data on this system; or empty.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, name: str, keeps_data: bool, notice: str
    ) -> None:
        self._process = process
        self.pid = process.pid
        self.endpoint = f"http://127.0.0.1:{port}"
        self.name, self.keeps_data, self.notice = name, keeps_data, notice

    @classmethod
    def start(cls, data: Path | None = None, port: int | None = None) -> Self:
        """Start an engine and return it once it answers.

        The first start may fetch the pinned release with npm, at most 120 s; a start takes at most
        30 s.

        Args:
            data: the file to keep the data in, created if absent; without it, in memory. One engine
                at a time may have it. moto keeps nothing, nor does a system without file locks.
            port: where to listen on 127.0.0.1; a free port when not given.

        Raises:
            ConfigurationError: no engine is available, or it does not start; the message says why.
        """
        command, name, notice = _program()
        if name == "moto":
            data = None
        if data is not None and find_spec("fcntl") is None:
            data, notice = None, f"nothing is kept: {sys.platform} cannot lock {data}"
        with tempfile.TemporaryFile() as log:
            deadline = time.monotonic() + START_SECONDS
            for _ in range(3):  # another process may take the free port before the engine does
                chosen = _free_port(port)
                process = _spawn([*command, str(chosen)], data, log)
                ready = False
                try:
                    ready = _answers(process, chosen, deadline)
                finally:
                    if not ready:
                        _end(process)
                if ready:
                    return cls(process, chosen, name, data is not None, notice)
            log.seek(0)
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigurationError(f"{name} did not start: {last or 'no answer'}")

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables by which a process uses this engine."""
        return {
            "AWS_ENDPOINT_URL_DYNAMODB": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",  # other programs read this one alone
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
        }

    def detach(self) -> None:
        """Leave the engine running when the `with` block ends; the caller has its `pid`."""
        # For Popen the process has ended, so it neither ends it, waits for it, nor warns.
        self._process.returncode = 0

    def wait(self) -> None:
        """Return once the engine has ended by itself."""
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _end(self._process)


def available() -> str | None:
    """Return which engine `Engine.start` would run here, without fetching it, or None."""
    if os.environ.get(OWN) or _is_genuine(_cached()):
        return "dynoxide"
    if _is_pinned() and shutil.which("npm"):
        return "dynoxide, which npm will fetch"
    return "moto, which keeps nothing" if find_spec("moto") else None


def _program() -> tuple[list[str], str, str]:
    """Return the command of the engine, its name, and why it is not dynoxide."""
    try:
        return [str(_dynoxide()), "serve", "--port"], "dynoxide", ""
    except _NoDynoxide as reason:
        if find_spec("moto") is None:
            raise ConfigurationError(
                f"no local engine: {reason}. Put npm, which can fetch it, on PATH, set {OWN} to a "
                "dynoxide of your own, or pip install 'tdev-models[local]'"
            ) from None
        command = [sys.executable, "-m", "tdev_models.cli.moto_server"]
        notice = f"{reason}: moto stands in; nothing is kept, and capacity units are its own"
        return command, "moto", notice


def cache_directory() -> Path:
    """Return the folder for files that can be fetched again.

    Raises:
        ConfigurationError: this user has no home, as in a container.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdev-models"
    except RuntimeError:
        raise ConfigurationError(
            "this user has no home to keep the local engine in: set HOME, or XDG_CACHE_HOME"
        ) from None


def _dynoxide() -> Path:
    if own := os.environ.get(OWN):
        return Path(own)
    if not _is_pinned():
        raise _NoDynoxide(f"dynoxide is pinned for linux x86_64, not {sys.platform}")
    cached = _cached()
    if not _is_genuine(cached):
        if not shutil.which("npm"):
            found = "is not the pinned one" if cached.exists() else "is not there"
            raise _NoDynoxide(f"dynoxide {found}, nor npm to fetch it")
        try:
            _fetch(cached)
        except subprocess.TimeoutExpired:
            raise _NoDynoxide(f"npm did not bring dynoxide within {NPM_SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            first = error.stderr.decode(errors="replace").partition("\n")[0]
            raise _NoDynoxide(f"npm could not fetch dynoxide ({first})") from None
        except OSError as error:
            raise _NoDynoxide(f"dynoxide could not be cached ({error})") from None
    return cached


def _is_pinned() -> bool:
    return (sys.platform, platform.machine()) == ("linux", "x86_64")


def _cached() -> Path:
    return cache_directory() / f"dynoxide-{VERSION}" / "dynoxide"


def _is_genuine(program: Path) -> bool:
    """Return whether a file is the program of the pinned release."""
    try:
        with program.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    except OSError:
        return False


def _fetch(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        directory = Path(name)
        subprocess.run(
            ["npm", "pack", "--loglevel=error", PACKAGE],
            cwd=directory,
            check=True,
            capture_output=True,
            timeout=NPM_SECONDS,
        )
        (tarball,) = directory.glob("*.tgz")
        digest = hashlib.sha512(tarball.read_bytes()).digest()
        if (actual := base64.b64encode(digest).decode()) != SHA512:
            raise ConfigurationError(
                f"{PACKAGE} as npm brought it has the sha512 {actual}, not {SHA512}: not run"
            )
        with tarfile.open(tarball) as archive:
            member = archive.extractfile("package/dynoxide")
            assert member is not None  # the checksum says so
            (directory / "dynoxide").write_bytes(member.read())
        (directory / "dynoxide").chmod(0o755)
        (directory / "dynoxide").replace(target)


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise ConfigurationError(
                f"port {wanted}: {error.strerror}; choose another with --port"
            ) from None
        port: int = probe.getsockname()[1]
    return port


def _spawn(command: list[str], data: Path | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
    lock = None
    if data is not None:
        data.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(data, os.O_RDWR | os.O_CREAT, 0o600)
        command = [*command, "--db-path", str(data)]
    try:
        if lock is not None:
            # Two engines on one file lose index entries. The child inherits the lock and holds it
            # for as long as it lives, whatever becomes of this process.
            import fcntl  # Windows has none

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,  # Ctrl-C reaches this process, which ends the engine
        )
    except BlockingIOError:
        raise ConfigurationError(f"another engine is running on {data}") from None
    finally:
        if lock is not None:
            os.close(lock)


def _answers(process: subprocess.Popen[bytes], port: int, deadline: float) -> bool:
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            time.sleep(0.01)
        else:
            return process.poll() is None
        finally:
            connection.close()
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
