"""A worker looks functions up in the user's modules, and survives what it meets there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker, task
from tests.worker.gate import add, working

pytestmark = pytest.mark.anyio


class Biting:
    """Raises when it is compared."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError


@task(name="tests.lookup.replaced")
def replaced() -> None:
    pass


@pytest.mark.parametrize("way", ["drain", "start"])
async def test_an_object_that_took_a_functions_place_holds_no_other_task_up(
    queue: TaskQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    # Stored by another process: this one has not looked the function up yet.
    first = await queue.enqueue(add, 1, 1)
    with closing(sqlite3.connect(tmp_path / "q.db")) as connection, connection:
        connection.execute("UPDATE tasks SET function = 'tests.lookup.replaced'")
    monkeypatch.setattr("tests.worker.test_lookup.replaced", Biting())
    other = await queue.enqueue(add, 1, 2)  # reserved together with the first
    with anyio.fail_after(10):
        if way == "drain":
            await Worker(SQLiteBackend(tmp_path / "q.db")).drain()
        else:
            async with working(tmp_path):
                await queue.result(other)
        assert await queue.result(other, timeout=0) == 3
    assert (await queue.get_task(first)).status is TaskStatus.PENDING
