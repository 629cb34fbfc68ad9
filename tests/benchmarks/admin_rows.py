"""A store of millions of rows to look into: most final, some open, in hundreds of queues.

The rows are made by the store itself. Ids are UUIDv7 in the order in which the tasks were enqueued,
over the last six days.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import anyio

from sitq import TaskQueue
from tests.benchmarks import postgres, workloads
from tests.benchmarks.stores import kind_of, open_store, redacted_dsn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FUNCTION", "QUEUES", "Rows", "grow"]

QUEUES = 300
FUNCTION = f"{workloads.__name__}:counted"
DAY = 86_400_000_000
# The open tasks of a store: so many in a hundred are scheduled, wait for a retry, are in progress.
SCHEDULED, RETRYING, RUNNING = 40, 5, 2
LEASES = 4

# What both databases say in the same words: the columns of task number n of a store.
# Of a thousand final tasks 970 succeed, 20 fail, 5 are cancelled and 5 expire.
COLUMNS = """
    'q' || (n * 7 % {queues}) AS queue,
    CASE n / 300 % 20 WHEN 0 THEN 10 WHEN 1 THEN -10 ELSE 0 END AS priority,
    CASE WHEN n % 3 = 0 THEN '{function}' ELSE 'jobs.f' || (n % 50) || ':run' END AS final_function,
    CASE WHEN n * 7919 % 1000 < 970 THEN 'success' WHEN n * 7919 % 1000 < 990 THEN 'failed'
         WHEN n * 7919 % 1000 < 995 THEN 'cancelled' ELSE 'expired' END AS final_status,
    CASE n % 4 WHEN 0 THEN 'ValueError' WHEN 1 THEN 'TimeoutError' WHEN 2 THEN 'KeyError'
               ELSE 'jobs.Refused' END || ': the text of an error' AS final_error,
    CASE WHEN n * 31 / 17 % 100 < {scheduled} THEN 'scheduled'
         WHEN n * 31 / 17 % 100 < {scheduled} + {retrying} THEN 'retrying'
         WHEN n * 31 / 17 % 100 < {scheduled} + {retrying} + {running} THEN 'in_progress'
         ELSE 'due' END AS kind
"""
SQLITE = f"""
WITH RECURSIVE numbers (n) AS (
    SELECT :first UNION ALL SELECT n + 1 FROM numbers LIMIT :count),
ids AS (SELECT n, :start + n * :step AS at FROM numbers),
rows AS (SELECT n, at, at / 1000 AS millis, {COLUMNS} FROM ids)
INSERT INTO tasks (id, status, queue, priority, eta, function, epoch, attempts, result_ttl,
                   enqueued_at, started_at, finished_at, delete_at, payload, value, error,
                   traceback)
SELECT printf('%08x-%04x-7000-8000-%012x', millis / 65536, millis % 65536, n),
       {{status}}, queue, priority, {{eta}}, {{function}}, {{epoch}}, {{epoch}}, 604800000000, at,
       {{started}}, {{finished}}, {{delete}}, x'929080', {{value}}, {{error}}, {{traceback}}
FROM rows
"""
POSTGRES = f"""
WITH ids AS (
    SELECT n, $1::bigint + n * $2::bigint AS at
    FROM generate_series($3::bigint, $3::bigint + $4::bigint - 1) AS n),
rows AS (SELECT n, at AS micros, timestamptz 'epoch' + at * interval '1 microsecond' AS at,
                at / 1000 AS millis, {COLUMNS} FROM ids)
INSERT INTO sitq.tasks (id, status, queue, priority, eta, function, epoch, attempts, result_ttl,
                        enqueued_at, started_at, finished_at, delete_at, payload, value, error,
                        traceback, worker, lease_end)
SELECT lpad(to_hex(millis / 65536), 8, '0') || '-' || lpad(to_hex(millis % 65536), 4, '0')
           || '-7000-8000-' || lpad(to_hex(n), 12, '0'),
       {{status}}, queue, priority, {{eta}}, {{function}}, {{epoch}}, {{epoch}}, 604800, at,
       {{started}}, {{finished}}, {{delete}}, '\\x929080'::bytea, {{value}}, {{error}},
       {{traceback}}, {{worker}}, {{lease}}
