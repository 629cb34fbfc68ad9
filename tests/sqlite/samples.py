"""A task, and a store with some in it."""

from __future__ import annotations

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
