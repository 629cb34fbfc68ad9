"""A look at the store costs the same however many tasks wait for later or have ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from sitq import TaskFilter, TaskId
from sitq.backends.postgres import PostgresBackend, _admin_sql, _sql
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


# Those of the administration, without the ones that are made for a filter.
ADMIN_CALLS: list[tuple[str, str, str]] = [
    ("cancel tasks", _admin_sql.CANCEL_TASKS, "NULL, '{due1,later1,ended1}'"),
    ("postpone", _admin_sql.POSTPONE, "NULL, '{due1,later1,ended1}', '2100-01-01'"),
    ("set priority", _admin_sql.SET_PRIORITY, "NULL, '{due1,later1,ended1}', 3"),
    ("delete", _admin_sql.DELETE, "'{due1,later1,ended1}'"),
    ("replace", _admin_sql.REPLACE_PENDING, "NULL, 'due1', NULL, ''"),
    ("load", _admin_sql.STORED_BATCH, "'{due1,later1,ended1}'"),
    ("attempts", _admin_sql.ATTEMPTS, "'due1'"),
    ("pauses", _admin_sql.PAUSES, "NULL"),
    ("running", _admin_sql.RUNNING, ""),
    ("levels", _admin_sql.LEVELS, "NULL, 100"),
    ("heads", _admin_sql.HEADS, "NULL, '{default,other}', '{0,0}', '{20,20}', '{20,20}'"),
    ("in progress", _admin_sql.IN_PROGRESS, ""),
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
            call = f"it({values})" if values else "it"
            rows = await connection.fetch(f"EXPLAIN (ANALYZE, BUFFERS) EXECUTE {call}")
            await connection.execute("ROLLBACK")
            text = "\n".join(row[0] for row in rows)
        return text
    finally:
        await connection.close()


ALL_CALLS = [*CALLS, *ADMIN_CALLS]


@pytest.mark.parametrize(("name", "sql", "values"), ALL_CALLS, ids=[call[0] for call in ALL_CALLS])
def test_a_statement_reads_few_pages(schema: str, name: str, sql: str, values: str) -> None:
    plan = asyncio.run(explain(schema, sql, values))
    assert pages_of(plan) < (1000 if name == "levels" else 300), plan


def pages_of(plan: str) -> int:
    """The pages that a statement has read; all of them by way of an index."""
    assert "Seq Scan on tasks" not in plan, plan
    found = re.search(r"Buffers: shared hit=(\d+)(?: read=(\d+))?", plan)
    assert found, plan
    return int(found[1]) + int(found[2] or 0)


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


CONDITIONS = {
    "alone": TaskFilter(),
    "queue": TaskFilter(queue="default"),
    "function": TaskFilter(function="jobs:run"),
    "error": TaskFilter(error="ValueError"),
    "times": TaskFilter(
        enqueued_after=datetime(2026, 1, 1, tzinfo=UTC), eta_before=datetime(2027, 1, 1, tzinfo=UTC)
    ),
    "key": TaskFilter(unique_key="key", priority=3),
}
SCANNED = 100


def literals(values: list[Any]) -> str:
    """Values as a statement is called with them by hand."""

    def text(value: Any) -> str:
        if value is None:
            return "NULL"
        if isinstance(value, list):
            return "'{" + ",".join(value) + "}'"
        return str(value) if isinstance(value, int) else f"'{value}'"

    return ", ".join(map(text, values))


@pytest.mark.parametrize("where", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("status", [None, "success", "failed", "in_progress"])
def test_a_list_by_id_reads_no_more_than_its_bound(
    schema: str, where: TaskFilter, status: Any
) -> None:
    where = where.narrowed(status=status)
    sql, values = _admin_sql.id_floor(where, "~", SCANNED)
    plan = asyncio.run(explain(schema, sql, literals(values)))
    assert pages_of(plan) < 4 * SCANNED, plan
    found = query(f"SELECT id FROM {schema}.tasks ORDER BY id DESC OFFSET {SCANNED} LIMIT 1")
    for sql, values in (
        _admin_sql.id_page(where, "~", found[0][0], 101),
        _admin_sql.id_count(where, "~", found[0][0], 1000),
    ):
        plan = asyncio.run(explain(schema, sql, literals(values)))
        assert pages_of(plan) < 4 * SCANNED, plan
        index = {"failed": "tasks_unsuccessful", "in_progress": "tasks_leased"}
        assert index.get(status, "tasks_pkey") in plan


@pytest.mark.parametrize("where", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("status", ["pending", "due", "scheduled", "retrying"])
def test_a_list_of_pending_tasks_reads_no_more_than_its_bound(
    schema: str, where: TaskFilter, status: Any
) -> None:
    where = where.narrowed(status=status)
    start = ("", 2**15, None, 0)
    for sql, values in (
        _admin_sql.pending_page(None, where, start, SCANNED, SCANNED),
        _admin_sql.pending_last(None, where, start, SCANNED),
        _admin_sql.pending_count(None, where, start, SCANNED, 1000),
    ):
        plan = asyncio.run(explain(schema, sql, literals(values)))
        assert pages_of(plan) < 8 * SCANNED, plan
        assert "tasks_due" in plan


@pytest.mark.parametrize(
    "where",
    [
        TaskFilter(ids=(TaskId[Any]("01a20400-6f4e-7000-8000-000000000019"),)),
        TaskFilter(worker="w"),
    ],
)
def test_a_list_of_given_tasks_or_of_a_worker_reads_no_others(
    schema: str, where: TaskFilter
) -> None:
    for sql, values in (
        _admin_sql.id_floor(where, "~", 10_000),
        _admin_sql.id_page(where, "~", "", 101),
        _admin_sql.id_count(where, "~", "", 1000),
    ):
        plan = asyncio.run(explain(schema, sql, literals(values)))
        assert pages_of(plan) < 100, plan
