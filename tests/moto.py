"""moto's server in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def wait_until_it_listens(
    process: subprocess.Popen[bytes], port: int, why_it_ended: Callable[[], str]
) -> None:
    """Wait for a server that has been started, at most a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, why_it_ended()
            assert time.monotonic() < deadline, f"nothing listens at {port}"
            time.sleep(0.05)


@contextmanager
def server() -> Iterator[str]:
    """Yield the endpoint of a single-threaded moto."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tdev_models.cli.moto_server", str(port)])
    try:
        wait_until_it_listens(process, port, lambda: "moto's server ended")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
