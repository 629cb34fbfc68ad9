"""What a store holds beside payloads is bounded too: headers, policies, progress, errors."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from sitq import BackendFormatError, SitqError, SQLiteBackend, TaskQueue, TaskStatus, Worker

pytestmark = pytest.mark.anyio


def one() -> int:
    return 1


def alter(path: Path, change: str, value: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(f"UPDATE tasks SET {change}", (value,)).rowcount == 1


HOSTILE = {
    "nested": "[" * 200_000,
    "nested and short": "[" * 100_000,
    "nested dicts": '{"a":' * 20_000,
    "digits": '{"a": ' + "1" * 100_000 + "}",
    "numbers": '{"a": 1}',
    "a list": '["a"]',
    "long": '{"a": "' + "x" * 1_000_000 + '"}',
}


@pytest.mark.usefixtures("paused_collector")
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
async def test_headers_that_no_queue_wrote_are_an_error_of_their_own_task(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path, synchronous="NORMAL")
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(one)
        await queue.cancel(task_id)
        alter(path, "headers = ?", text)
        start = time.thread_time()
        with pytest.raises(BackendFormatError):
            await queue.retry(task_id)
        assert time.thread_time() - start < 0.5
        alter(path, "status = 'pending', finished_at = NULL, delete_at = NULL, headers = ?", text)
        other = await queue.enqueue(one)
        await Worker(backend, tasks=[one]).drain()
        assert (await queue.get_task(task_id)).status is TaskStatus.FAILED
        assert await queue.result(other) == 1


@pytest.mark.parametrize("column", ["retry"])
async def test_a_policy_that_no_queue_wrote_is_an_error_of_its_own_task(
    tmp_path: Path, column: str
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path, synchronous="NORMAL")) as queue:
        task_id = await queue.enqueue(one)
        await queue.cancel(task_id)
        alter(path, f"{column} = ?", '{"retry_on": [' + '"a",' * 100_000 + '"a"]}')
        with pytest.raises(SitqError):
            await queue.retry(task_id)


async def test_an_error_that_no_worker_wrote_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path, synchronous="NORMAL")) as queue:
        task_id = await queue.enqueue(one)
        await queue.cancel(task_id)
        alter(path, "status = 'failed', error = ?", "x" * 1_000_000)
        alter(path, "traceback = ?", "y" * 1_000_000)
        result = await queue.get_result(task_id)
        assert result is not None
        assert len(result.error or "") < 20_000
        assert len(result.traceback or "") < 140_000
        assert len((await queue.get_task(task_id)).error or "") < 20_000
