"""The floors: raw sqlite3 in one thread, doing the same work one task a transaction."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = """
CREATE TABLE tasks (id INTEGER PRIMARY KEY, status TEXT NOT NULL, function TEXT NOT NULL,
                    payload BLOB NOT NULL, result BLOB);
CREATE INDEX due ON tasks (id) WHERE status = 'pending';
"""
INSERT = "INSERT INTO tasks (status, function, payload) VALUES ('pending', 'm:f', x'929080')"
RESERVE = """
UPDATE tasks SET status = 'in_progress'
WHERE id = (SELECT id FROM tasks WHERE status = 'pending' ORDER BY id LIMIT 1) RETURNING id
"""
FINISH = "UPDATE tasks SET status = 'success', result = x'c0' WHERE id = ?"


def _open(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.executescript(SCHEMA)
    return connection


def insert(folder: Path, synchronous: str, count: int) -> float:
    """Rows inserted a second, a transaction each."""
    with closing(_open(folder / f"insert-{synchronous}.db", synchronous)) as connection:
        start = time.perf_counter()
        for _ in range(count):
            connection.execute(INSERT)
        return count / (time.perf_counter() - start)


def drain(folder: Path, synchronous: str, count: int) -> float:
    """Tasks reserved and completed a second, a transaction each way."""
    with closing(_open(folder / f"drain-{synchronous}.db", synchronous)) as connection:
        connection.execute("BEGIN")
        for _ in range(count):
            connection.execute(INSERT)
        connection.execute("COMMIT")
        start = time.perf_counter()
        for _ in range(count):
            (row,) = connection.execute(RESERVE).fetchall()
            connection.execute(FINISH, row)
        return count / (time.perf_counter() - start)
