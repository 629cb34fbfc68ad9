"""Closing while the server does not answer, and no closing at all: nothing is left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import psycopg
import pytest

from sitq import (
    BackendBusyError,
    BackendConnectionError,
    BackendError,
    TaskQueue,
    UnknownOutcomeError,
)
from sitq.backends.postgres import PostgresBackend, _session
from sitq.queue import _waiting
from tests.postgres.proxies import Proxy
from tests.postgres.servers import dsn, new_schema
from tests.unit.queue_support import add

pytestmark = pytest.mark.anyio


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits as long as in real life."""
    monkeypatch.setattr(_session, "_PATIENCE", 0.2)
    monkeypatch.setattr(_waiting, "_LAST_LOOK", 0.2)


@contextmanager
def locked(schema: str) -> Iterator[None]:
    """Somebody else's transaction holds the tasks."""
    with psycopg.connect(dsn()) as other:
        other.execute(f'LOCK TABLE "{schema}".tasks'.encode())
        yield
        other.rollback()


async def enqueue(queue: TaskQueue, errors: list[BackendError]) -> None:
    try:
        await queue.enqueue(add, 3, 4)
    except BackendError as error:
        errors.append(error)


@pytest.mark.usefixtures("short")
async def test_statements_that_wait_for_a_lock_end_as_lost() -> None:
    schema, errors = new_schema(), list[BackendError]()
    backend = PostgresBackend(dsn(), schema=schema, pool_size=1)
    queue = TaskQueue(backend)
    kept = await queue.enqueue(add, 1, 2)
    with anyio.fail_after(30):
        with locked(schema):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(enqueue, queue, errors)
                    await anyio.wait_all_tasks_blocked()
                await queue.close()
        # One was under way at least; what gathered meanwhile was not sent.
        kinds = [type(error) for error in errors]
        assert UnknownOutcomeError in kinds
        assert kinds.count(UnknownOutcomeError) + kinds.count(BackendConnectionError) == 3
        async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
            assert (await queue.get_task(kept)).task_id == kept


@pytest.mark.usefixtures("short")
async def test_a_server_that_has_vanished_does_not_hold_up_the_closing(proxy: Proxy) -> None:
    errors: list[BackendError] = []
    queue = TaskQueue(PostgresBackend(proxy.dsn, schema=new_schema()))
    await queue.connect()
    await queue.enqueue(add, 1, 2)
    proxy.fall_silent()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(enqueue, queue, errors)
            await anyio.wait_all_tasks_blocked()
            await queue.close()
    assert len(errors) == 1


async def test_what_is_under_way_is_still_done() -> None:
    schema, errors = new_schema(), list[BackendError]()
    queue = TaskQueue(PostgresBackend(dsn(), schema=schema))
    await queue.connect()
    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(enqueue, queue, errors)
        await anyio.wait_all_tasks_blocked()
        await queue.close()
    assert errors == []


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("timeout", [0.0, 0.1])
async def test_a_wait_for_a_result_ends_although_the_server_does_not_answer(
    timeout: float,
) -> None:
    schema = new_schema()
    async with TaskQueue(PostgresBackend(dsn(), schema=schema)) as queue:
        task_id = await queue.enqueue(add, 1, 2)
        with locked(schema), anyio.fail_after(30):
            with pytest.raises(BackendBusyError, match="has not answered"):
                await queue.get_result(task_id, timeout)
        assert await queue.get_result(task_id, 0) is None


def drivers() -> int:
    """How many threads there are for the driver."""
    return sum(thread.name == "sitq-postgres" for thread in threading.enumerate())


class Forgotten:
    """A store that is open, and that nobody closes."""

    def __init__(self) -> None:
        self.name = f"sitq-{new_schema()}"
        self.threads = drivers()
        self.where = f"{dsn()}{'&' if '?' in dsn() else '?'}application_name={self.name}"

    async def use(self) -> None:
        backend = PostgresBackend(self.where, schema=new_schema())
        await TaskQueue(backend).enqueue(add, 1, 2)
        async with backend.listen("results"):
            assert self.connections >= 2

    @property
    def connections(self) -> int:
        """How many the server has."""
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        with psycopg.connect(dsn()) as own:
            row = own.execute(asked, (self.name,)).fetchone()
        return 0 if row is None else int(row[0])

    def is_left(self) -> bool:
        """Return whether anything of it exists."""
        return self.connections > 0 or drivers() > self.threads


@pytest.mark.usefixtures("anyio_backend")
def test_the_end_of_the_loop_lets_go(anyio_backend_name: str) -> None:
    """Whatever still refers to the backend, as a module's variable does."""
    forgotten = Forgotten()
    kept = []

    async def main() -> None:
        backend = PostgresBackend(forgotten.where, schema=new_schema())
        kept.append(TaskQueue(backend))
        await kept[0].enqueue(add, 1, 2)
        async with backend.listen("results"):
            assert forgotten.connections >= 2

    anyio.run(main, backend=anyio_backend_name)
    wait_until(lambda: not forgotten.is_left())


async def test_a_backend_that_is_collected_closes_its_connections() -> None:
    forgotten = Forgotten()
    await forgotten.use()
    with anyio.fail_after(20):
        while forgotten.is_left():
            gc.collect()
            await anyio.sleep(0.01)


def wait_until(happened: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < give_up
        time.sleep(0.01)
