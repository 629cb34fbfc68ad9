"""A row that another program has written breaks no list, no overview and no worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import pytest

from sitq import Admin, TaskFilter, TaskQueue, task
from sitq.backends.postgres import PostgresBackend
from tests.postgres.servers import dsn, new_schema, query

pytestmark = pytest.mark.anyio

WORKER = """
INSERT INTO "{schema}".workers
    (id, host, pid, version, queues, functions, slots, running, state, lease, started_at, seen_at)
VALUES ('{id}', 'h', 1, '1', '{{default}}', '{{}}', 1, 0, '{state}', 30, {at}, {at})
"""
WRONG = "no:function"
MOMENTS = ["'infinity'", "'-infinity'", "'20000-01-01'", "'0010-01-01 BC'"]


@task
async def fail() -> None:
    raise ValueError("no luck")


@asynccontextmanager
async def clients() -> AsyncIterator[tuple[Admin, TaskQueue, str]]:
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    async with Admin(backend) as admin, TaskQueue(backend) as queue:
        yield admin, queue, schema


async def write(sql: str) -> None:
    await anyio.to_thread.run_sync(query, sql)


async def test_an_unreadable_worker_is_left_out() -> None:
    async with clients() as (admin, _, schema):
        for number, at in enumerate(MOMENTS):
            await write(WORKER.format(schema=schema, id=number, state="active", at=at))
        await write(WORKER.format(schema=schema, id="odd", state="odd", at="now()"))
        found = [worker.id for worker in await admin.list_workers()]
        assert found == ["0", "1", "2", "3"]
        assert [worker.id for worker in (await admin.overview()).workers] == found


async def test_a_pause_is_shown_as_long_as_it_is_obeyed() -> None:
    async with clients() as (admin, _, schema):
        for number, at in enumerate(MOMENTS):
            values = f"'q{number}', repeat('x', 5000), '', {at}, NULL"
            await write(f'INSERT INTO "{schema}".pauses VALUES ({values})')
        await write(f"INSERT INTO \"{schema}\".pauses VALUES ('u', '', '', now(), 'infinity')")
        await write(f"INSERT INTO \"{schema}\".pauses VALUES ('no queue', '', '', now(), NULL)")
        assert [pause.queue for pause in await admin.list_pauses()] == ["q0", "q1", "q2", "q3", "u"]
        assert len((await admin.overview()).queues) == 5


async def test_an_attempt_of_another_age_is_shown() -> None:
    async with clients() as (admin, queue, schema):
        task_id = await queue.enqueue(fail)
        for at in MOMENTS:
            await write(
                f'INSERT INTO "{schema}".attempts (task_id, number, started_at, ended_at, error) '
                f"VALUES ('{task_id}', 1, {at}, {at}, 'E')"
            )
        assert len(await admin.get_attempts(task_id)) == 4


@pytest.mark.parametrize("column", ["eta", "enqueued_at", "expires_at"])
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_task_of_another_age_is_listed(column: str, moment: str) -> None:
    async with clients() as (admin, queue, schema):
        ids = [await queue.enqueue(fail) for _ in range(3)]
        sql = f'UPDATE "{schema}".tasks SET {column} = {moment} WHERE id = '
        await write(f"{sql}'{ids[1]}'")
        for where in (TaskFilter(), TaskFilter(status="pending"), TaskFilter(function=WRONG)):
            found, cursor = [], None
            for _ in range(4):
                page = await admin.list_tasks(where, limit=1, cursor=cursor)
                found += [info.task_id for info in page.items]
                cursor = page.cursor
                if cursor is None:
                    break
            assert cursor is None
            assert sorted(found) == ([] if where.function else ids)


@pytest.mark.parametrize("change", ["retry_of = 'x'", "id = 'x'"])
async def test_an_unreadable_task_is_left_out_of_lists(change: str) -> None:
    async with clients() as (admin, queue, schema):
        ids = [await queue.enqueue(fail) for _ in range(3)]
        await write(f"UPDATE \"{schema}\".tasks SET {change} WHERE id = '{ids[1]}'")
        for where in (TaskFilter(), TaskFilter(status="pending")):
            page = await admin.list_tasks(where)
            assert sorted(info.task_id for info in page.items) == [ids[0], ids[2]]
        assert (await admin.cancel_tasks(TaskFilter(status="pending"))).done == 2


async def test_a_task_with_unreadable_options_is_not_retried() -> None:
    async with clients() as (admin, queue, schema):
        ids = [await queue.enqueue(fail) for _ in range(3)]
        await admin.cancel_tasks(TaskFilter())
        await write(f"UPDATE \"{schema}\".tasks SET retry = '{{' WHERE id = '{ids[1]}'")
        result = await admin.retry_tasks(TaskFilter(status="cancelled"))
        assert (result.matched, result.done) == (3, 2)
        ((task_id, reason),) = result.skipped
        assert task_id == ids[1]
        assert "cannot be read" in reason
