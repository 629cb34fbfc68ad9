"""A pause that is acknowledged holds, whatever was under way on the server."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import asyncpg
import pytest

from sitq import TaskStatus
from sitq.administration import QueuePause
from sitq.backends.postgres import PostgresBackend
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

RESERVE = """
SELECT * FROM "{}".reserve(statement_timestamp(), 'slow', '{{default}}', 5, 30, 1)
"""


async def test_a_pause_waits_for_a_reservation_that_has_not_seen_it() -> None:
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    (taken, left) = await backend.enqueue([new_task(), new_task(queue="other")])
    slow = await asyncpg.connect(dsn())
    await slow.execute("BEGIN")
    assert len(await slow.fetch(RESERVE.format(schema))) == 2  # a task, and the wait
    is_paused = anyio.Event()

    async def pause() -> None:
        await backend.pause_queue(QueuePause(queue="default", at=datetime.now(UTC)))
        is_paused.set()

    async with anyio.create_task_group() as group:
        group.start_soon(pause)
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        with anyio.fail_after(10):
            while not await slow.fetch(waiting):
                assert not is_paused.is_set()
                await anyio.sleep(0.01)
        await slow.execute("COMMIT")
    assert is_paused.is_set()
    tasks = await backend.get_tasks([taken, left])
    assert [task and task.status for task in tasks] == [TaskStatus.IN_PROGRESS, TaskStatus.PENDING]
    reserved = await backend.reserve("w", ["default", "other"], 5, 30.0)
    assert [task.id for task in reserved.tasks] == [left]
    await slow.close()
    await backend.close()
