"""A task, a store with some in it, and its lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sitq import SQLiteBackend
from sitq.ids import new_task_id
from sitq.models import Task


def some_task(**options: Any) -> Task:
    return Task(id=new_task_id(), function="tests:nothing", payload=b"\x92\x90\x80", **options)


async def make_store(path: Path, tasks: int = 1) -> None:
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task() for _ in range(tasks)])
    await backend.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock, as another program might."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
