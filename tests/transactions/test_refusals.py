"""Connections that cannot be used are refused with a typed error, and nothing is stored."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiosqlite
import anyio.to_thread
import pytest
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as ext

from sitq import BackendBusyError, SQLiteBackend, SyncTaskQueue, TaskQueue, UsageError, call
from sitq.backends.memory import MemoryBackend
from tests.transactions.kinds import BLOCKING, Own, opened
from tests.transactions.places import Place
from tests.unit.queue_support import add

pytestmark = pytest.mark.anyio


@pytest.fixture
def connection(place: Place) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(place.path, timeout=0)
    yield connection
    connection.close()


def stored(place: Place) -> list[tuple[Any, ...]]:
    return place.look("SELECT id FROM tasks")


@pytest.mark.parametrize("given", [None, "sqlite:///q.db", object(), sqlite3])
async def test_a_connection_of_an_unknown_kind_is_refused_at_once(
    queue: TaskQueue, given: Any
) -> None:
    with pytest.raises(UsageError, match="give an open connection"):
        queue.bind(given)


async def test_stores_that_cannot_say_so(connection: sqlite3.Connection) -> None:
    with pytest.raises(UsageError, match="MemoryBackend"):
        TaskQueue(MemoryBackend()).bind(connection)
    with pytest.raises(UsageError, match="in memory"):
        TaskQueue(SQLiteBackend(":memory:")).bind(connection)


@pytest.mark.parametrize("path", ["other.db", ":memory:"])
async def test_another_database_is_refused(
    queue: TaskQueue, place: Place, tmp_path: Path, path: str
) -> None:
    other = sqlite3.connect(path if path == ":memory:" else tmp_path / path)
    with pytest.raises(UsageError, match="another database"):
        await queue.bind(other).enqueue(add, 1, 2)
    # Attached, the store is still not what the connection would commit as one.
    other.execute("ATTACH ? AS store", (str(place.path),))
    with pytest.raises(UsageError, match="another database"):
        await queue.bind(other).enqueue(add, 1, 2)
    other.close()


async def test_the_same_file_by_another_path_is_the_same_database(
    queue: TaskQueue, place: Place, tmp_path: Path
) -> None:
    (tmp_path / "link.db").symlink_to(place.path)
    own = sqlite3.connect(tmp_path / "link.db")
    await queue.bind(own).enqueue(add, 1, 2)
    own.commit()
    own.close()
    assert len(stored(place)) == 1


async def test_without_a_transaction_nothing_is_stored_at_once(
    queue: TaskQueue, place: Place
) -> None:
    own = sqlite3.connect(place.path, isolation_level=None)
    with pytest.raises(UsageError, match="BEGIN IMMEDIATE"):
        await queue.bind(own).enqueue(add, 1, 2)
    assert (own.in_transaction, stored(place)) == (False, [])
    own.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the switch came with Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
async def test_the_newer_switch_of_sqlite3_is_understood(
    queue: TaskQueue, place: Place, autocommit: bool
) -> None:
    own: sqlite3.Connection = sqlite3.connect(place.path, autocommit=autocommit)  # type: ignore[call-overload, unused-ignore]
    if autocommit:
        with pytest.raises(UsageError, match="BEGIN IMMEDIATE"):
            await queue.bind(own).enqueue(add, 1, 2)
    else:
        await queue.bind(own).enqueue(add, 1, 2)
        own.commit()
    own.close()
    assert len(stored(place)) == (0 if autocommit else 1)


@pytest.mark.parametrize("session", [False, True])
async def test_sqlalchemy_in_autocommit_is_refused(
    queue: TaskQueue, place: Place, session: bool
) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{place.path}", isolation_level="AUTOCOMMIT")
    own = orm.Session(engine) if session else engine.connect()
    with pytest.raises(UsageError, match="stores at once"):
        await queue.bind(own).enqueue(add, 1, 2)
    own.close()
    engine.dispose()
    assert stored(place) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_sqlalchemy_in_autocommit_is_refused_where_it_is_awaited(
    queue: TaskQueue, place: Place
) -> None:
    engine = ext.create_async_engine(
        f"sqlite+aiosqlite:///{place.path}", isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as own:
        with pytest.raises(UsageError, match="stores at once"):
            await queue.bind(own).enqueue(add, 1, 2)
    with pytest.raises(UsageError, match="not open"):
        queue.bind(engine.connect())
    await engine.dispose()
    assert stored(place) == []


async def test_another_kind_of_database_is_refused(queue: TaskQueue) -> None:
    engine = sqlalchemy.create_mock_engine("postgresql://", lambda *_: None)
    own = orm.Session(engine)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not lead to a SQLite file"):
        queue.bind(own)
    with pytest.raises(UsageError, match="no database of its own"):
        queue.bind(orm.Session())


@pytest.mark.parametrize("kind", BLOCKING, indirect=True)
async def test_a_closed_connection_is_refused(queue: TaskQueue, place: Place, own: Own) -> None:
    own.given.close()
    if isinstance(own.given, orm.Session):
        pytest.skip("a closed session opens itself again")
    with pytest.raises(UsageError, match="closed"):
        await queue.bind(own.given).enqueue(add, 1, 2)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_closed_connection_of_aiosqlite_is_refused(queue: TaskQueue, place: Place) -> None:
    own = await aiosqlite.connect(place.path)
    await own.close()
    with pytest.raises(UsageError, match="no active connection"):
        await queue.bind(own).enqueue(add, 1, 2)


async def test_a_connection_of_another_thread_is_refused(queue: TaskQueue, place: Place) -> None:
    with ThreadPoolExecutor(1) as thread:
        own = thread.submit(sqlite3.connect, place.path).result()
        with pytest.raises(UsageError, match="thread"):
            await queue.bind(own).enqueue(add, 1, 2)
        thread.submit(own.close).result()


async def test_a_closed_queue_is_refused(place: Place, connection: sqlite3.Connection) -> None:
    queue = TaskQueue(place.backend())
    bound = queue.bind(connection)
    await bound.enqueue(add, 1, 2)  # the first use connects by itself
    connection.commit()
    await queue.close()
    with pytest.raises(UsageError, match="closed"):
        await bound.enqueue(add, 1, 2)


@pytest.mark.parametrize("kind", ["sqlite3", "SQLAlchemy Connection", "SQLAlchemy Session"])
async def test_a_store_that_another_writer_holds_is_busy(
    queue: TaskQueue, place: Place, connection: sqlite3.Connection, kind: str
) -> None:
    place.prepare()
    connection.execute("BEGIN IMMEDIATE")
    async with opened(kind, place) as own:
        await _wait_no_longer(own)
        with pytest.raises(BackendBusyError, match="BEGIN IMMEDIATE") as caught:
            await queue.bind(own.given).enqueue(add, 1, 2)
        assert "payload" not in str(caught.value)
    connection.rollback()
    assert stored(place) == []


async def _wait_no_longer(own: Own) -> None:
    own.run("PRAGMA busy_timeout = 0")


class TestSyncTaskQueue:
    @pytest.mark.parametrize("kind", BLOCKING)
    def test_it_binds_connections_that_block(self, place: Place, kind: str) -> None:
        from sitq._loops import run_inline

        async def main() -> None:
            async with opened(kind, place) as own:
                bound = queue.bind(own.given)
                assert repr(bound) == f"SyncTransactionQueue({queue._queue._backend!r})"
                await own.write("mine")
                ids = [
                    bound.enqueue(add, 1, 2),
                    bound.options(priority=3).enqueue(add, 3, 4),
                    *bound.enqueue_many(call(add, n, n) for n in range(300)),
                ]
                await own.commit()
                assert len({queue.get_task(task_id).status for task_id in ids}) == 1
                await own.begin_again()
                bound.enqueue(add, 5, 6)
                await own.rollback()

        with SyncTaskQueue(place.backend()) as queue:
            place.prepare()
            run_inline(main())
        assert (len(stored(place)), place.notes) == (302, ["mine"])

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_it_refuses_a_connection_that_must_be_awaited(self, place: Place) -> None:
        own = await aiosqlite.connect(place.path)
        with pytest.raises(UsageError, match=r"TaskQueue\.bind"):
            await anyio.to_thread.run_sync(
                lambda: SyncTaskQueue(place.backend()).bind(own)  # type: ignore[arg-type]
            )
        await own.close()

    async def test_it_refuses_a_thread_with_a_loop(self, place: Place) -> None:
        own = await anyio.to_thread.run_sync(
            lambda: sqlite3.connect(place.path, check_same_thread=False)
        )

        def bind() -> Any:
            return SyncTaskQueue(place.backend()).bind(own)

        bound = await anyio.to_thread.run_sync(bind)
        with pytest.raises(UsageError, match="event loop"):
            bound.enqueue(add, 1, 2)
        with pytest.raises(UsageError, match="event loop"):
            bound.options(priority=1)
        own.close()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_connection_of_a_driver_that_knows_asyncio_only_is_refused_on_trio(
    queue: TaskQueue, place: Place
) -> None:
    own = await anyio.to_thread.run_sync(asyncio.run, _connected(place))
    with pytest.raises(UsageError, match="asyncio only"):
        await queue.bind(own).enqueue(add, 1, 2)
    await anyio.to_thread.run_sync(asyncio.run, own.close())


async def _connected(place: Place) -> aiosqlite.Connection:
    return await aiosqlite.connect(place.path)
