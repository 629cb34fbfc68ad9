"""Connections that cannot be used with a store in PostgreSQL, and what their errors show."""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy

from sitq import BackendError, SQLiteBackend, TaskQueue, UsageError
from sitq.models import Task
from sitq.transactions import TransactionalBackend
from tests.transactions.kinds import Own
from tests.transactions.places import Place, PostgresPlace
from tests.unit.queue_support import add

pytestmark = pytest.mark.anyio


@pytest.fixture
def place() -> Iterator[PostgresPlace]:
    place = PostgresPlace()
    yield place
    place.remove()


def stored(place: Place) -> int:
    ((count,),) = place.look("SELECT count(*) FROM tasks")
    return int(count)


async def test_a_connection_to_the_other_kind_of_store_is_refused(
    queue: TaskQueue, place: PostgresPlace
) -> None:
    with sqlite3.connect(":memory:") as file:
        with pytest.raises(UsageError, match="does not lead to PostgreSQL"):
            queue.bind(file)
    file.close()
    with psycopg.connect(place.dsn) as server:
        with pytest.raises(UsageError, match="does not lead to a SQLite file"):
            TaskQueue(SQLiteBackend("q.db")).bind(server)


async def test_another_database_is_refused(queue: TaskQueue, place: PostgresPlace) -> None:
    """Also one that has a store of the same name; the transaction goes on."""
    with psycopg.connect(place.dsn, dbname="template1", autocommit=True) as own:
        with own.transaction(force_rollback=True):
            with pytest.raises(UsageError, match="another database"):
                await queue.bind(own).enqueue(add, 1, 2)
            own.execute(f'CREATE SCHEMA "{place.schema}"'.encode())
            own.execute(
                f'CREATE TABLE "{place.schema}".migrations AS '
                "SELECT 1 AS number, now() AS applied_at".encode()
            )
            with pytest.raises(UsageError, match="another database"):
                await queue.bind(own).enqueue(add, 1, 2)


async def test_without_a_transaction_nothing_is_stored_at_once(
    queue: TaskQueue, place: PostgresPlace
) -> None:
    engine = sqlalchemy.create_engine(
        place.dsn.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with psycopg.connect(place.dsn, autocommit=True) as own, engine.connect() as alchemy:
        for connection in (own, alchemy):
            with pytest.raises(UsageError, match="stores at once"):
                await queue.bind(connection).enqueue(add, 1, 2)
    engine.dispose()
    assert stored(place) == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncpg_without_a_transaction_is_refused(
    queue: TaskQueue, place: PostgresPlace
) -> None:
    pool = await asyncpg.create_pool(place.dsn, min_size=1, max_size=1)
    async with pool.acquire() as own:
        with pytest.raises(UsageError, match="stores at once"):
            await queue.bind(own).enqueue(add, 1, 2)
        async with own.transaction():
            await queue.bind(own).enqueue(add, 1, 2)
    with pytest.raises(UsageError, match="cannot be used here"):
        await queue.bind(own).enqueue(add, 1, 2)
    await pool.close()
    assert stored(place) == 1


async def test_a_closed_connection_is_refused(queue: TaskQueue, place: PostgresPlace) -> None:
    own = psycopg.connect(place.dsn)
    own.close()
    with pytest.raises(UsageError, match="cannot be used here: the connection is closed"):
        await queue.bind(own).enqueue(add, 1, 2)


async def test_a_transaction_that_has_failed_before_is_refused(
    queue: TaskQueue, place: PostgresPlace
) -> None:
    with psycopg.connect(place.dsn) as own:
        with pytest.raises(psycopg.Error):
            own.execute("SELECT 1 / 0")
        with pytest.raises(UsageError, match="failed before"):
            await queue.bind(own).enqueue(add, 1, 2)
        own.rollback()


async def test_a_pipeline_is_refused(queue: TaskQueue, place: PostgresPlace) -> None:
    """It answers later than sitq needs to know."""
    with psycopg.connect(place.dsn) as own:
        with own.pipeline(), pytest.raises(UsageError, match="pipeline"):
            await queue.bind(own).enqueue(add, 1, 2)
        await queue.bind(own).enqueue(add, 1, 2)
    assert stored(place) == 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [("datestyle = 'SQL'", "DateStyle"), ("client_encoding = 'LATIN1'", "UTF8")],
)
async def test_settings_that_the_driver_cannot_work_with_are_refused(
    queue: TaskQueue, place: PostgresPlace, setting: str, told: str
) -> None:
    with psycopg.connect(place.dsn) as own:
        own.execute(f"SET {setting}".encode())
        with pytest.raises(UsageError, match=told) as caught:
            await queue.bind(own).options(unique_key="\N{EURO SIGN}").enqueue(add, 1, 2)
        own.rollback()
    assert "\N{EURO SIGN}" not in str(caught.value)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", ["text", "timestamptz", "int8", "bytea"])
async def test_a_connection_that_reads_values_in_a_way_of_its_own_is_refused(
    queue: TaskQueue, place: PostgresPlace, kind: str
) -> None:
    own: Any = await asyncpg.connect(place.dsn)
    await own.set_type_codec(
        kind, schema="pg_catalog", encoder=str, decoder=lambda text: f"<{text}>", format="text"
    )
    async with own.transaction():
        with pytest.raises(UsageError, match="codecs of its own"):
            await queue.bind(own).enqueue(add, 1, 2)
        await own.reset_type_codec(kind, schema="pg_catalog")
        await queue.bind(own).enqueue(add, 1, 2)
    await own.close()
    with pytest.raises(UsageError, match="it is closed"):
        await queue.bind(own).enqueue(add, 1, 2)


@pytest.mark.parametrize(
    "kind",
    ["psycopg", "asyncpg", "SQLAlchemy Session psycopg", "SQLAlchemy AsyncSession asyncpg"],
)
class TestErrors:
    @pytest.fixture
    def place(self, place: PostgresPlace, kind: str) -> PostgresPlace:
        return place

    async def test_an_error_of_the_server_shows_no_values(
        self, queue: TaskQueue, place: PostgresPlace, own: Own
    ) -> None:
        """The transaction goes on after it, as it was before."""
        await queue.enqueue(add, 1, 2)
        ((used,),) = place.look("SELECT id FROM tasks")
        backend = place.backend()
        assert isinstance(backend, TransactionalBackend)
        await backend.open()
        await own.write("before")
        task = Task(id=used, function="tests:nothing", payload=b"hunter2", unique_key="hunter2")
        with pytest.raises(BackendError, match="duplicate key") as caught:
            await backend.join(own.given).enqueue([task])
        shown = "".join(traceback.format_exception(caught.value))
        told = [line for line in shown.splitlines() if not line.startswith("    ")]
        assert "hunter2" not in "\n".join(told)
        assert str(used) not in "\n".join(told)
        await own.write("after")
        await own.commit()
        assert place.notes == ["after", "before"]
        await backend.close()
