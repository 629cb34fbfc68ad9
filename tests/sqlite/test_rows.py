"""A file that somebody has written into by hand: one bad row harms nobody else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
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
        ("epoch", 2**63 - 1),
        ("max_attempts", 0),
        ("result_ttl", 2**63 - 1),
        ("result_ttl", -5),
        ("misses", 2**63 - 1),
        ("crashes", 2**63 - 1),
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


@pytest.mark.parametrize("column", ["function", "headers", "retry", "queue", "unique_key"])
async def test_a_text_that_is_not_utf8_harms_only_its_own_row(tmp_path: Path, column: str) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        ids = await queue.enqueue_many([call(note, number) for number in range(3)])
        alter(path, f"UPDATE tasks SET {column} = CAST(x'ff41' AS TEXT) WHERE seq = 2")
        await Worker(SQLiteBackend(path)).drain()
        for task_id in (ids[0], ids[2]):
            assert (await queue.get_task(task_id)).status is TaskStatus.SUCCESS
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM leases").fetchone() == (0,)


async def test_a_result_that_cannot_be_read_is_an_error_for_its_own_waiter_only(
    tmp_path: Path,
) -> None:
    path = tmp_path / "q.db"
    errors: list[Exception] = []

    async with TaskQueue(SQLiteBackend(path)) as queue:
        good, bad = await queue.enqueue_many([call(note, number) for number in range(2)])
        last = await queue.enqueue(note, 2, eta=datetime.now(UTC) + timedelta(hours=1))
        await Worker(SQLiteBackend(path)).drain()
        alter(path, "UPDATE tasks SET finished_at = 9223372036854775807 WHERE id = ?", bad)

        async def wait_for_the_bad_one() -> None:
            try:
                await queue.get_result(bad)
            except BackendFormatError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(queue.get_result, last)  # leads, and must not fall with the bad one
            await anyio.wait_all_tasks_blocked()
            group.start_soon(wait_for_the_bad_one)
            result = await queue.get_result(good)
            assert result is not None
            assert result.status is TaskStatus.SUCCESS
            alter(path, "UPDATE tasks SET eta = 0 WHERE id = ?", last)
            await Worker(SQLiteBackend(path)).drain()
    assert len(errors) == 1


async def test_a_row_that_cannot_be_read_is_a_typed_error_without_values(
    tmp_path: Path,
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(note, 1)
        alter(path, "UPDATE tasks SET unique_key = ?, retry_of = ?", "secret", "secret")
        with pytest.raises(BackendFormatError, match="get_tasks on") as caught:
            await queue.get_task(task_id)
        assert "secret" not in str(caught.value)


async def test_a_file_whose_texts_are_utf16_is_a_store_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA encoding = 'UTF-16'; CREATE TABLE x (y); DROP TABLE x;")
    path.chmod(0o600)
    async with TaskQueue(SQLiteBackend(path)) as queue:
        ids = [
            *await queue.enqueue_many([call(note, 1), call(note, 2)]),
            await queue.enqueue(note, 3),
        ]
        assert await Worker(SQLiteBackend(path)).drain() == 3
        results = [await queue.get_result(task_id, timeout=0) for task_id in ids]
        values = [queue.deserialize_result(result) for result in results if result]
    assert values == [1, 2, 3]


async def test_the_database_itself_refuses_impossible_states(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.options(unique_key="k").enqueue(note, 1)
        await queue.enqueue(note, 2)
    for change in (
        "status = 'nonsense'",
        "status = 'success'",
        "status = 'success', finished_at = 1, delete_at = 1",
        "status = 'failed', finished_at = 1, delete_at = 1, value = x'c0'",
        "status = 'expired'",
        "status = 'cancelled', finished_at = 1",
        "status = 'in_progress', value = x'c0'",
        "finished_at = 1",
        "delete_at = 1",
        "epoch = -1",
        "attempts = 5",
        "attempts = -1",
        "priority = 101",
        "unique_key = 'k'",
        "payload = NULL",
        "eta = 'soon'",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            alter(path, f"UPDATE tasks SET {change}")
