"""aiodynamo over aiohttp, the quicker of its two ways."""

from __future__ import annotations

import os
import ssl

import aiohttp
from aiodynamo.client import Client
from aiodynamo.credentials import Key, StaticCredentials
from aiodynamo.expressions import F, HashKey
from aiodynamo.http.aiohttp import AIOHTTP
from aiodynamo.models import ReturnValues
from aiodynamo.operations import Update
from yarl import URL

from benchmarks.clients import items


async def operations(endpoint: str, variant: str) -> items.Awaitables:
    tls = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
    http = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=items.AT_ONCE, ssl=tls), auto_decompress=False
    )
    key = StaticCredentials(Key(items.KEY_ID, items.SECRET))
    client = Client(AIOHTTP(http), key, items.REGION, endpoint=URL(endpoint))
    sessions, session = client.table(items.SESSIONS), {"session_id": items.SESSION_ID}
    execution = {"execution_id": items.EXECUTION_ID, "agent_name": items.AGENT}

    async def get() -> None:
        items.with_metadata(await sessions.get_item(session, consistent_read=True))

    async def update() -> None:
        actions = F("status").set("ACTIVE") & F("current_agent").set(items.AGENT)
        actions = actions & F("progress").set(6) & F("last_updated").set(items.NOW)
        condition = F("lease_token").does_not_exist() & F("status").is_in(["ACTIVE", "FAILED"])
        returned = ReturnValues.all_new
        items.with_metadata(
            await sessions.update_item(
                session, actions, condition=condition, return_values=returned
            )
        )

    async def query() -> None:
        key = HashKey("status", "ACTIVE")
        page = await sessions.query_single_page(key, index="status-index", limit=25)
        items.expect(len([items.with_metadata(item) for item in page.items]), 25)

    async def transaction() -> None:
        moved = F("current_agent").set(items.AGENT) & F("progress").set(6)
        moved = moved & F("last_updated").set(items.NOW)
        ended = F("status").set("COMPLETED") & F("end_time").set(items.NOW)
        ended = ended & F("output_data").set(items.OUTPUT)
        owned = F("lease_token").equals("token")
        await client.transact_write_items(
            [
                Update(items.SESSIONS, session, moved, condition=owned),
                Update(items.EXECUTIONS, execution, ended),
            ]
        )

    return {"get": get, "update": update, "query": query, "transaction": transaction}
