"""`tdev ui`: the page, on loopback."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys

from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import place
from tdev_models.errors import ConfigurationError, InvalidRequest
from tdev_models.web import app
from tdev_models.web.serving import HOST, Server


def ui(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; who is on this machine sees it, and nobody else."""
    if not 0 <= options.port < 65536:
        raise InvalidRequest("port", f"{options.port} is not from 0 to 65535")
    token = secrets.token_urlsafe(18) if options.act else None
    server = Server(app(action_token=token), options.port)
    # It listens: whoever follows the address at once waits for the server.
    with _listening(options.port) as listening:
        port = listening.getsockname()[1]
        sys.stdout.write(f"{place().plain}\nhttp://{HOST}:{port}/ (Ctrl-C ends it)\n")
        if token:
            sys.stdout.write(f"Token to act: {token}\n")
        sys.stdout.flush()
        server.run(sockets=[listening])
    return DONE


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:  # uvicorn would exit with 3, which says that a session is refused
        raise ConfigurationError(
            f"port {port}: {os.strerror(error.errno or 0)}; choose another with --port"
        ) from None
