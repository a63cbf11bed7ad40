"""`tdev ui`: the page, on loopback."""

from __future__ import annotations

import argparse
import secrets
import sys

import uvicorn

from tdev_models.cli.codes import DONE
from tdev_models.cli.screen import place
from tdev_models.web import app

_HOST = "127.0.0.1"


def ui(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; who is on this machine sees it, and nobody else."""
    token = secrets.token_urlsafe(18) if options.act else None
    config = uvicorn.Config(
        app(action_token=token),
        host=_HOST,
        port=options.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # whoever watches has no end of their own
    )
    socket = config.bind_socket()
    port = socket.getsockname()[1]
    sys.stdout.write(f"{place().plain}\nhttp://{_HOST}:{port}/ (Ctrl-C ends it)\n")
    if token:
        sys.stdout.write(f"Token to act: {token}\n")
    sys.stdout.flush()
    with socket:
        uvicorn.Server(config).run(sockets=[socket])
    return DONE
