"""Servers that crash, connections that are cut, answers that are lost: nothing else is."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any, Literal

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
from sitq.backends.postgres import PostgresBackend, _database, _driver
from sitq.ids import TaskId, new_task_id
from sitq.models import Lease, LeaseState, Outcome, OutcomeKind
from tests.postgres.proxies import Proxy
from tests.postgres.samples import make_outcome, new_task
from tests.postgres.servers import Server, new_schema, query

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("SITQ_CUT_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
SECONDS = 60.0 if "SITQ_SOAK" in os.environ else 3.0
Loses = Literal["question", "answer"]
both = pytest.mark.parametrize("loses", ["question", "answer"])

RUNS: list[tuple[str, int]] = []


async def note() -> int:
    """Log the run; the epoch comes back."""
    task = current_task()
    RUNS.append((task.id, task._task.epoch))
    await anyio.lowlevel.checkpoint()
    return task._task.epoch


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be broken."""
    server = Server(max_connections="40")
    yield server
    server.remove()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of it."""
    with Proxy(f"{server.folder}/data/.s.PGSQL.5432") as proxy:
        yield proxy


async def opened(where: str, schema: str = "", **options: Any) -> PostgresBackend:
    backend = PostgresBackend(where, schema=schema or new_schema(), pool_size=1, **options)
    await backend.open()
    # Each statement is prepared once, so that a question is one message.
    await backend.enqueue([new_task(queue="warm", unique_key="warm")])
    (task_id,) = await backend.enqueue([new_task(queue="warm")])
    taken = (await backend.reserve("w", ["warm"], 9, 30.0)).tasks
    await backend.finish([Outcome.success(task.lease, b"") for task in taken[:1]])
    await backend.finish([Outcome.failure(task.lease, "no") for task in taken[1:]])
    await backend.get_tasks([task_id])
    return backend


async def ask(where: Server, sql: str) -> list[tuple[Any, ...]]:
    return await anyio.to_thread.run_sync(lambda: query(sql, where=where.dsn))


# -- a lost answer ---------------------------------------------------------------------------


@both
async def test_an_enqueue_whose_answer_is_lost_is_stored_once(proxy: Proxy, loses: Loses) -> None:
    backend = await opened(proxy.dsn)
    tasks = [new_task() for _ in range(3)]
    proxy.lose(loses)
    assert await backend.enqueue(tasks) == [task.id for task in tasks]
    assert proxy.lost.is_set()
    taken = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert [task.id for task in taken] == [task.id for task in tasks]
    await backend.close()


@both
async def test_an_enqueue_with_keys_whose_answer_is_lost_tells_the_holders(
    proxy: Proxy, loses: Loses
) -> None:
    backend = await opened(proxy.dsn)
    holder = new_task(unique_key="a")
    await backend.enqueue([holder])
    tasks = [new_task(unique_key="a"), new_task(), new_task(unique_key="b")]
    proxy.lose(loses)
    assert await backend.enqueue(tasks) == [holder.id, tasks[1].id, tasks[2].id]
    assert proxy.lost.is_set()
    assert len((await backend.reserve("w", ["default"], 9, 30.0)).tasks) == 3
    await backend.close()


@both
async def test_a_reservation_whose_answer_is_lost_is_found_again(
    proxy: Proxy, loses: Loses
) -> None:
    backend = await opened(proxy.dsn)
    ids = await backend.enqueue([new_task() for _ in range(3)])
    proxy.lose(loses)
    taken = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert proxy.lost.is_set()
    assert [(task.id, task.epoch, task.attempt) for task in taken] == [(i, 1, 1) for i in ids]
    assert await backend.finish([Outcome.success(task.lease, b"") for task in taken]) == [True] * 3
    await backend.close()


@both
@pytest.mark.parametrize("kind", OutcomeKind)
async def test_an_outcome_whose_answer_is_lost_is_told_as_it_was(
    proxy: Proxy, loses: Loses, kind: OutcomeKind
) -> None:
    backend = await opened(proxy.dsn)
    (task_id, lost_id) = await backend.enqueue([new_task(), new_task()])
    leases = [task.lease for task in (await backend.reserve("w", ["default"], 9, 30.0)).tasks]
    await backend.finish([Outcome.release(leases[1])])
    (again,) = (await backend.reserve("w", ["default"], 9, 30.0)).tasks
    assert again.id == lost_id
    outcomes = [make_outcome(kind, lease) for lease in (*leases, Lease(new_task_id(), 1))]
    proxy.lose(loses)
    answers = await backend.finish(outcomes)
    assert proxy.lost.is_set()
    assert answers[0] is True
    assert answers[2] is False
    if kind not in {OutcomeKind.RETRY, OutcomeKind.RELEASE, OutcomeKind.MISS}:
        assert answers[1] is False
    infos = [info for info in await backend.get_tasks([task_id, lost_id]) if info]
    assert infos[0].status is not TaskStatus.IN_PROGRESS
    assert infos[1].status is TaskStatus.IN_PROGRESS
    await backend.close()


@both
async def test_a_cancellation_whose_answer_is_lost_has_cancelled(
    proxy: Proxy, loses: Loses
) -> None:
    backend = await opened(proxy.dsn)
    await backend.cancel((await backend.enqueue([new_task()]))[0])
    (task_id,) = await backend.enqueue([new_task()])
    proxy.lose(loses)
    assert await backend.cancel(task_id) is True
    assert proxy.lost.is_set()
    (info,) = await backend.get_tasks([task_id])
    assert info is not None
    assert info.status is TaskStatus.CANCELLED
    await backend.close()


@both
async def test_a_read_and_a_heartbeat_outlive_a_lost_connection(proxy: Proxy, loses: Loses) -> None:
    backend = await opened(proxy.dsn)
    (task_id,) = await backend.enqueue([new_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    proxy.lose(loses)
    assert len(await backend.get_tasks([task_id])) == 1
    assert proxy.lost.is_set()

    def beat() -> None:
        keeper = backend.lease_keeper()
        assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
        proxy.lose(loses)
        with pytest.raises(BackendConnectionError, match="renew on postgresql://"):
            keeper.renew([task.lease], 30.0)
        assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
        keeper.close()
        keeper.close()

    await anyio.to_thread.run_sync(beat)
    await backend.close()


async def test_an_outcome_that_cannot_be_found_out_is_called_unknown(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_database, "_SEARCH_SECONDS", 0.2)
    backend = await opened(proxy.dsn)
    task = new_task()
    proxy.forget_the_way()  # for those who come anew
    proxy.lose("answer")
    with pytest.raises(BackendConnectionError, match="the outcome is unknown"):
        await backend.enqueue([task])
    assert proxy.lost.is_set()
    await backend.close()


async def test_a_server_that_falls_silent_is_given_up_in_time(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_database, "_SEARCH_SECONDS", 0.2)
    monkeypatch.setattr(_driver, "_CONNECT_SECONDS", 0.3)
    backend = await opened(proxy.dsn, statement_timeout=0.3)
    proxy.fall_silent()
    with anyio.fail_after(10), pytest.raises(BackendConnectionError, match="outcome is unknown"):
        await backend.enqueue([new_task()])
    await backend.close()


async def test_the_system_is_asked_to_notice_a_server_that_has_vanished(proxy: Proxy) -> None:
    backend = await opened(proxy.dsn)
    (link,) = backend._users.use().database.pool._idle
    plug = link._connection._transport.get_extra_info("socket")
    assert plug.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
    assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
    await backend.close()


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
            with anyio.fail_after(30):
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


# -- other trouble ---------------------------------------------------------------------------


async def test_a_statement_that_takes_too_long_is_a_busy_store(server: Server) -> None:
    schema = new_schema()
    separator = "&" if "?" in server.dsn else "?"
    backend = await opened(f"{server.dsn}{separator}statement_timeout=200", schema)
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
