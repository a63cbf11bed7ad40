"""aiobotocore: botocore over aiohttp."""

from __future__ import annotations

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from benchmarks.clients import items


async def operations(endpoint: str, variant: str) -> items.Awaitables:
    config = AioConfig(max_pool_connections=items.AT_ONCE, parameter_validation=False)
    context = get_session().create_client("dynamodb", endpoint_url=endpoint, config=config)
    client = await context.__aenter__()

    async def get() -> None:
        items.values_of((await client.get_item(**items.GET))["Item"])

    async def update() -> None:
        items.values_of((await client.update_item(**items.UPDATE))["Attributes"])

    async def query() -> None:
        found = (await client.query(**items.QUERY))["Items"]
        items.expect(len([items.values_of(item) for item in found]), 25)

    return {
        "get": get,
        "update": update,
        "query": query,
        "transaction": lambda: client.transact_write_items(**items.TRANSACTION),
    }
