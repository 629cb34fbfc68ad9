"""A schema is made, brought up to date, or refused; nothing else in the database is touched."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import psycopg
import pytest

from sitq import BackendError, BackendFormatError, ValidationError, Worker
from sitq.backends.postgres import PostgresBackend, _schema
from sitq.backends.postgres._connection import ConnectTarget
from sitq.ids import new_task_id
from tests.migrated_keys import check_keys
from tests.postgres.samples import new_task
from tests.postgres.servers import Server, dsn, new_schema, query

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]

OPEN = """
import sys, anyio
from sitq.backends.postgres import PostgresBackend
async def main():
    backend = PostgresBackend(sys.argv[1], schema=sys.argv[2])
    sys.stdin.readline()
    await backend.open()
    await backend.close()
anyio.run(main, backend=sys.argv[3])
"""


async def ask(sql: str) -> list[tuple[object, ...]]:
    return await anyio.to_thread.run_sync(query, sql)


async def run(script: str) -> None:
    for statement in filter(str.strip, script.split(";")):
        await ask(statement)


async def open_and_close(backend: PostgresBackend) -> None:
    await backend.open()
    await backend.close()


def test_processes_that_open_a_new_store_at_once_migrate_it_once() -> None:
    schema = new_schema()
    command = [sys.executable, "-W", "error", "-c", OPEN, dsn(), schema]
    processes = [
        subprocess.Popen([*command, loop], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        for loop in ("asyncio", "trio", "asyncio", "trio")
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    numbers = query(f"SELECT number FROM {schema}.migrations ORDER BY number")
    assert numbers == [(number,) for number, _ in _schema.migrations()]


async def test_a_migration_and_its_record_are_committed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = new_schema()
    first = _schema.migrations()
    broken = (*first, (len(first) + 1, "CREATE TABLE sitq.more (x integer); SELECT 1 / 0"))
    whole = (*first, (len(first) + 1, "CREATE TABLE sitq.more (x integer)"))
    await open_and_close(PostgresBackend(dsn(), schema=schema))
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "migrations", lambda: broken)
        with pytest.raises(BackendError, match="division by zero"):
            await PostgresBackend(dsn(), schema=schema).open()
    assert await ask(f"SELECT max(number) FROM {schema}.migrations") == [(len(first),)]
    assert await ask(f"SELECT to_regclass('{schema}.more')") == [(None,)]
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "migrations", lambda: whole)
        with pytest.raises(
            BackendFormatError, match=rf"old format {len(first)}, and migrate=False"
        ):
            await PostgresBackend(dsn(), schema=schema, migrate=False).open()
        await open_and_close(PostgresBackend(dsn(), schema=schema))
        await open_and_close(PostgresBackend(dsn(), schema=schema, migrate=False))
    newer = rf"newer sitq \(format {len(whole)}, this one knows {len(first)}\)"
    with pytest.raises(BackendFormatError, match=newer):
        await PostgresBackend(dsn(), schema=schema).open()


async def test_a_store_of_the_first_format_keeps_its_tasks_and_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = new_schema()
    with monkeypatch.context() as patch:
        first = _schema.migrations()[:1]
        patch.setattr(_schema, "migrations", lambda: first)
        await open_and_close(PostgresBackend(dsn(), schema=schema))
    waits, runs, asked, ended = old = [new_task_id() for _ in range(4)]
    await run(
        f"INSERT INTO {schema}.tasks (id, status, queue, priority, eta, function, epoch, attempts,"
        " finished_at, delete_at, lease_end, cancel_requested, unique_key, result_ttl, enqueued_at,"
        " payload) SELECT id, status, 'default', 0, now(), 'm:f', epoch, epoch, done, done,"
        " lease, cancelled, id, 3600, now(), '' FROM (VALUES"
        f" ('{waits}', 'pending', 0, NULL::timestamptz, NULL::timestamptz, false),"
        f" ('{runs}', 'in_progress', 1, NULL, 'infinity', false),"
        f" ('{asked}', 'in_progress', 1, NULL, 'infinity', true),"
        f" ('{ended}', 'failed', 1, now(), NULL, false))"
        " AS row (id, status, epoch, done, lease, cancelled)"
    )
    await check_keys(PostgresBackend(dsn(), schema=schema), *old)


async def test_a_missing_store_is_not_made_with_migrate_false() -> None:
    schema = new_schema()
    with pytest.raises(BackendFormatError, match="is not there, and migrate=False"):
        await PostgresBackend(dsn(), schema=schema, migrate=False).open()
    assert await ask(f"SELECT to_regnamespace('{schema}')") == [(None,)]


RECORD = "CREATE TABLE S.migrations (number int PRIMARY KEY, applied_at timestamptz)"


@pytest.mark.parametrize(
    "content",
    [
        "CREATE TABLE S.accounts (id integer)",
        "CREATE SEQUENCE S.numbers",
        "CREATE VIEW S.migrations AS SELECT 1 AS number, now() AS applied_at",
        "CREATE MATERIALIZED VIEW S.tasks AS SELECT 1 AS id",
        "CREATE TYPE S.tasks AS ENUM ('a')",
        "CREATE DOMAIN S.number AS integer",
        "CREATE FUNCTION S.enqueue() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        'CREATE COLLATION S.bytes FROM "C"',
        "CREATE TABLE S.migrations (id integer)",
        RECORD,
        f"{RECORD}; CREATE TABLE S.users (id integer)",
        f"{RECORD}; INSERT INTO S.migrations VALUES (1)",
        f"{RECORD}; INSERT INTO S.migrations VALUES (1); CREATE TABLE S.tasks (id int, title text)",
    ],
)
@pytest.mark.parametrize("migrate", [True, False])
async def test_a_schema_of_another_program_is_refused(content: str, *, migrate: bool) -> None:
    schema = new_schema()
    await run(f"CREATE SCHEMA {schema}; {content.replace('S.', f'{schema}.')}")
    before = await everything_in(schema)
    assert before
    with pytest.raises(BackendFormatError, match="belongs to another program; it was left"):
        await PostgresBackend(dsn(), schema=schema, migrate=migrate).open()
    assert await everything_in(schema) == before


async def everything_in(schema: str) -> list[tuple[object, ...]]:
    sql = "SELECT classid, objid, objsubid FROM pg_depend WHERE refobjid = '{}'::regnamespace"
    return await ask(f"{sql.format(schema)} ORDER BY 1, 2, 3")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("DROP TABLE S.tasks", "has lost its tables"),
        ("ALTER TABLE S.tasks RENAME payload TO other", "has lost its tables, or columns of them"),
        ("DROP FUNCTION S.reserve", "has lost its functions"),
        ("DROP TABLE S.migrations", "has lost its record of migrations"),
        ("DELETE FROM S.migrations", "has lost its record of migrations"),
        ("UPDATE S.migrations SET number = -number", "another program has changed it"),
        ("UPDATE S.migrations SET number = number + 7", "another program has changed it"),
        ("INSERT INTO S.migrations VALUES (0)", "another program has changed it"),
        ("ALTER TABLE S.migrations ALTER number TYPE text", "another program has changed it"),
    ],
)
async def test_a_store_that_has_lost_a_part_is_refused(change: str, what: str) -> None:
    schema = new_schema()
    await open_and_close(PostgresBackend(dsn(), schema=schema))
    await ask(change.replace("S.", f"{schema}."))
    before = await everything_in(schema)
    with pytest.raises(BackendFormatError, match=f"a store of sitq's that.*{what}.*; restore it"):
        await PostgresBackend(dsn(), schema=schema).open()
    assert await everything_in(schema) == before


async def test_a_store_with_something_else_beside_it_is_used() -> None:
    schema = new_schema()
    await open_and_close(PostgresBackend(dsn(), schema=schema))
    await ask(f"CREATE VIEW {schema}.waiting AS SELECT count(*) FROM {schema}.tasks")
    await open_and_close(PostgresBackend(dsn(), schema=schema))


async def test_an_empty_schema_made_by_an_administrator_is_used() -> None:
    schema = new_schema()
    await run(
        f"CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS 'for sitq';"
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO PUBLIC"
    )
    await open_and_close(PostgresBackend(dsn(), schema=schema))
    assert await ask(f"SELECT count(*) FROM {schema}.tasks") == [(0,)]


async def test_two_schemas_are_two_stores() -> None:
    one, two = (PostgresBackend(dsn(), schema=new_schema()) for _ in range(2))
    await one.open()
    await two.open()
    (task_id,) = await one.enqueue([new_task()])
    assert await two.get_tasks([task_id]) == [None]
    await one.close()
    await two.close()


async def test_a_store_outlives_a_change_of_its_tables_by_a_migration() -> None:
    """What was prepared before is prepared again."""
    schema = new_schema()
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    (task_id,) = await backend.enqueue([new_task()])
    assert len(await backend.get_tasks([task_id])) == 1
    await ask(f"ALTER TABLE {schema}.tasks ALTER COLUMN crashes TYPE bigint")
    (info,) = await backend.get_tasks([task_id])
    assert info is not None
    await backend.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"dsn": 5},
        {"dsn": "mysql://host/db"},
        {"dsn": "not a url"},
        {"dsn": "postgresql://host:port/db"},
        {"schema": "Sitq"},
        {"schema": 'a"b'},
        {"schema": "x" * 49},
        {"schema": ""},
        {"schema": None},
        {"pool_size": 0},
        {"pool_size": True},
        {"pool_size": 1.5},
    ],
)
def test_a_wrong_parameter_is_named_and_not_shown(wrong: dict[str, object]) -> None:
    options = {"dsn": "postgresql://localhost/db", **wrong}
    (name,) = wrong
    with pytest.raises(ValidationError, match=f"^{name}: "):
        PostgresBackend(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "where",
    [
        "postgresql://me:s3cret@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=s3cret",
        "postgresql://me:s3cret@127.0.0.1:1/db?sslmode=nonsense",
        "postgresql://me:s3cret@127.0.0.1:1,127.0.0.1:x/db",
    ],
)
async def test_a_password_never_shows(where: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    shown = []
    try:
        backend = PostgresBackend(where)
        shown += [
            repr(backend),
            str(backend),
            repr(ConnectTarget(where, prepared=True, timeout=None)),
        ]
        await backend.open()
    except Exception as error:
        each: BaseException | None = error
        while each is not None:
            shown += [str(each), repr(each)]
            each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    assert shown
    assert "s3cret" not in " ".join([*shown, caplog.text])


async def test_a_worker_logs_its_store_without_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    where = f"{dsn()}{'&' if '?' in dsn() else '?'}password=s3cret"
    caplog.set_level(logging.INFO, "sitq")
    await Worker(PostgresBackend(where, schema=new_schema())).drain()
    started = caplog.records[0]
    assert "PostgresBackend(" in started.getMessage()
    assert vars(started)["store"].startswith("PostgresBackend(")
    assert "s3cret" not in "".join(str(vars(record)) for record in caplog.records)


def test_without_asyncpg_the_import_says_what_to_install() -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'asyncpg' else find(name, *a)\n"
        "try:\n    import sitq.backends.postgres\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ
    )
    assert "asyncpg" in done.stdout
    assert "postgres" in done.stdout
    assert "checkout" in done.stdout


FORGET = """
import sys, anyio
from sitq import TaskQueue
from sitq.backends.postgres import PostgresBackend
async def nothing(): pass
async def main():
    backend = PostgresBackend(sys.argv[1], schema=sys.argv[2])
    queue = TaskQueue(backend)
    await queue.connect()
    task_id = await queue.enqueue(nothing)
    await queue.get_result(task_id, timeout=0.01)
    keeper = backend.lease_keeper()
    keeper.renew([], 1.0)
anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("mode", [[], ["-X", "dev"]])
def test_a_forgotten_close_does_no_harm(
    tmp_path: Path, anyio_backend_name: str, mode: list[str]
) -> None:
    program = tmp_path / "forget.py"
    program.write_text(FORGET)
    schema = new_schema()
    done = subprocess.run(
        [sys.executable, *mode, "-W", "error", str(program), dsn(), schema, anyio_backend_name],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Warning" not in done.stderr
    assert "Exception" not in done.stderr
    assert "destroyed" not in done.stderr
    assert query(f"SELECT count(*) FROM {schema}.tasks") == [(1,)]


@pytest.mark.parametrize(("encoding", "migrate"), [("LATIN1", True), ("SQL_ASCII", False)])
async def test_a_database_that_is_not_utf8_is_refused(
    server: Server, encoding: str, *, migrate: bool
) -> None:
    name = f"{encoding.lower()}_{new_schema()}"
    making = f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C'"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"{making} LC_CTYPE 'C'".encode())
    where = server.dsn.replace("/postgres?", f"/{name}?")
    with pytest.raises(BackendFormatError, match=f"as {encoding}.* ENCODING 'UTF8' TEMPLATE"):
        await PostgresBackend(where, migrate=migrate).open()
    with psycopg.connect(where) as connection:
        row = connection.execute("SELECT to_regnamespace('sitq')").fetchone()
    assert row == (None,)
