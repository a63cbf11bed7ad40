"""The write that begins an agent: it is sent while the agent works already."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from typing import Any

from tdev_models.dynamodb.client import Client, TimeLimit
from tdev_models.retry import is_retried
from tdev_models.workers.lease import Lease


class Beginning:
    """The write that begins an agent.

    Where no other try can mend it (the lease is lost, a permission is missing), it ends the agent's
    block. One that is still tried does not: what the agent returns is stored with its end.

    Attributes:
        refused: why it has ended the block.
    """

    def __init__(self, client: Client, lease: Lease, agent_name: str, block: TimeLimit) -> None:
        self._client, self._lease, self._agent_name = client, lease, agent_name
        self._block, self._written = block, lease.begins(agent_name)
        self._work: Awaitable[None] | None = None
        self.refused: Exception | None = None

    async def send(self, write: Coroutine[Any, Any, None]) -> None:
        """Send the write beside the agent's work.

        It is awaited in a thread, and where an agent's side effects must not be doubled
        (`cancel_when_out_of_touch`).
        """
        if self._client.settings.cancel_when_out_of_touch:
            await self._send(write)
        else:
            work = self._work = await self._client.start(self._send(write))
            await self._client.sleep(0)  # it leaves before what the agent sends
            if self.refused and work is not None:
                await work  # and raise it from there: what nobody asks for is logged

    async def _send(self, write: Coroutine[Any, Any, None]) -> None:
        try:
            await write
        except Exception as error:
            if not is_retried(error):
                self.refused = error
                self._block.end_now()
            raise
        finally:
            self._settle()

    async def end(self, seconds: float | None) -> None:
        """Wait until it is stored, or given up: after `seconds` where the agent was interrupted."""
        try:
            if self._work is not None:
                with suppress(Exception):  # the agent's end is stored, or refused, in its place
                    await self._client.shielded(self._work, seconds)
        finally:
            self._settle()

    def _settle(self) -> None:
        self._lease.beginnings.pop(self._agent_name, None)
        self._written.settle(None)
