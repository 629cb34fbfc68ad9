"""The floors of the PostgreSQL store: raw asyncpg, doing the same work one task a transaction."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.benchmarks.postgres import connected

if TYPE_CHECKING:
    import asyncpg

__all__ = ["drain", "insert", "insert_many"]

SCHEMA = """
DROP TABLE IF EXISTS floor;
CREATE TABLE floor (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, status text NOT NULL,
                    function text NOT NULL, payload bytea NOT NULL, result bytea);
CREATE INDEX ON floor (id) WHERE status = 'pending';
"""
INSERT = "INSERT INTO floor (status, function, payload) VALUES ('pending', $1, $2)"
RESERVE = """
UPDATE floor SET status = 'in_progress'
WHERE id = (SELECT id FROM floor WHERE status = 'pending' ORDER BY id LIMIT 1
            FOR UPDATE SKIP LOCKED) RETURNING id, function, payload
"""
FINISH = "UPDATE floor SET status = 'success', result = $2 WHERE id = $1"
CALL = ("m:f", b"\x92\x90\x80")


def insert(count: int) -> float:
    """Rows inserted a second, a transaction each."""

    async def work(connection: asyncpg.Connection) -> float:
        await connection.execute(SCHEMA)
        statement = await connection.prepare(INSERT)
        start = time.perf_counter()
        for _ in range(count):
            await statement.fetch(*CALL)
        return count / (time.perf_counter() - start)

    return _measured(work)


def insert_many(count: int) -> float:
    """Rows inserted a second, a thousand a transaction, by the driver's own batches."""

    async def work(connection: asyncpg.Connection) -> float:
        await connection.execute(SCHEMA)
        start = time.perf_counter()
        for _ in range(0, count, 1000):
            await connection.executemany(INSERT, [CALL] * 1000)
        return count / (time.perf_counter() - start)

    return _measured(work)


def drain(count: int) -> float:
    """Tasks reserved and completed a second, a transaction each way."""

    async def work(connection: asyncpg.Connection) -> float:
        await connection.execute(SCHEMA)
        await connection.executemany(INSERT, [CALL] * count)
        reserve, finish = await connection.prepare(RESERVE), await connection.prepare(FINISH)
        start = time.perf_counter()
        for _ in range(count):
            (row,) = await reserve.fetch()
            await finish.fetch(row["id"], b"\xc0")
        return count / (time.perf_counter() - start)

    return _measured(work)


def _measured(work: Any) -> float:
    async def cleared(connection: asyncpg.Connection) -> float:
        try:
            return float(await work(connection))
        finally:
            await connection.execute("DROP TABLE IF EXISTS floor")

    return float(connected(cleared))
