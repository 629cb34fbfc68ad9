"""The server to measure on, and what is put into it past sitq.

It is the one of ``SITQ_BENCH_POSTGRES_DSN``, or one of our own that writes to the disk as a server
does by itself: what has been committed survives a power cut.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from functools import cache
from typing import TYPE_CHECKING, Any

import asyncpg

from sitq.backends.postgres import PostgresBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sitq import Backend

__all__ = [
    "DSN_VARIABLE",
    "ask",
    "await_end",
    "backend",
    "conditions",
    "connected",
    "forget",
    "grow",
    "new_schema",
]

DSN_VARIABLE = "SITQ_BENCH_POSTGRES_DSN"
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    # A checkpoint in the middle of a short measurement would be the luck of the draw.
    "max_wal_size": "4GB",
}
SHOWN = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size")
MADE: set[str] = set()
# A row for each number: a task of one of so many queues, final, scheduled or due.
ROWS = """
INSERT INTO sitq.tasks (id, status, queue, priority, eta, function, epoch, attempts, result_ttl,
                        enqueued_at, started_at, finished_at, delete_at, payload, value)
SELECT format('%s-0000-7000-8000-000000000000', lpad(to_hex(n), 8, '0')), $3::text,
       CASE WHEN $4::int = 1 THEN 'default' ELSE 'q' || n % $4::int END, 0,
       now() + $5::interval + n * interval '1 microsecond', $6::text, ended, ended, 604800,
       now() - interval '1 day', CASE ended WHEN 1 THEN now() END, CASE ended WHEN 1 THEN now() END,
       CASE ended WHEN 1 THEN now() + interval '7 days' + n / 500 * interval '1 microsecond' END,
       '\\x929080'::bytea, CASE ended WHEN 1 THEN '\\xc0'::bytea END
FROM generate_series($1::int, $1::int + $2::int - 1) AS n,
     (SELECT CASE $3::text WHEN 'success' THEN 1 ELSE 0 END) AS kind (ended)
"""


@cache
def dsn() -> str:
    """Where the server is; started when it is first asked for."""
    given = os.environ.get(DSN_VARIABLE)
    if given:
        return given
    from tests.postgres.servers import Server

    where = Server(None, **SETTINGS).dsn
    # Workers in processes of their own use the same one.
    os.environ[DSN_VARIABLE] = where
    return where


def new_schema() -> str:
    """The name of a schema of its own for one measurement."""
    schema = f"bench_{secrets.token_hex(6)}"
    MADE.add(schema)
    dsn()
    return schema


def backend(schema: str) -> Backend:
    """Make a backend for a schema."""
    return PostgresBackend(dsn(), schema=schema)


def connected(work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
    """Do some work through a connection; from a thread that runs no loop."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn())
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def ask(sql: str, *parameters: Any) -> list[Any]:
    """Ask the server."""
    found: list[Any] = connected(lambda connection: connection.fetch(sql, *parameters))
    return found


def forget() -> None:
    """Remove the schemas of measurements that have ended, and let the next one begin afresh."""
    while MADE:
        ask(f'DROP SCHEMA IF EXISTS "{MADE.pop()}" CASCADE')
        ask("CHECKPOINT")


def grow(
    schema: str, *, finished: int, scheduled: int, due: int, queues: int, function: str
) -> None:
    """Put rows into a store, and leave it as autovacuum does."""
    sql, first = ROWS.replace("sitq.", f'"{schema}".'), 1
    for status, count, eta in (
        ("success", finished, "-1 day"),
        ("pending", scheduled, "1 day"),
        ("pending", due, "-1 day"),
    ):
        insert = sql.replace("$5::interval", f"interval '{eta}'").replace("$6", "$5")
        ask(insert, first, count, status, queues, function)
        first += count
    ask(f'VACUUM (ANALYZE) "{schema}".tasks')
    ask("CHECKPOINT")


def await_end(schema: str) -> None:
    """Return once all tasks of a store are final."""
    looks = " OR ".join(
        f"EXISTS (SELECT FROM \"{schema}\".tasks WHERE status = '{status}')"
        for status in ("pending", "in_progress")
    )

    async def look(connection: asyncpg.Connection) -> None:
        await connection.execute("SET enable_seqscan = off")
        while await connection.fetchval(f"SELECT {looks}"):  # noqa: ASYNC110 - others end them
            await asyncio.sleep(0.01)

    connected(look)


def conditions() -> dict[str, str]:
    """The server's version and the settings that decide how fast it is, and how safe."""
    names = ", ".join(f"current_setting('{name}')" for name in SHOWN)
    row = ask(f"SELECT current_setting('server_version'), {names}")[0]
    settings = ", ".join(f"{name} {value}" for name, value in zip(SHOWN, row[1:], strict=True))
    return {"postgresql": row[0], "settings": settings}
