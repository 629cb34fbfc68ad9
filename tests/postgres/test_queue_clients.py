"""Tasks enqueue to the PostgreSQL store of their worker."""

from __future__ import annotations

import pytest

from sitq.backends.postgres import PostgresBackend
from tests.postgres.servers import dsn, new_schema
from tests.queue_client_checks import check_both_clients

pytestmark = pytest.mark.anyio


async def test_tasks_enqueue_through_their_workers_connections() -> None:
    await check_both_clients(PostgresBackend(dsn(), schema=new_schema()))
