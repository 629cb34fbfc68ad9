"""Whoever may create objects in `public` has no code run by workers, producers or migrations."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import psycopg
import pytest

from sitq import BackendError
from sitq.backends.postgres import PostgresBackend, _schema
from sitq.models import Lease, LeaseState, Outcome, Progress
from sitq.transactions import AnyConnection
from tests.postgres import traps
from tests.postgres.samples import new_task
from tests.postgres.servers import Server, new_schema

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "postgresql.md"
GRANTS = re.compile(r"```sql\n(.*?)```", re.DOTALL)
DATABASE = "app"


def url(server: Server, user: str) -> str:
    """The URL of a role in the database that has the traps."""
    return server.dsn.replace("postgres@/postgres", f"{user}@/{DATABASE}")


def run(where: str, script: str) -> None:
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute(script.encode())


@pytest.fixture(scope="module")
def place(server: Server) -> Server:
    """A server with a database full of traps, and with the roles that the documentation makes."""
    roles, grants = GRANTS.findall(PAGE.read_text(encoding="utf-8"))
    run(server.dsn, f"CREATE DATABASE {DATABASE}")
    run(server.dsn, roles)
    run(server.dsn, "CREATE ROLE hostile LOGIN")
    run(url(server, "postgres"), "GRANT CREATE ON SCHEMA public TO PUBLIC")
    run(url(server, "hostile"), f"SET search_path = pg_catalog; {traps.script()}")
    for role in ("sitq_admin", "sitq_producer", "sitq_worker"):
        run(server.dsn, f"ALTER ROLE {role} SET search_path = {traps.HOSTILE_PATH}")

    async def migrate() -> None:
        backend = PostgresBackend(url(server, "sitq_admin"))
        await backend.open()
        await backend.close()

    anyio.run(migrate)
    run(url(server, "sitq_admin"), f"SET search_path = pg_catalog; {grants}")
    return server


def sprung(server: Server) -> bool:
    with psycopg.connect(url(server, "postgres")) as connection:
        row = connection.execute(traps.SPRUNG.encode()).fetchone()
    assert row is not None
    return bool(row[0])


@contextmanager
def safe(server: Server) -> Iterator[None]:
    run(url(server, "postgres"), "SELECT setval('public.sprung', 1, false)")
    yield
    assert not sprung(server)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT cardinality(ARRAY['a', 'b'])",
        "SELECT 'a'::text = 'b'::text",
        "SELECT statement_timestamp()",
        "SELECT count(*) FROM pg_class",
        "SELECT 'a'::text || 'b'",
        "SELECT 1::oid <> 2",
    ],
)
def test_the_traps_work(place: Server, statement: str) -> None:
    where = url(place, "sitq_worker")
    with psycopg.connect(where) as connection, pytest.raises(psycopg.Error, match="trap"):
        connection.execute(statement.encode())


@pytest.mark.anyio
@pytest.mark.parametrize("prepared", [True, False])
async def test_workers_and_producers_meet_none_of_them(place: Server, prepared: bool) -> None:
    options: dict[str, Any] = {"migrate": False, "prepared_statements": prepared}
    producer = PostgresBackend(url(place, "sitq_producer"), **options)
    worker = PostgresBackend(url(place, "sitq_worker"), **options)
    with safe(place):
        await producer.open()
        await worker.open()
        async with worker.listen("tasks") as listener:
            tasks = [new_task(queue="q") for _ in range(6)]
            await producer.enqueue(tasks[:1])
            await producer.enqueue(tasks[1:])
            with anyio.fail_after(20):
                await listener.wait()
        await producer.enqueue([new_task(queue="q", unique_key="k", priority=5)])
        reserved = (await worker.reserve("w", ["q", "r"], 6, 30.0)).tasks
        leases = [task.lease for task in reserved]
        assert len(leases) == 6
        assert await worker.set_progress(leases[0], Progress(done=1, total=2))
        assert await producer.cancel(leases[1].task_id)
        states = await anyio.to_thread.run_sync(renew, worker, leases)
        assert states[:3] == [LeaseState.HELD, LeaseState.CANCEL_REQUESTED, LeaseState.HELD]
        outcomes = [
            Outcome.success(leases[0], b"v"),
            Outcome.cancelled(leases[1]),
            Outcome.failure(leases[2], "no"),
            Outcome.retry(leases[3], 0.0, "again"),
            Outcome.release(leases[4]),
        ]
        assert await worker.finish(outcomes) == [True] * 5
        assert await worker.finish([Outcome.success(leases[5], b"v")]) == [True]
        await worker.sweep(3)
        await worker.get_tasks([task.id for task in tasks])
        await worker.get_results([task.id for task in tasks])
        await worker.load_task(tasks[0].id)
        await worker.prune(0.0)
        await producer.close()
        await worker.close()


def renew(backend: PostgresBackend, leases: list[Lease]) -> list[LeaseState]:
    keeper = backend.lease_keeper()
    try:
        return keeper.renew(leases, 30.0)
    finally:
        keeper.close()


# What a session of the user's has itself, and finds before the system's.
TEMPORARY = "CREATE TEMP TABLE pg_class (oid int); CREATE TEMP TABLE pg_type (oid int);"


@pytest.fixture
async def worker(place: Server) -> AsyncIterator[PostgresBackend]:
    backend = PostgresBackend(url(place, "sitq_worker"), migrate=False)
    await backend.open()
    yield backend
    await backend.close()


async def use(backend: PostgresBackend, connection: AnyConnection) -> None:
    """All that a transaction of the user's can do, and what fails within it."""
    task = new_task(queue="mine")
    await backend.enqueue([task])
    ((lease,),) = [
        [task.lease for task in reservation.tasks]
        for reservation in [await backend.reserve("w", ["mine"], 1, 30.0)]
    ]
    transaction = backend.join(connection)
    await transaction.enqueue([new_task(queue="other")])
    await transaction.enqueue([new_task(queue="other", unique_key=new_schema())])
    with pytest.raises(BackendError, match="duplicate key"):
        await transaction.enqueue([task])
    assert await transaction.complete(lease, b"v")


