"""Opening and closing: one loop at a time, nothing left behind, reads that wait for nobody."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from sitq import SQLiteBackend, TaskQueue, UsageError
from sitq.backends.sqlite import _schema
from sitq.ids import new_task_id
from sitq.models import Task

ROUNDS = 60


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process has open."""
    paths = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            paths.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return [path for path in paths if path.startswith(str(folder))]


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


async def until_closed(folder: Path, threads: int) -> None:
    with anyio.fail_after(20):
        while open_files(folder) or len(_threads()) > threads:  # noqa: ASYNC110 - threads end so
            await anyio.sleep(0.002)


def test_a_file_that_another_process_migrates_meanwhile_is_no_foreign_one(tmp_path: Path) -> None:
    path = tmp_path / "q.db"

    class Slow(sqlite3.Connection):
        """Somebody else makes the store between this one's first look and its second."""

        others = 0

        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            cursor = super().execute(sql, parameters)
            if sql == "PRAGMA application_id":
                row = _Row(cursor.fetchone())
                if not self.others:
                    self.others += 1
                    with closing(sqlite3.connect(path, isolation_level=None)) as other:
                        _schema.migrate(other, str(path))
                return cast("sqlite3.Cursor", row)
            return cursor

    with closing(sqlite3.connect(path, isolation_level=None)) as first:
        first.execute("PRAGMA journal_mode = WAL")
    with closing(sqlite3.connect(path, isolation_level=None, factory=Slow)) as connection:
        _schema.migrate(connection, str(path))
        assert connection.others == 1
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


class _Row:
    def __init__(self, row: tuple[int]) -> None:
        self.row = row

    def fetchone(self) -> tuple[int]:
        return self.row


@pytest.mark.anyio
async def test_an_opening_that_is_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    queue = TaskQueue(SQLiteBackend(tmp_path / "q.db"))
    async with queue:
        pass
    threads = len(_threads())
    for _ in range(ROUNDS):
        queue = TaskQueue(SQLiteBackend(tmp_path / "q.db"))
        with anyio.move_on_after(random.uniform(0, 0.003)):
            await queue.connect()
        await queue.close()
    await until_closed(tmp_path, threads)


def test_asyncios_own_cancellation_of_an_opening_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with TaskQueue(SQLiteBackend(tmp_path / "q.db")):
            pass
        threads = len(_threads())
        cancelled = 0
        for _ in range(ROUNDS):
            queue = TaskQueue(SQLiteBackend(tmp_path / "q.db"))
            try:
                await asyncio.wait_for(queue.connect(), random.uniform(0, 0.002))
            except TimeoutError:
                cancelled += 1
            await queue.close()
        assert cancelled  # or this test has shown nothing
        await until_closed(tmp_path, threads)

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_of_many_loops_that_open_an_instance_at_once_one_has_it(tmp_path: Path, loop: str) -> None:
    async def use(backend: SQLiteBackend, start: threading.Barrier, end: threading.Barrier) -> str:
        start.wait()
        try:
            await backend.open()
        except UsageError:
            end.wait()
            return "refused"
        await backend.enqueue([Task(id=new_task_id(), function="m:f", payload=b"")])
        end.wait()  # blocks this loop on purpose: all have tried before any gives it up
        await backend.close()
        return "used"

    for number in range(20):
        backend = SQLiteBackend(tmp_path / f"{number}.db")
        start, end = threading.Barrier(3), threading.Barrier(3)
        answers: list[str] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(anyio.run(use, backend, start, end, backend=loop))  # noqa: B023 - joined within the round
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["refused", "refused", "used"]
        with closing(sqlite3.connect(tmp_path / f"{number}.db")) as connection:
            assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (1,)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_an_instance_that_was_closed_may_move_to_another_loop(tmp_path: Path, loop: str) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")

    async def use() -> None:
        async with TaskQueue(backend):
            pass

    anyio.run(use, backend=loop)
    anyio.run(use, backend="trio")
    anyio.run(use, backend="asyncio")
