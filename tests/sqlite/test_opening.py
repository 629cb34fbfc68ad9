"""Opening and closing: one loop at a time, nothing left behind, reads that wait for nobody."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
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
        latest = _schema.migrations()[-1][0]
        assert connection.execute("PRAGMA user_version").fetchone() == (latest,)


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


@pytest.mark.anyio
async def test_a_read_that_begins_during_the_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    await anyio.to_thread.run_sync(gc.collect)  # a thread of the loop's own
    threads = len(_threads())
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    await backend.enqueue([Task(id=new_task_id(), function="tests:nothing", payload=b"")])
    await backend.reserve("w", ("default",), 1, 30.0)  # which a sweep flushes before it reads
    gate = threading.Event()
    database = backend._open_counter.use().database
    database._connection.post(gate.wait)
    ends: list[str] = []

    async def sweep() -> None:
        with pytest.raises(UsageError, match="closed"):
            await backend.sweep(3)
        ends.append("sweep")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(sweep)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(backend.close)
            await anyio.wait_all_tasks_blocked()
            gate.set()
    assert ends == ["sweep"]
    await until_closed(tmp_path, threads)
    del database  # what nobody has any more is closed by itself


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


@pytest.mark.parametrize("steps", range(6))
def test_a_closing_leaves_nothing_behind_where_all_tasks_are_cancelled(
    tmp_path: Path, steps: int
) -> None:
    async def main() -> None:
        threads = len(_threads())
        backend = SQLiteBackend(tmp_path / "q.db")
        await backend.open()
        close = asyncio.create_task(backend.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait({close})
        await backend.close()
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


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("reused", [True, False])
def test_loops_that_end_without_a_close_leave_no_more_than_one_opening_behind(
    tmp_path: Path, loop: str, reused: bool
) -> None:
    path = tmp_path / "q.db"
    queue = TaskQueue(SQLiteBackend(path))
    before = threading.active_count()

    async def use(queue: TaskQueue) -> None:
        await queue.get_task(await queue.enqueue(nothing))

    for _ in range(10):
        anyio.run(use, queue if reused else TaskQueue(SQLiteBackend(path)), backend=loop)
    give_up = time.monotonic() + 20
    # An opening has 7 files. SQLite closes some of them only when all others of the process do.
    while threading.active_count() > before + 2 or len(open_files(tmp_path)) > 14:
        assert time.monotonic() < give_up, open_files(tmp_path)
        gc.collect()
        time.sleep(0.01)
    anyio.run(use, queue, backend=loop)
    anyio.run(queue.close, backend=loop)


async def nothing() -> None: ...


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_store_is_not_closed_by_another_loop(tmp_path: Path, loop: str) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")

    async def own() -> None:
        await backend.open()
        with pytest.raises(UsageError, match="open in another event loop"):
            await anyio.to_thread.run_sync(lambda: anyio.run(backend.close, backend=loop))
        assert await backend.get_tasks(()) == []
        await backend.close()

    anyio.run(own, backend=loop)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_forked_process_is_refused_and_leaves_the_block_all_the_same(
    tmp_path: Path, loop: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(FORKS)
    done = subprocess.run(
        # Newer Pythons warn of each fork beside threads.
        [sys.executable, "-W", "ignore", str(script), loop, str(tmp_path / "q.db")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["refused: before a fork", "left", "child 0", "parent: ok"]


FORKS = """
import os, sys, anyio
from sitq import SQLiteBackend, TaskQueue, UsageError

async def nothing() -> None: ...

async def main() -> None:
    child = -1
    async with TaskQueue(SQLiteBackend(sys.argv[2])) as queue:
        await queue.enqueue(nothing)
        child = os.fork()
        if child == 0:
            try:
                await queue.enqueue(nothing)
            except UsageError as error:
                print("refused:", "before a fork" if "before a fork" in str(error) else error)
        else:
            print("child", os.waitpid(child, 0)[1])
            await queue.enqueue(nothing)
            print("parent: ok")
    if child == 0:
        print("left", flush=True)
        os._exit(0)

anyio.run(main, backend=sys.argv[1])
"""
