"""Where a store of a test lies: a file's path, or a server's URL with the schema as its fragment.

Both are texts that a process can be given, and both can be looked into past sitq.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from sitq import Backend, SQLiteBackend
from sitq.backends.postgres import PostgresBackend
from sitq.protocols import Clock
from tests.postgres.servers import dsn, new_schema

__all__ = ["Place", "backend_at", "new_place", "query"]

Place = Path | str


def new_place(kind: str, folder: Path) -> Place:
    """A place for an empty store of a kind, ``"sqlite"`` or ``"postgres"``."""
    return folder / "q.db" if kind == "sqlite" else f"{dsn()}#{new_schema()}"


def backend_at(place: Place, clock: Clock | None = None) -> Backend:
    """A backend on the store at a place."""
    where, _, schema = str(place).partition("#")
    if schema:
        return PostgresBackend(where, schema=schema, clock=clock)
    return SQLiteBackend(where, clock=clock)


def query(place: Place, sql: str) -> list[tuple[Any, ...]]:
    """Look into a store past sitq; also from a thread that runs a loop."""
    where, _, schema = str(place).partition("#")
    if schema:
        loop = asyncio.new_event_loop()
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return loop.run_until_complete(_ask(where, schema, sql))
        finally:
            asyncio._set_running_loop(running)
            loop.close()
    with closing(sqlite3.connect(where, timeout=10)) as connection:
        return connection.execute(sql).fetchall()


async def _ask(where: str, schema: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(where, server_settings={"search_path": schema})
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()
