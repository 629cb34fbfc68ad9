"""The server that takes the writes becomes another one: every connection finds it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread
import psycopg
import pytest

from sitq import BackendError, TaskQueue, Worker
from sitq.backends.postgres import PostgresBackend, _connection
from sitq.backends.postgres._dsn import servers_of
from sitq.models import Lease, LeaseState, Outcome
from tests.postgres.samples import new_task
from tests.postgres.servers import Server, new_schema
from tests.unit.queue_support import add

pytestmark = pytest.mark.anyio


def set_read_only(server: Server, state: str) -> None:
    """Have all sessions of a server, those that are open too, write no more; or write again."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {state}".encode())
        connection.execute("SELECT pg_reload_conf()")
    wait_for(lambda: ask(server, "SHOW default_transaction_read_only") == state)


def ask(server: Server, question: str) -> object:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute(question.encode()).fetchone()
    return None if row is None else row[0]


def wait_for(happened: Callable[[], bool]) -> None:
    give_up = threading.Event()
    for _ in range(2000):
        if happened():
            return
        give_up.wait(0.01)
    raise AssertionError("it has not happened")


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    both = [Server(), Server()]
    yield both
    for server in both:
        server.remove()


@pytest.fixture
def pair(servers: list[Server]) -> Iterator[list[Server]]:
    """Two servers, of which the first one takes writes."""
    set_read_only(servers[0], "off")
    set_read_only(servers[1], "on")
    yield servers
    for server in servers:
        set_read_only(server, "off")


def url(servers: list[Server], name: str = "sitq") -> str:
    """The URL that names both."""
    hosts = ",".join(str(server.socket) for server in servers)
    return f"postgresql://postgres@/postgres?host={hosts}&application_name={name}"


async def switch(pair: list[Server]) -> None:
    await anyio.to_thread.run_sync(set_read_only, pair[1], "off")
    await anyio.to_thread.run_sync(set_read_only, pair[0], "on")


async def prepared(pair: list[Server]) -> str:
    """A schema that both have."""
    schema = new_schema()
    for server in pair:
        set_read_only(server, "off")
        backend = PostgresBackend(server.dsn, schema=schema)
        await backend.open()
        await backend.close()
    set_read_only(pair[1], "on")
    return schema


def connections(server: Server, name: str) -> int:
    asked = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    return int(str(ask(server, asked)))


async def test_all_connections_leave_a_server_that_takes_no_writes_any_more(
    pair: list[Server],
) -> None:
    schema = await prepared(pair)
    name = f"moving-{schema}"
    backend = PostgresBackend(url(pair, name), schema=schema)
    await backend.open()
    keeper = backend.lease_keeper()
    async with backend.listen("tasks") as listener:
        (task_id,) = await backend.enqueue([new_task(queue="one")])
        lease = (await backend.reserve("w", ["one"], 1, 30.0)).tasks[0].lease
        assert await renewed(keeper.renew, lease) == LeaseState.HELD
        assert connections(pair[0], name) >= 3
        await switch(pair)
        # The other server knows nothing of the first task; it is that one which is asked.
        assert await renewed(keeper.renew, lease) == LeaseState.LOST
        fresh = new_task(queue="two")
        assert await backend.enqueue([fresh]) == [fresh.id]
        assert await backend.get_tasks([task_id]) == [None]
        assert await backend.finish([Outcome.success(lease, b"")]) == [False]
        await wait(lambda: connections(pair[0], name) == 0)
        other = PostgresBackend(pair[1].dsn, schema=schema)
        await other.open()
        with anyio.fail_after(20):
            await wait(lambda: connections(pair[1], name) >= 3)
            await listener.wait()
            await other.enqueue([new_task()])
            await listener.wait()
        await other.close()
    keeper.close()
    await backend.close()


async def renewed(
    renew: Callable[[list[Lease], float], list[LeaseState]], lease: Lease
) -> LeaseState:
    return (await anyio.to_thread.run_sync(renew, [lease], 30.0))[0]


async def wait(happened: Callable[[], bool]) -> None:
    await anyio.to_thread.run_sync(wait_for, happened)


