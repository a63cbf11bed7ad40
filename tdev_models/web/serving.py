"""Serves the page with uvicorn, and ends without waiting for those who watch."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette

HOST = "127.0.0.1"


class Server(uvicorn.Server):
    """A server of the page, on loopback alone; who watches is let go when it ends."""

    def __init__(self, app: Starlette, port: int) -> None:
        self._app = app
        config = uvicorn.Config(
            app,
            host=HOST,
            port=port,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what is watched, then the server."""
        self._app.state.site.watches.close()
        await super().shutdown(sockets)
