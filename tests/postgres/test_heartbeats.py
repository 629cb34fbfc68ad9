"""Heartbeats on PostgreSQL: over a connection that is there from the start, or the pool's."""

from __future__ import annotations

import ctypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sitq import BackendBusyError, TaskQueue, TaskStatus, Worker
from sitq.backends.postgres import PostgresBackend
from tests.postgres.servers import Server, new_schema, query

pytestmark = pytest.mark.anyio

LEASE = 1.0

OPENED: list[anyio.Event] = []


async def held() -> str:
    await OPENED[-1].wait()
    return "done"


async def hold_interpreter(seconds: float) -> str:
    """Keep every other thread from running, as a regular expression or a large JSON does."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
    return "done"


async def ask(where: Server, sql: str) -> list[tuple[Any, ...]]:
    return await anyio.to_thread.run_sync(lambda: query(sql, where=where.dsn))


@asynccontextmanager
async def role_of_few(server: Server) -> AsyncIterator[tuple[str, str]]:
    """A role whose connections can be limited, and the DSN for it."""
    role = new_schema()
    await ask(server, f"CREATE ROLE {role} LOGIN")
    await ask(server, f"GRANT CREATE ON DATABASE postgres TO {role}")
    try:
        yield role, server.dsn.replace("postgres@", f"{role}@", 1)
    finally:
        await ask(server, f"ALTER ROLE {role} CONNECTION LIMIT -1")


async def limit(server: Server, role: str, connections: int) -> None:
    await ask(server, f"ALTER ROLE {role} CONNECTION LIMIT {connections}")


async def test_a_worker_is_not_ready_without_a_connection_for_its_heartbeats(
    server: Server,
) -> None:
    async with role_of_few(server) as (role, dsn):
        backend = PostgresBackend(dsn, schema=new_schema(), pool_size=1)
        async with backend_open(backend):
            await limit(server, role, 1)
            async with anyio.create_task_group() as group:
                with pytest.raises(BackendBusyError, match="too many connections"):
                    await group.start(Worker(backend).start)


@asynccontextmanager
async def backend_open(backend: PostgresBackend) -> AsyncIterator[None]:
    await backend.open()
    try:
        yield
    finally:
        await backend.close()


async def test_leases_are_renewed_over_the_pool_where_no_new_connection_is_to_be_had(
    server: Server,
) -> None:
    OPENED.append(anyio.Event())
    async with role_of_few(server) as (role, dsn):
        backend = PostgresBackend(dsn, schema=new_schema())
        async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
            worker = Worker(backend, lease=LEASE)
            await group.start(worker.start)
            task_id = await queue.enqueue(held)
            by_heartbeats = (
                f"SELECT pid FROM pg_stat_activity WHERE usename = '{role}'"
                " AND query LIKE '%SET lease_end =%make_interval%mine.epoch%'"
            )
            with anyio.fail_after(20):
                while not (found := await ask(server, by_heartbeats)):  # noqa: ASYNC110 - the server's
                    await anyio.sleep(0.02)
            await limit(server, role, 0)
            await ask(server, f"SELECT pg_terminate_backend({found[0][0]})")
            await anyio.sleep(3 * LEASE)  # the lease must be renewed in real time
            OPENED[-1].set()
            assert await queue.get_result(task_id, timeout=20) is not None
            info = await queue.get_task(task_id)
            assert (info.status, info.attempts, info.crashes) == (TaskStatus.SUCCESS, 1, 0)
            await worker.stop()


async def test_a_value_counts_though_the_interpreter_was_held_past_the_lease(
    server: Server,
) -> None:
    backend = PostgresBackend(server.dsn, schema=new_schema())
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, lease=LEASE)
        await group.start(worker.start)
        for _ in range(2):
            task_id = await queue.enqueue(hold_interpreter, 1.5 * LEASE)
            assert await queue.get_result(task_id, timeout=20) is not None
            info = await queue.get_task(task_id)
            assert (info.status, info.attempts, info.crashes) == (TaskStatus.SUCCESS, 1, 0)
        await worker.stop()