@pytest.mark.anyio
async def test_what_a_blocking_connection_is_used_for_meets_none_of_them(
    place: Server, worker: PostgresBackend
) -> None:
    with safe(place), psycopg.connect(url(place, "sitq_worker")) as connection:
        connection.execute(TEMPORARY)
        await use(worker, connection)
        assert connection.execute("SHOW search_path").fetchone() == (traps.HOSTILE_PATH,)
        connection.execute("SET LOCAL search_path = pg_temp, public")
        await use(worker, connection)
        assert connection.execute("SHOW search_path").fetchone() == ("pg_temp, public",)
        connection.commit()
        assert connection.execute("SHOW search_path").fetchone() == (traps.HOSTILE_PATH,)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_what_an_awaited_connection_is_used_for_meets_none_of_them(
    place: Server, worker: PostgresBackend
) -> None:
    """The driver asks the server about types, too, the first time that they are used."""
    connection = await asyncpg.connect(url(place, "sitq_worker"))
    with safe(place):
        async with connection.transaction():
            await connection.execute(TEMPORARY)
            await use(worker, connection)
            assert await connection.fetchval("SHOW search_path") == traps.HOSTILE_PATH
    await connection.close()


def test_the_functions_of_a_store_run_with_their_callers_rights_and_fixed_names(
    place: Server,
) -> None:
    """They run with the caller's rights, and what they use is looked up in one place."""
    asked = (
        "SELECT proname, prosecdef, proconfig FROM pg_catalog.pg_proc "
        "WHERE pronamespace = 'sitq'::pg_catalog.regnamespace"
    )
    with psycopg.connect(url(place, "postgres")) as connection:
        functions = connection.execute(asked.encode()).fetchall()
    assert {name for name, _, _ in functions} >= {"enqueue", "reserve", "sweep"}
    for name, is_definer, settings in functions:
        assert not is_definer, name
        assert "search_path=pg_catalog, pg_temp" in settings, name


@pytest.mark.anyio
async def test_a_store_of_the_first_format_gets_safe_functions(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = new_schema()
    for migrations in (_schema.migrations()[:1], _schema.migrations()):
        with monkeypatch.context() as patch:
            patch.setattr(_schema, "migrations", lambda made=migrations: made)
            backend = PostgresBackend(server.dsn, schema=schema)
            await backend.open()
            await backend.close()
    asked = "SELECT DISTINCT proconfig[1] FROM pg_proc WHERE pronamespace = %s::regnamespace"
    with psycopg.connect(server.dsn) as connection:
        settings = connection.execute(asked.encode(), (schema,)).fetchall()
    assert settings == [("search_path=pg_catalog, pg_temp",)]
