"""Behind PgBouncer in transaction mode: what works, and what is refused with advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import psycopg
import pytest

from sitq import (
    BackendConnectionError,
    RetryPolicy,
    TaskQueue,
    TaskStatus,
    Worker,
    call,
    current_task,
    task,
)
from sitq.backends.postgres import PostgresBackend, _wakeups
from sitq.backends.postgres._connection import _SERVER_SIDE, _SETTINGS
from sitq.ids import TaskId
from tests.postgres.poolers import Pooler
from tests.postgres.servers import Server, new_schema, query

pytestmark = pytest.mark.anyio

RUNS: list[tuple[str, int]] = []


@pytest.fixture(scope="module")
def pooler(server: Server) -> Iterator[Pooler]:
    """Fewer connections to the server than any of the tests has to the pooler."""
    pooler = Pooler(server, size=3)
    yield pooler
    pooler.remove()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wakeups, "_TEST_SECONDS", 0.2)  # no notification will come
    RUNS.clear()


def backend(pooler: Pooler, schema: str, **options: Any) -> PostgresBackend:
    return PostgresBackend(pooler.dsn, schema=schema, prepared_statements=False, **options)


@task
async def note() -> int:
    """Log the run; the epoch comes back."""
    lease = current_task().lease
    RUNS.append((lease.task_id, lease.epoch))
    await anyio.lowlevel.checkpoint()
    return lease.epoch


@task(retry=RetryPolicy(max_attempts=2, delay=0, jitter=0))
async def fail_once() -> int:
    """Fail in the first attempt."""
    if current_task().attempt == 1:
        raise ValueError("not yet")
    return 2


@task
async def stay() -> None:
    """Run until cancelled."""
    await anyio.sleep_forever()


@task
def complete(where: str) -> str:
    """Complete itself in a transaction that goes through the pooler too."""
    with psycopg.connect(where, prepare_threshold=None) as connection:
        current_task().complete_in_sync(connection, "committed")
    return "not heard"


@pytest.mark.parametrize("ignored", ["", ",".join([*_SETTINGS, *_SERVER_SIDE])])
async def test_prepared_statements_are_refused_with_advice(server: Server, ignored: str) -> None:
    """Also where the pooler would let the connection's settings pass, and lose them."""
    pooler = Pooler(server, ignored=ignored)
    schema = new_schema()
    try:
        with pytest.raises(BackendConnectionError, match="say prepared_statements=False") as error:
            await PostgresBackend(pooler.dsn, schema=schema).open()
        assert "a pooler is in between" in str(error.value)
        one = backend(pooler, schema)
        await one.open()
        await one.close()
    finally:
        pooler.remove()


async def test_all_that_a_task_may_come_to_works_without_them(pooler: Pooler) -> None:
    """Nobody is told of anything, and nobody polls: changes are seen by looking."""
    schema = new_schema()
    async with TaskQueue(backend(pooler, schema)) as queue:
        workers = [
            Worker(backend(pooler, schema), poll_interval=3600.0, lease=1.5, max_concurrency=5)
            for _ in range(2)
        ]
        async with anyio.create_task_group() as group:
            for worker in workers:
                await group.start(worker.start)
            with anyio.fail_after(30):
                ids = await queue.enqueue_many([call(note)] * 40)
                for each in ids:
                    assert await queue.get_result(each) is not None
                again = await queue.get_result(await queue.enqueue(fail_once))
                assert again is not None
                assert (again.status, again.attempts) == (TaskStatus.SUCCESS, 2)
                done = await queue.get_result(await queue.enqueue(complete, pooler.dsn))
                assert done is not None
                assert queue.deserialize_result(done) == "committed"
                running = await queue.enqueue(stay)
                while (await queue.get_task(running)).status is not TaskStatus.IN_PROGRESS:
                    pass
                await anyio.sleep(2.0)  # real time: it has to be kept beyond its lease
                assert (await queue.get_task(running)).crashes == 0
                assert await queue.cancel(running)
                ended = await queue.get_result(running)
                assert ended is not None
                assert ended.status is TaskStatus.CANCELLED
            for worker in workers:
                await worker.stop()
    assert sorted(RUNS) == sorted((each, 1) for each in ids)


async def test_a_task_of_a_users_transaction_is_there_with_its_commit(pooler: Pooler) -> None:
    async with TaskQueue(backend(pooler, new_schema())) as queue:
        with psycopg.connect(pooler.dsn, prepare_threshold=None) as connection:
            kept = await queue.bind(connection).enqueue(note)
            connection.commit()
            await queue.bind(connection).enqueue(note)
            connection.rollback()
        assert await Worker(queue._backend).drain() == 1
    assert [(kept, 1)] == RUNS


async def test_a_pooler_that_is_killed_loses_nothing(server: Server, pooler: Pooler) -> None:
    schema = new_schema()
    acknowledged: list[str] = []
    refused = 0

    async def put(queue: TaskQueue, stop: anyio.Event) -> None:
        nonlocal refused
        while not stop.is_set():
            try:
                acknowledged.extend(await queue.enqueue_many([call(note)] * 5))
            except BackendConnectionError:
                refused += 1
            await anyio.sleep(0.01)

    async with TaskQueue(backend(pooler, schema)) as queue:
        worker = Worker(backend(pooler, schema), lease=5.0, max_crashes=1000, poll_interval=0.2)
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            for _ in range(3):
                group.start_soon(put, queue, stop)
            for _ in range(3):
                await anyio.sleep(0.3)
                await anyio.to_thread.run_sync(pooler.kill)
                await anyio.to_thread.run_sync(pooler.start)
            count = len(acknowledged)
            with anyio.fail_after(30):
                while len(acknowledged) == count:  # noqa: ASYNC110 - a fact of the store
                    await anyio.sleep(0.01)
                stop.set()
                for each in acknowledged:
                    assert await queue.get_result(TaskId(each)) is not None
            await worker.stop()
    print({"acknowledged": len(acknowledged), "refused": refused})
    assert len(RUNS) == len(set(RUNS))
    rows = await anyio.to_thread.run_sync(
        lambda: query(f"SELECT id, status, attempts FROM {schema}.tasks", where=server.dsn)
    )
    assert {row[1:] for row in rows} == {("success", 1)}
    assert {row[0] for row in rows} >= set(acknowledged)