async def test_one_who_only_reads_leaves_it_too(pair: list[Server]) -> None:
    schema = await prepared(pair)
    name = f"reading-{schema}"
    backend = PostgresBackend(url(pair, name), schema=schema)
    await backend.open()
    await backend.get_tasks([new_task().id])
    await switch(pair)
    with anyio.fail_after(20):
        while await anyio.to_thread.run_sync(connections, pair[0], name):
            await backend.get_tasks([new_task().id])
    await backend.get_tasks([new_task().id])
    assert connections(pair[1], name) == 1
    await backend.close()


async def test_a_server_without_another_one_is_used_again_once_it_takes_writes(
    pair: list[Server],
) -> None:
    backend = PostgresBackend(pair[0].dsn, schema=new_schema())
    await backend.open()
    await anyio.to_thread.run_sync(set_read_only, pair[0], "on")
    task = new_task()
    with pytest.raises(BackendError, match="read-only"):
        await backend.enqueue([task])
    assert await backend.get_tasks([task.id]) == [None]
    await anyio.to_thread.run_sync(set_read_only, pair[0], "off")
    assert await backend.enqueue([task]) == [task.id]
    await backend.close()


async def test_a_standby_that_is_promoted_has_the_tasks_and_the_worker_goes_on(
    server: Server,
) -> None:
    """The old primary stays up, and takes no writes any more."""
    standby = await anyio.to_thread.run_sync(lambda: Server(server))
    try:
        backend = PostgresBackend(url([standby, server]), schema=new_schema())
        async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
            worker = Worker(backend, lease=5.0)
            await group.start(worker.start)
            before = await queue.enqueue(add, 1, 2)
            assert await queue.get_result(before, timeout=20) is not None
            await anyio.to_thread.run_sync(set_read_only, server, "on")
            reached = ask(server, "SELECT pg_current_wal_lsn()")
            told = f"SELECT pg_last_wal_replay_lsn() >= '{reached}'"
            await wait(lambda: ask(standby, told) is True)
            await anyio.to_thread.run_sync(standby.control, "promote")
            await anyio.to_thread.run_sync(set_read_only, standby, "off")
            result = await queue.get_result(await queue.enqueue(add, 2, 3), timeout=30)
            assert result is not None
            assert queue.deserialize_result(result) == 5
            assert (await queue.get_task(before)).attempts == 1
            await worker.stop()
        assert str(ask(standby, "SELECT pg_is_in_recovery()")) == "False"
    finally:
        await anyio.to_thread.run_sync(set_read_only, server, "off")
        standby.remove()


async def test_a_server_that_does_not_answer_leaves_time_for_the_next_one(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "_CONNECT_SECONDS", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        hosts = f"host=127.0.0.1,{server.socket}&port={port},5432"
        where = f"postgresql://postgres@/postgres?{hosts}"
        backend = PostgresBackend(where, schema=new_schema())
        with anyio.fail_after(20):
            await backend.open()
            await backend.close()
    assert [each["port"] for each in servers_of(where)] == [5432, port]


@pytest.mark.parametrize(
    ("where", "addresses"),
    [
        ("postgresql://me@one:1,two:2/app", [("one", 1), ("two", 2)]),
        ("postgresql://me@one,two/app", [("one", 5432), ("two", 5432)]),
        ("postgresql://me@[::1]:5433,two/app", [("::1", 5433), ("two", 5432)]),
        ("postgresql:///app?host=/run/a,/run/b&port=1,2", [("/run/a", 1), ("/run/b", 2)]),
        ("postgresql:///app?host=/run/a,/run/b&port=7", [("/run/a", 7), ("/run/b", 7)]),
        ("postgresql://me@one:1/app", []),
        ("postgresql://me@one:1,two:2/app?target_session_attrs=prefer-standby", []),
    ],
)
def test_the_servers_of_a_url_are_tried_one_after_the_other(
    where: str, addresses: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPORT", raising=False)
    assert "PGTARGETSESSIONATTRS" not in os.environ
    servers = [server for server in servers_of(where) if server]
    assert [(server["host"], server["port"]) for server in servers] == addresses
    assert {server["target_session_attrs"] for server in servers} <= {"read-write"}
