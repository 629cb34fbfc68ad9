"""A file that somebody has written into by hand: one bad row harms nobody else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sitq import BackendFormatError, SQLiteBackend, TaskQueue, TaskStatus, Worker, call

pytestmark = pytest.mark.anyio


async def note(number: int) -> int:
    return number


def alter(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("retry", "no json"),
        ("retry", '{"max_attempts": 0}'),
        ("retry", "[]"),
        ("headers", "{"),
        ("headers", '{"a": 1}'),
        ("id", "no id"),
        ("timeout", float("inf")),
        ("timeout", -1.0),
        ("enqueued_at", 2**62),
        ("eta", -(2**62)),
    ],
)
async def test_a_row_that_cannot_be_read_fails_alone(
    tmp_path: Path, column: str, value: object
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        ids = await queue.enqueue_many([call(note, number) for number in range(3)])
        alter(path, f"UPDATE tasks SET {column} = ? WHERE seq = 2", value)
        await Worker(SQLiteBackend(path)).drain()
        for task_id in (ids[0], ids[2]):
            assert (await queue.get_task(task_id)).status is TaskStatus.SUCCESS
    with closing(sqlite3.connect(path)) as connection:
        ((status,),) = connection.execute("SELECT status FROM tasks WHERE seq = 2").fetchall()
        assert connection.execute("SELECT count(*) FROM leases").fetchone() == (0,)
    assert status in {"failed", "success"}


async def test_a_row_that_cannot_be_told_of_is_a_typed_error_without_values(
    tmp_path: Path,
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(note, 1)
        alter(path, "UPDATE tasks SET unique_key = ?, retry_of = ?", "secret", "secret")
        with pytest.raises(BackendFormatError, match="get_tasks on") as caught:
            await queue.get_task(task_id)
        assert "secret" not in str(caught.value)


async def test_the_database_itself_refuses_impossible_states(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.options(unique_key="k").enqueue(note, 1)
        await queue.enqueue(note, 2)
    for change in (
        "status = 'nonsense'",
        "status = 'success'",
        "status = 'success', finished_at = 1, delete_at = 1",
        "finished_at = 1",
        "attempts = 5",
        "attempts = -1",
        "priority = 101",
        "unique_key = 'k'",
        "payload = NULL",
        "eta = 'soon'",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            alter(path, f"UPDATE tasks SET {change}")
