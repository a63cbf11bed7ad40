"""pydynox: its models, or dictionaries (`as_dict`), which are quicker."""

from __future__ import annotations

import logging

from pydynox import DynamoDBClient, Model, ModelConfig, Transaction
from pydynox.attributes import JSONAttribute, NumberAttribute, StringAttribute
from pydynox.indexes import GlobalSecondaryIndex

from benchmarks.clients import items


async def operations(endpoint: str, variant: str) -> items.Awaitables:
    logging.getLogger("pydynox").setLevel(logging.ERROR)  # it warns of each operation above 100 ms
    client = DynamoDBClient(
        region=items.REGION,
        access_key=items.KEY_ID,
        secret_key=items.SECRET,
        endpoint_url=endpoint,
    )

    class Session(Model):
        model_config = ModelConfig(table=items.SESSIONS, client=client)
        session_id = StringAttribute(partition_key=True)
        user_id = StringAttribute()
        project_name = StringAttribute()
        pipeline_type = StringAttribute()
        status = StringAttribute()
        current_agent = StringAttribute()
        progress = NumberAttribute()
        created_at = NumberAttribute()
        last_updated = NumberAttribute()
        metadata = JSONAttribute()
        fence = NumberAttribute()
        lease_owner = StringAttribute()
        lease_token = StringAttribute()
        status_index = GlobalSecondaryIndex(
            index_name="status-index", partition_key="status", sort_key="created_at"
        )

    as_dict = variant == "as_dict"

    async def get() -> None:
        await Session.get(session_id=items.SESSION_ID, consistent_read=True, as_dict=as_dict)

    async def update() -> None:  # it has no way to ask for the new item
        await Session.update_by_key(
            session_id=items.SESSION_ID,
            status="ACTIVE",
            current_agent=items.AGENT,
            progress=6,
            last_updated=items.NOW,
            condition=Session.lease_token.not_exists() & Session.status.is_in("ACTIVE", "FAILED"),
        )

    async def query() -> None:
        if as_dict:
            asked = items.QUERY
            pages = client.query(
                asked["TableName"],
                asked["KeyConditionExpression"],
                expression_attribute_names=asked["ExpressionAttributeNames"],
                expression_attribute_values=items.values_of(asked["ExpressionAttributeValues"]),
                index_name=asked["IndexName"],
                limit=asked["Limit"],
            )
        else:
            pages = Session.status_index.query(status="ACTIVE", limit=25)
        items.expect(len([item async for item in pages]), 25)

    async def transaction() -> None:
        async with Transaction(client) as both:
            for update in (items.MOVE, items.END):
                both.update(
                    update["TableName"],
                    items.values_of(update["Key"]),
                    update["UpdateExpression"],
                    update.get("ConditionExpression"),
                    update["ExpressionAttributeNames"],
                    items.values_of(update["ExpressionAttributeValues"]),
                )

    if as_dict:
        return {"get": get, "query": query}
    return {"get": get, "update": update, "query": query, "transaction": transaction}
