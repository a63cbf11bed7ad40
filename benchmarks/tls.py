"""A server's TLS for benchmarks: its certificate, and a relay to an engine that speaks none.

`python -m benchmarks.tls PORT CERTIFICATE KEY` relays to a port of this host, and prints its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.clients.processes import ROOT, ended, first_line

_CHUNK = 64 * 1024


def certificate(folder: Path) -> tuple[str, str, str]:
    """Make a certificate for localhost; return who signs it, its file and its key's."""
    signer, own, key = (str(folder / f"{name}.pem") for name in ("signer", "own", "key"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2"]
    for name, more in {
        signer: ["-subj", "/CN=signer", "-keyout", f"{signer}.key"],
        own: [
            *("-subj", "/CN=localhost", "-keyout", key, "-CA", signer, "-CAkey", f"{signer}.key"),
            *("-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"),
        ],
    }.items():
        subprocess.run([*command, "-out", name, *more], check=True, capture_output=True)
    return signer, own, key


@contextmanager
def relayed(endpoint: str, own: str, key: str) -> Iterator[str]:
    """Yield an endpoint with TLS, by the name `localhost`, that passes all on to another."""
    command = [sys.executable, "-m", "benchmarks.tls", endpoint.rpartition(":")[2], own, key]
    with ended(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)) as process:
        yield f"https://localhost:{int(first_line(process))}"


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
    target.close()


async def _serve(port: str, own: str, key: str) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(own, key)

    async def relay(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        answers, engine = await asyncio.open_connection("127.0.0.1", int(port))
        await asyncio.gather(_pass_on(source, engine), _pass_on(answers, target))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=tls, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
