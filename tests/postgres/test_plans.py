"""A look at the store costs the same however many tasks wait for later or have ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import asyncpg
import pytest

from sitq.backends.postgres import PostgresBackend, _sql
from sitq.backends.postgres._connection import _SETTINGS
from sitq.backends.postgres._sql import Statements
from tests.postgres.servers import dsn, new_schema, query

ROWS = 20_000
ENDED, LATER = "ended", "later"
FILL = """
INSERT INTO sitq.tasks (id, queue, priority, eta, function, result_ttl, enqueued_at, payload,
                        status, finished_at, delete_at, value)
SELECT 'ended' || n, 'default', 0, now() - interval '1 day', 'f', 1, now(), ''::bytea, 'success',
       now(), now() + interval '1 day', ''::bytea
FROM generate_series(1, $1::int) AS n
UNION ALL
SELECT 'later' || n, 'default', n % 5, now() + interval '1 day', 'f', 1, now(), ''::bytea,
       'pending', NULL, NULL, NULL
FROM generate_series(1, $1::int) AS n
UNION ALL
SELECT 'due' || n, 'default', 0, now() - interval '1 hour', 'f', 1, now(), ''::bytea,
       'pending', NULL, NULL, NULL
FROM generate_series(1, 50) AS n
"""
# Values for the parameters of each statement that a worker or a caller runs again and again.
CALLS: list[tuple[str, str, str]] = [
    ("reserve", _sql.RESERVE, "NULL, 'w', '{default,other}', 10, 30, 1"),
    ("reserve nothing", _sql.RESERVE, "NULL, 'w', '{default}', 0, 30, 1"),
    ("reserve from all", _sql.RESERVE_ALL, "NULL, 'w', 10, 30, 1"),
    ("sweep", _sql.SWEEP, "NULL, 3, 1000, '%s', 0"),
    ("succeed", _sql.SUCCEED, "NULL, '{due1,due2}', '{1,1}', '{a,b}', 't', '{}'"),
    (
        "finish",
        _sql.FINISH,
        "NULL, '{due1,due2}', '{1,1}', '{retry,miss}', '{a}', '{a}', '{a}', '{0,0}', 't', '{}'",
    ),
    ("renew", _sql.RENEW, "NULL, '{due1,due2}', '{1,1}', 30"),
    ("cancel", _sql.CANCEL, "NULL, 'later1'"),
    ("infos", _sql.INFOS, "'{due1,later1,ended1}'"),
    ("results", _sql.RESULTS, "'{due1,later1,ended1}'"),
    ("states", _sql.STATES, "'{due1,later1,ended1}'"),
    ("existing", _sql.EXISTING, "'{due1,later1,ended1}'"),
    ("progress", _sql.SET_PROGRESS, "'due1', 1, '{}'"),
]


@pytest.fixture(scope="module")
def schema() -> Iterator[str]:
    """A store with many tasks; its statistics are those of an empty one, as after a flood."""
    schema = new_schema()

    async def make() -> None:
        backend = PostgresBackend(dsn(), schema=schema)
        await backend.open()
        await backend.close()

    asyncio.run(make())
    query(f"ALTER TABLE {schema}.tasks SET (autovacuum_enabled = off)")
    query(f"ANALYZE {schema}.tasks")
    query(Statements(schema)[FILL], ROWS)
    yield schema
    query(f"DROP SCHEMA {schema} CASCADE")


async def explain(schema: str, sql: str, values: str) -> str:
    """The plan of a statement as sitq runs it, with the pages that it and its functions read."""
    connection = await asyncpg.connect(dsn(), server_settings=_SETTINGS)
    try:
        await connection.execute(f"PREPARE it AS {Statements(schema)[sql]}")
        text = ""
        for _ in range(2):  # the first time reads the catalogue too
            await connection.execute("BEGIN")
            rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE it({values})")
            await connection.execute("ROLLBACK")
            text = "\n".join(row[0] for row in rows)
        return text
    finally:
        await connection.close()


@pytest.mark.parametrize(("name", "sql", "values"), CALLS, ids=[call[0] for call in CALLS])
def test_a_statement_reads_few_pages(schema: str, name: str, sql: str, values: str) -> None:
    plan = asyncio.run(explain(schema, sql, values))
    assert "Seq Scan on tasks" not in plan, plan
    found = re.search(r"Buffers: shared hit=(\d+)(?: read=(\d+))?", plan)
    assert found, plan
    pages = int(found[1]) + int(found[2] or 0)
    assert pages < 300, plan


def test_the_table_is_larger_than_what_is_read(schema: str) -> None:
    ((pages,),) = query(f"SELECT pg_relation_size('{schema}.tasks') / 8192")
    assert pages > 700


def test_the_plan_of_a_scan_would_be_noticed(schema: str) -> None:
    plan = asyncio.run(explain(schema, "SELECT count(*) FROM sitq.tasks WHERE worker = $1", "'w'"))
    assert "Seq Scan on tasks" in plan


BY_ID = ["succeed", "finish", "renew", "progress"]


@pytest.mark.parametrize(("name", "sql", "values"), [c for c in CALLS if c[0] in BY_ID], ids=BY_ID)
def test_rows_are_found_by_their_ids_though_statistics_know_none_that_runs(
    schema: str, name: str, sql: str, values: str
) -> None:
    query(f"ANALYZE {schema}.tasks")
    plan = asyncio.run(explain(schema, sql, values))
    assert "tasks_pkey" in plan, plan
    assert "tasks_leased" not in plan, plan
