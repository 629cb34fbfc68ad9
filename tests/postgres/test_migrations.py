"""A store of an older format keeps its tasks, and its workers keep the rights that they need."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from sitq import Worker
from sitq.backends.postgres import PostgresBackend, _schema
from sitq.errors import BackendConnectionError
from tests.migrated_states import OLD_TASKS, check_states
from tests.postgres.samples import new_task
from tests.postgres.servers import dsn, new_schema

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

INSERT_OLD = """
    INSERT INTO "{}".tasks (id, status, queue, priority, eta, function, epoch, attempts, started_at,
                            finished_at, delete_at, result_ttl, enqueued_at, payload, value, error,
                            lease_end, worker)
    VALUES ($1, $2, 'default', 0, $3, 'm:f', $4::int, $4::int, $5, $6::timestamptz,
            $6::timestamptz + interval '1 hour', 3600, now(), '\\x90', $7, $8, $9, $10)
"""
# What of a schema is to be the same, however it was made.
SCHEMA = """
    SELECT 'column', table_name, column_name, data_type, column_default, is_nullable
    FROM information_schema.columns WHERE table_schema = '{0}'
    UNION ALL
    SELECT 'index', tablename, indexname, replace(indexdef, '{0}', ''), NULL, NULL
    FROM pg_indexes WHERE schemaname = '{0}'
    UNION ALL
    SELECT 'function', proname, pg_get_function_identity_arguments(oid), replace(prosrc, '{0}', ''),
           NULL, NULL
    FROM pg_proc WHERE pronamespace = '{0}'::regnamespace
    ORDER BY 1, 2, 3
"""


async def old_store(number: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a store of an older format; return its schema."""
    schema = new_schema()
    with monkeypatch.context() as patch:
        old_format = _schema.migrations()[:number]
        patch.setattr(_schema, "migrations", lambda: old_format)
        await make(schema)
    return schema


async def make(schema: str) -> None:
    backend = PostgresBackend(dsn(), schema=schema)
    await backend.open()
    await backend.close()


@pytest.mark.parametrize("number", [1, 2])
async def test_a_store_of_an_older_format_keeps_all_tasks_and_is_administered(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = await old_store(number, monkeypatch)
    now, hour = datetime.now(UTC), timedelta(hours=1)
    connection = await asyncpg.connect(dsn())
    for old in OLD_TASKS:
        is_running = old.status == "in_progress"
        await connection.execute(
            INSERT_OLD.format(schema), old.id, old.status, now + hour if old.scheduled else now,
            old.epoch, now if old.epoch else None, now if old.is_final else None, old.value,
            old.error, now + hour if is_running else None, "old" if is_running else None,
        )  # fmt: skip
    await check_states(PostgresBackend(dsn(), schema=schema))
    fresh = new_schema()
    await make(fresh)
    found = [await connection.fetch(SCHEMA.format(name)) for name in (schema, fresh)]
    await connection.close()
    assert found[0] == found[1] != []


GRANTS = """
    CREATE ROLE {name}_{role} LOGIN;
    GRANT USAGE ON SCHEMA "{schema}" TO {name}_{role};
    GRANT SELECT ON "{schema}".migrations TO {name}_{role};
    GRANT SELECT, INSERT, UPDATE{more} ON "{schema}".tasks TO {name}_{role};
"""


async def test_old_roles_of_workers_get_rights_on_the_new_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Roles that could delete tasks can record attempts, obey pauses and report; no others."""
    schema = await old_store(2, monkeypatch)
    connection = await asyncpg.connect(dsn())
    for role, more in (("worker", ", DELETE"), ("producer", "")):
        await connection.execute(GRANTS.format(name=schema, role=role, schema=schema, more=more))
    await connection.close()
    urls = {
        role: dsn().replace("postgres@", f"{schema}_{role}@") for role in ("worker", "producer")
    }
    if urls["worker"] == dsn():
        pytest.skip("the server given does not let others in")
    await make(schema)
    backend = PostgresBackend(urls["worker"], schema=schema, migrate=False)
    async with Worker(backend, queues=["none"]):
        pass  # it reports, and deregisters
    await backend.open()
    await backend.enqueue([new_task()])
    await backend.reserve("w", ["default"], 5, 0.0)
    assert (await backend.sweep(1)).reclaimed == 1
    assert await backend.prune(0) == 1
    assert await backend.list_pauses() == []
    await backend.close()
    producer = PostgresBackend(urls["producer"], schema=schema, migrate=False)
    await producer.open()
    await producer.enqueue([new_task()])
    with pytest.raises(BackendConnectionError, match="permission denied"):
        await producer.list_pauses()
    await producer.close()