FROM rows
"""
_FAILED = "CASE final_status WHEN 'failed' THEN {} END"
_BEGUN = "CASE WHEN final_status IN ('success', 'failed') THEN {} {}END"
_RUNS = "CASE kind WHEN 'in_progress' THEN {} {}END"
FINAL = {
    "status": "final_status",
    "eta": "at",
    "function": "final_function",
    "epoch": _BEGUN.format("1", "ELSE 0 "),
    "started": _BEGUN.format("at", ""),
    "finished": "at",
    "value": "CASE final_status WHEN 'success' THEN {nil} END",
    "error": _FAILED.format("final_error"),
    "traceback": _FAILED.format("'  File \"jobs.py\", line 1, in run'"),
    "worker": "NULL",
    "lease": "NULL",
}
OPEN = {
    "status": "CASE kind WHEN 'in_progress' THEN kind ELSE 'pending' END",
    "function": f"'{FUNCTION}'",
    "epoch": "CASE WHEN kind IN ('in_progress', 'retrying') THEN 1 ELSE 0 END",
    "started": _RUNS.format("at", ""),
    "finished": "NULL",
    "delete": "NULL",
    "value": "NULL",
    "error": "CASE kind WHEN 'retrying' THEN final_error END",
    "traceback": "NULL",
    "worker": _RUNS.format(f"'worker-' || n % {LEASES}", ""),
}
SQLITE_LEASES = f"""
INSERT INTO leases (seq, epoch, worker, ends_at)
SELECT seq, 1, 'worker-' || seq % {LEASES}, :ends_at FROM tasks WHERE status = 'in_progress'
"""


class Rows(NamedTuple):
    """How many rows a store has, and when the first and the last was enqueued (microseconds)."""

    final: int
    open: int
    first_at: int
    last_at: int


def grow(store: str, final: int, opened: int) -> Rows:
    """Make a store with so many final and open tasks."""
    anyio.run(_create, store)
    now = time.time_ns() // 1000
    step = max(1, 6 * DAY // (final + opened))
    start = now - (final + opened + 1) * step
    columns = COLUMNS.format(
        queues=QUEUES,
        function=FUNCTION,
        scheduled=SCHEDULED,
        retrying=RETRYING,
        running=RUNNING,
    )
    parts: Sequence[tuple[dict[str, str], int, int]] = ((FINAL, 0, final), (OPEN, final, opened))
    fill = _fill_postgres if kind_of(store) == "postgres" else _fill_sqlite
    fill(store, columns, parts, start, step)
    return Rows(final, opened, start, start + (final + opened) * step)


async def _create(store: str) -> None:
    async with TaskQueue(open_store(store)):
        pass


def _fill_sqlite(
    store: str,
    columns: str,
    parts: Sequence[tuple[dict[str, str], int, int]],
    start: int,
    step: int,
) -> None:
    own = {
        "eta": f"CASE kind WHEN 'scheduled' THEN at + {8 * DAY} ELSE at END",
        "delete": f"at + {30 * DAY}",
        "nil": "x'c0'",
    }
    path = redacted_dsn(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -200000")
        for parts_of, first, count in parts:
            # A transaction of all would make a log as long as the store.
            for begin in range(first, first + count, 250_000):
                values = {
                    "first": begin,
                    "count": min(250_000, first + count - begin),
                    "start": start,
                    "step": step,
                }
                connection.execute(_statement(SQLITE, columns, own | parts_of, own), values)
        ends_at = time.time_ns() // 1000 + DAY
        connection.execute(SQLITE_LEASES, {"ends_at": ends_at})
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    # Or the disk would still be busy with these rows while others are measured.
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _fill_postgres(
    store: str,
    columns: str,
    parts: Sequence[tuple[dict[str, str], int, int]],
    start: int,
    step: int,
) -> None:
    own = {
        "eta": "CASE kind WHEN 'scheduled' THEN at + interval '8 days' ELSE at END",
        "delete": "at + interval '30 days'",
        "nil": "'\\xc0'::bytea",
        "lease": _RUNS.format("now() + interval '1 day'", ""),
    }
    schema = str(redacted_dsn(store))
    for parts_of, first, count in parts:
        sql = _statement(POSTGRES, columns, own | parts_of, own)
        sql = sql.replace("sitq.", f'"{schema}".')
        postgres.ask(sql, start, step, first, count)
    postgres.ask(f'VACUUM (ANALYZE) "{schema}".tasks')
    postgres.ask("CHECKPOINT")


def _statement(sql: str, columns: str, parts: dict[str, str], own: dict[str, str]) -> str:
    filled = {name: text.replace("{nil}", own["nil"]) for name, text in parts.items()}
    return sql.replace(COLUMNS, columns).format(**filled)
