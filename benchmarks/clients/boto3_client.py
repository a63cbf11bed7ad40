"""boto3: its low-level client, which is quicker than its resources."""

from __future__ import annotations

import boto3
from botocore.config import Config

from benchmarks.clients import items


def operations(endpoint: str, variant: str) -> items.Blocking:
    config = Config(max_pool_connections=items.AT_ONCE, parameter_validation=False)
    client = boto3.client("dynamodb", endpoint_url=endpoint, config=config)

    def query() -> None:
        found = client.query(**items.QUERY)["Items"]
        items.expect(len([items.values_of(item) for item in found]), 25)

    return {
        "get": lambda: items.values_of(client.get_item(**items.GET)["Item"]),
        "update": lambda: items.values_of(client.update_item(**items.UPDATE)["Attributes"]),
        "query": query,
        "transaction": lambda: client.transact_write_items(**items.TRANSACTION),
    }
