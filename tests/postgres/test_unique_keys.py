"""Calls with unique keys wait for each other in one order, and so not in a circle."""

from __future__ import annotations

from contextlib import closing

import anyio
import anyio.to_thread
import psycopg
import pytest

from sitq.backends.postgres import PostgresBackend
from sitq.errors import BackendBusyError
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio

WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"


async def test_a_call_that_waits_for_a_key_has_taken_no_later_one() -> None:
    schema = new_schema()
    one, two = (PostgresBackend(dsn(), schema=schema) for _ in range(2))
    await one.open()
    await two.open()
    batch = [new_task(unique_key=key) for key in ("z", "b", "a")]
    found = []

    async def enqueue() -> None:
        found.extend(await one.enqueue(batch))

    with closing(psycopg.connect(dsn())) as connection:
        await one.join(connection).enqueue([new_task(unique_key="a")])
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(enqueue)
                while not await anyio.to_thread.run_sync(  # noqa: ASYNC110
                    query, WAITING, f"%{schema}%"
                ):
                    await anyio.sleep(0.01)
                # It waits for a caller that it must not keep waiting in turn.
                (later,) = await two.enqueue([new_task(unique_key="z")])
                await anyio.to_thread.run_sync(connection.rollback)
    assert found == [later, batch[1].id, batch[2].id]
    taken = (await two.reserve("w", ["default"], 9, 30.0)).tasks
    assert {task.id for task in taken} == set(found)
    await two.close()
    await one.close()


async def test_a_call_that_waits_for_a_key_keeps_no_other_key_waiting() -> None:
    """Not even one of the call that the open transaction itself waits for."""
    backend = PostgresBackend(dsn(), schema=new_schema())
    await backend.open()
    found = []

    async def enqueue() -> None:
        found.extend(await backend.enqueue([new_task(unique_key="held")]))

    with closing(psycopg.connect(dsn())) as connection:
        (holder,) = await backend.join(connection).enqueue([new_task(unique_key="held")])
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(enqueue)
                await anyio.wait_all_tasks_blocked()
                for key in ("a", "b", "c"):
                    task = new_task(unique_key=key)
                    assert await backend.enqueue([task]) == [task.id]
                assert found == []
                await anyio.to_thread.run_sync(connection.commit)
    assert found == [holder] * 5
    await backend.close()


async def test_a_call_that_waits_for_a_key_ends_with_the_statement_timeout() -> None:
    backend = PostgresBackend(dsn(), schema=new_schema(), statement_timeout=1.0)
    await backend.open()
    task = new_task(unique_key="held")
    with closing(psycopg.connect(dsn())) as connection:
        await backend.join(connection).enqueue([new_task(unique_key="held")])
        with anyio.fail_after(20), pytest.raises(BackendBusyError, match="statement timeout"):
            await backend.enqueue([task])
        connection.rollback()
    assert await backend.get_tasks([task.id]) == [None]
    await backend.close()
