"""Servers that crash, connections that are cut: no task is lost with them."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from sitq import (
    BackendBusyError,
    BackendConnectionError,
    RetryPolicy,
    TaskQueue,
    TaskStatus,
    Worker,
    call,
    current_task,
)
from sitq.backends.postgres import PostgresBackend
from sitq.backends.postgres._connection import ConnectTarget, connect
from sitq.backends.postgres._errors import LostError
from sitq.ids import TaskId
from tests.postgres.samples import new_task, opened
from tests.postgres.servers import Server, new_schema, query

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("SITQ_CUT_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SECONDS = 60.0 if "SITQ_SOAK" in os.environ else 3.0

RUNS: list[tuple[str, int]] = []


async def note() -> int:
    """Log the run; the epoch comes back."""
    task = current_task()
    RUNS.append((task.id, task._task.epoch))
    await anyio.lowlevel.checkpoint()
    return task._task.epoch


async def ask(where: Server, sql: str) -> list[tuple[Any, ...]]:
    return await anyio.to_thread.run_sync(lambda: query(sql, where=where.dsn))


# -- cut connections -------------------------------------------------------------------------


async def check_total(backend: PostgresBackend, acknowledged: set[str], runs: list[Any]) -> None:
    """Drain, and hold what is there to the invariants."""
    assert len(runs) == len(set(runs)), "one epoch ran twice"
    infos = await backend.get_tasks([TaskId(task_id) for task_id in acknowledged])
    assert None not in infos, "an acknowledged task was lost"
    for info in filter(None, infos):
        assert info.status is TaskStatus.SUCCESS, info
        assert info.attempts == 1, info
    assert {task_id for task_id, _ in runs} >= acknowledged


async def test_connections_cut_at_random_lose_nothing(server: Server) -> None:
    """A worker and callers go on while the server ends their processes one after the other."""
    print(f"seed {SEED} (SITQ_CUT_SEED)")
    chance = random.Random(SEED)
    schema = new_schema()
    backend = PostgresBackend(server.dsn, schema=schema)
    RUNS.clear()
    acknowledged: set[str] = set()
    refused = 0
    sql = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'sitq' ORDER BY random() LIMIT 1"
    )

    async def put(queue: TaskQueue, stop: anyio.Event) -> None:
        nonlocal refused
        while not stop.is_set():
            try:
                acknowledged.update(await queue.enqueue_many([call(note)] * chance.randint(1, 20)))
            except BackendConnectionError:
                refused += 1
            await anyio.sleep(0.002)

    cuts = 0
    async with TaskQueue(backend) as queue:
        worker = Worker(
            PostgresBackend(server.dsn, schema=schema),
            tasks=[note],
            max_concurrency=20,
            lease=5.0,
            max_crashes=1000,
            poll_interval=0.2,
        )
        stop = anyio.Event()
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            for _ in range(3):
                group.start_soon(put, queue, stop)
            with anyio.move_on_after(SECONDS):
                while True:
                    cuts += len(await ask(server, sql))
                    await anyio.sleep(chance.uniform(0, 0.1))
            stop.set()
            with anyio.fail_after(30 + 5 * SECONDS):  # the rest may be much by then
                for task_id in list(acknowledged):
                    await queue.get_result(TaskId(task_id))
            await worker.stop()
        await check_total(backend, acknowledged, RUNS)
    print({"cuts": cuts, "acknowledged": len(acknowledged), "refused": refused})
    assert cuts > 5
    assert len(acknowledged) > 20
    rows = await ask(
        server, f"SELECT count(*) FROM {schema}.tasks WHERE status <> 'success' OR attempts <> 1"
    )
    assert rows == [(0,)]


async def test_a_worker_outlives_a_crash_of_the_server(server: Server) -> None:
    """What was acknowledged before is done after; callers are told while it is down."""
    schema = new_schema()
    RUNS.clear()
    async with TaskQueue(PostgresBackend(server.dsn, schema=schema)) as queue:
        worker = Worker(
            PostgresBackend(server.dsn, schema=schema),
            tasks=[note],
            lease=2.0,
            max_crashes=1000,
            poll_interval=0.2,
        )
        async with anyio.create_task_group() as group:
            await group.start(worker.start)
            before = await queue.enqueue_many([call(note)] * 50)
            later = await queue.options(delay=0.5).enqueue(note)
            await anyio.to_thread.run_sync(server.crash)
            try:
                with pytest.raises(BackendConnectionError, match="enqueue on postgresql://"):
                    await queue.enqueue(note)
            finally:
                await anyio.to_thread.run_sync(server.start)
            after = await queue.enqueue(note)
            with anyio.fail_after(30):
                for task_id in (*before, later, after):
                    result = await queue.get_result(task_id)
                    assert result is not None
                    assert result.status is TaskStatus.SUCCESS
            await worker.stop()
    assert len(RUNS) == len(set(RUNS))


END_LISTENING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"


async def test_listeners_hear_again_after_their_connection_was_cut(server: Server) -> None:
    schema = new_schema()
    first = PostgresBackend(server.dsn, schema=schema)
    second = PostgresBackend(server.dsn, schema=schema)
    await first.open()
    await second.open()
    async with first.listen("tasks") as listener:
        for _ in range(3):
            with anyio.fail_after(20):
                while not await ask(server, END_LISTENING):
                    pass
                await second.enqueue([new_task()])
                await listener.wait()
    await second.close()
    await first.close()


# -- other failures -------------------------------------------------------------------------


async def test_a_statement_that_takes_too_long_is_a_busy_store(server: Server) -> None:
    schema = new_schema()
    separator = "&" if "?" in server.dsn else "?"
    backend = await opened(f"{server.dsn}{separator}statement_timeout=1000", schema)
    (task_id,) = await backend.enqueue([new_task()])
    locked, done = threading.Event(), threading.Event()

    def lock() -> None:
        import asyncio

        import asyncpg

        async def hold() -> None:
            connection = await asyncpg.connect(server.dsn)
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {schema}.tasks IN ACCESS EXCLUSIVE MODE")
                locked.set()
                await asyncio.to_thread(done.wait)
            await connection.close()

        asyncio.run(hold())

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, lock)
        await anyio.to_thread.run_sync(locked.wait)
        try:
            with pytest.raises(BackendBusyError, match=r"enqueue on .*statement timeout"):
                await backend.enqueue([new_task()])
            with pytest.raises(BackendBusyError, match="get_tasks on"):
                await backend.get_tasks([task_id])
        finally:
            done.set()
    assert len(await backend.get_tasks([task_id])) == 1
    await backend.close()


async def test_too_many_connections_are_a_busy_store(server: Server) -> None:
    backends = [PostgresBackend(server.dsn, schema=new_schema()) for _ in range(60)]
    opened_ones = []
    with pytest.raises(BackendBusyError, match="too many"):
        for backend in backends:
            await backend.open()
            opened_ones.append(backend)
    for backend in opened_ones:
        await backend.close()


async def test_a_server_that_is_not_there_is_a_connection_error() -> None:
    backend = PostgresBackend("postgresql://user:secret@127.0.0.1:1/none")
    with pytest.raises(BackendConnectionError, match="connect on postgresql://user@127") as error:
        await backend.open()
    assert "secret" not in str(error.value)
    assert "secret" not in repr(error.value.__cause__)


def test_a_driver_in_disorder_is_a_lost_connection(server: Server) -> None:
    async def ask_twice_at_once() -> BaseException | list[Any]:
        link = await connect(ConnectTarget(server.dsn, prepared=True, timeout=None))
        questions = (link.fetch("SELECT pg_sleep(1)"), link.fetch("SELECT 1"))
        _, second = await asyncio.gather(*questions, return_exceptions=True)
        return second

    lost = asyncio.run(ask_twice_at_once())
    assert isinstance(lost, LostError)
    assert str(lost) == "the connection was lost"
    assert "another operation" in str(lost.__cause__)


async def test_retries_fail_and_succeed_as_elsewhere(server: Server) -> None:
    async with TaskQueue(PostgresBackend(server.dsn, schema=new_schema())) as queue:
        policy = RetryPolicy(max_attempts=2, delay=0.0, jitter=0)
        task_id = await queue.options(retry=policy).enqueue(fail_once)
        assert await Worker(queue._backend).drain() == 2
        result = await queue.get_result(task_id, timeout=0)
    assert result is not None
    assert result.attempts == 2


async def fail_once() -> None:
    """Fail in the first attempt, with a text that the server cannot store as it is."""
    if current_task().attempt == 1:
        raise ValueError("a \0 in the middle")
