"""Stock PynamoDB: models, one connection a model."""

from __future__ import annotations

from pynamodb.attributes import JSONAttribute, NumberAttribute, UnicodeAttribute
from pynamodb.connection import Connection
from pynamodb.indexes import AllProjection, GlobalSecondaryIndex
from pynamodb.models import Model
from pynamodb.transactions import TransactWrite

from benchmarks.clients import items


def operations(endpoint: str, variant: str) -> items.Blocking:
    class StatusIndex(GlobalSecondaryIndex["Session"]):
        class Meta:
            index_name = "status-index"
            projection = AllProjection()

        status = UnicodeAttribute(hash_key=True)
        created_at = NumberAttribute(range_key=True)

    class Session(Model):
        class Meta:
            table_name = items.SESSIONS
            region, host, max_pool_connections = items.REGION, endpoint, items.AT_ONCE

        session_id = UnicodeAttribute(hash_key=True)
        user_id = UnicodeAttribute(null=True)
        project_name = UnicodeAttribute(null=True)
        pipeline_type = UnicodeAttribute(null=True)
        status = UnicodeAttribute(null=True)
        current_agent = UnicodeAttribute(null=True)
        progress = NumberAttribute(null=True)
        created_at = NumberAttribute(null=True)
        last_updated = NumberAttribute(null=True)
        metadata = JSONAttribute(null=True)
        fence = NumberAttribute(null=True)
        lease_owner = UnicodeAttribute(null=True)
        lease_token = UnicodeAttribute(null=True)
        status_index = StatusIndex()

    class Execution(Model):
        class Meta:
            table_name = items.EXECUTIONS
            region, host = items.REGION, endpoint

        execution_id = UnicodeAttribute(hash_key=True)
        agent_name = UnicodeAttribute(range_key=True)
        status = UnicodeAttribute(null=True)
        end_time = NumberAttribute(null=True)
        output_data = UnicodeAttribute(null=True)

    connection = Connection(region=items.REGION, host=endpoint, max_pool_connections=items.AT_ONCE)

    def update() -> None:
        Session(items.SESSION_ID).update(
            [
                Session.status.set("ACTIVE"),
                Session.current_agent.set(items.AGENT),
                Session.progress.set(6),
                Session.last_updated.set(items.NOW),
            ],
            condition=Session.lease_token.does_not_exist()
            & Session.status.is_in("ACTIVE", "FAILED"),
        )

    def query() -> None:
        items.expect(len([*Session.status_index.query("ACTIVE", limit=25, page_size=25)]), 25)

    def transaction() -> None:
        with TransactWrite(connection=connection) as both:
            both.update(
                Session(items.SESSION_ID),
                actions=[
                    Session.current_agent.set(items.AGENT),
                    Session.progress.set(6),
                    Session.last_updated.set(items.NOW),
                ],
                condition=Session.lease_token == "token",
            )
            both.update(
                Execution(items.EXECUTION_ID, items.AGENT),
                actions=[
                    Execution.status.set("COMPLETED"),
                    Execution.end_time.set(items.NOW),
                    Execution.output_data.set(items.OUTPUT),
                ],
            )

    def save() -> None:
        Session(items.SESSION_ID, status="ACTIVE", current_agent="nl_input", progress=0).save()

    return {
        "get": lambda: Session.get(items.SESSION_ID, consistent_read=True),
        "update": update,
        "query": query,
        "transaction": transaction,
        "save": save,
    }
