"""Files that are read-only, cut short, overwritten or removed: a typed error, or all intact."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sitq import (
    BackendConnectionError,
    BackendFormatError,
    BackendFullError,
    SQLiteBackend,
    TaskQueue,
    TaskStatus,
    Worker,
    call,
)
from sitq.backends.sqlite import _sql
from tests.faults import programs
from tests.faults.breaking import point
from tests.faults.processes import Processes, check_total, query

pytestmark = pytest.mark.anyio


@pytest.fixture
def processes(anyio_backend_name: str, tmp_path: Path) -> Iterator[Processes]:
    """Processes on the loop of the test."""
    processes = Processes(anyio_backend_name, tmp_path)
    yield processes
    processes.kill_all()


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=700", "tmpfs", str(folder)]
    allowed = shutil.which("mount") and os.geteuid() == 0
    if not allowed or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def note(number: int) -> int:
    return number


async def enqueue(path: Path, count: int = 50) -> list[str]:
    """Store tasks, and close the store again."""
    async with TaskQueue(SQLiteBackend(path)) as queue:
        return list(await queue.enqueue_many([call(note, number) for number in range(count)]))


def remount(disk: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


async def test_a_read_only_file_system_is_a_typed_error_and_heals(own_disk: Path) -> None:
    """Neither a new store nor an old one opens; afterwards the old one is what it was."""
    path = own_disk / "q.db"
    ids = await enqueue(path)
    remount(own_disk, "ro")
    for place in (path, own_disk / "new.db"):
        with pytest.raises((BackendConnectionError, BackendFullError)) as caught:
            await TaskQueue(SQLiteBackend(place)).connect()
        assert str(place) in str(caught.value)
        assert isinstance(caught.value.__cause__, (OSError, sqlite3.Error))
        with pytest.raises((BackendConnectionError, BackendFullError)):
            await Worker(SQLiteBackend(place)).start()
    remount(own_disk, "rw")
    assert await Worker(SQLiteBackend(path)).drain() == len(ids)
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_worker_waits_out_a_disk_that_takes_no_writes(processes: Processes) -> None:
    """Every write of the worker's process fails, as it does once the kernel has given up a disk."""
    async with TaskQueue(SQLiteBackend(processes.database)) as queue:
        worker = processes.start("worker", lease=10.0)
        worker.wait_for("ready")
        _, most = resource.prlimit(worker.popen.pid, resource.RLIMIT_FSIZE)
        # The log of the test still fits in, no page of the database does.
        resource.prlimit(worker.popen.pid, resource.RLIMIT_FSIZE, (4000, most))
        ids = await queue.enqueue_many([call(programs.note, 0.0) for _ in range(5)])
        with anyio.fail_after(20):
            while "cannot reserve tasks" not in worker.stderr():  # noqa: ASYNC110 - a log
                await anyio.sleep(0.02)
        assert worker.lines("start") == []
        assert worker.popen.poll() is None
        resource.prlimit(worker.popen.pid, resource.RLIMIT_FSIZE, (most, most))
        for task_id in ids:
            assert await queue.get_result(task_id, timeout=20) is not None
        assert worker.finish() == 0
    assert "Traceback" not in worker.stderr()
    assert worker.stderr().count("cannot reserve tasks") == 1
    check_total(processes.database, set(ids), worker.lines("start"))


def cut(path: Path) -> None:
    os.truncate(path, 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write((b"Dear diary, I am no database.\n" * (size // 30 + 1))[:size])


def replace(path: Path) -> None:
    other = path.with_name("text")
    other.write_text("Dear diary, I am no database.\n" * 200)
    other.chmod(0o600)
    other.replace(path)


@pytest.mark.parametrize("harm", [cut, empty, overwrite, replace])
async def test_a_file_that_was_harmed_takes_no_more_and_is_never_made_over(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = tmp_path / "q.db"
    ids = await enqueue(path)
    queue = TaskQueue(SQLiteBackend(path))
    await queue.connect()
    harm(path)
    with pytest.raises((BackendFormatError, BackendConnectionError), match=r"q\.db"):
        await queue.enqueue(note, 1)
    with pytest.raises((BackendFormatError, BackendConnectionError), match=r"q\.db"):
        await queue.get_task(ids[-1])
    await queue.close()
    harmed = path.read_bytes()
    with pytest.raises(BackendFormatError, match="left as it is"):
        await queue.connect()
    assert path.read_bytes() == harmed


@pytest.mark.parametrize("harm", [cut, empty, replace])
async def test_a_file_that_was_harmed_under_pages_in_memory_takes_no_more(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """SQLite goes on with the pages that it remembers, and would acknowledge into a ruin."""
    path = tmp_path / "q.db"
    await enqueue(path)
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(note, 1)
        harm(path)
        for _ in range(3):
            with pytest.raises((BackendFormatError, BackendConnectionError), match=r"q\.db"):
                await queue.enqueue(note, 2)
            with pytest.raises((BackendFormatError, BackendConnectionError), match=r"q\.db"):
                await queue.get_task(task_id)


async def test_a_file_may_be_vacuumed_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        await queue.enqueue_many([call(note, number) for number in range(1000)])
        await Worker(SQLiteBackend(path)).drain()
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            await queue.enqueue(note, 1)
            size = path.stat().st_size
            assert await queue.prune(0) == 1000
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size < size
        await queue.enqueue(note, 2)
        assert await Worker(SQLiteBackend(path)).drain() == 2


async def test_nothing_more_is_acknowledged_once_the_log_was_removed(tmp_path: Path) -> None:
    """SQLite itself goes on, and writes into a file that nobody else can see."""
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        task_id = await queue.enqueue(note, 1)
        path.with_name("q.db-wal").unlink()
        with pytest.raises(BackendConnectionError, match=r"q\.db-wal has disappeared"):
            await queue.enqueue(note, 2)
        with pytest.raises(BackendConnectionError, match=r"q\.db-wal has disappeared"):
            await queue.get_task(task_id)
    # The last user of the file wrote its log back, so what was acknowledged is there.
    async with TaskQueue(SQLiteBackend(path)) as queue:
        assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
        assert await Worker(SQLiteBackend(path)).drain() == 1


async def test_a_new_store_that_lost_its_log_in_a_crash_is_not_made_anew(
    processes: Processes,
) -> None:
    """All of it was still in the log: there is nothing left to save, and it says so."""
    dead = processes.start("enqueuer", point("die", "committed", _sql._INSERT_COLUMNS))
    dead.wait_for("broken")
    assert dead.popen.wait(20) == 9
    processes.database.with_name("q.db-wal").unlink()
    with pytest.raises(BackendFormatError, match="was a store of sitq's and is empty now"):
        await TaskQueue(SQLiteBackend(processes.database)).connect()


async def test_an_old_store_that_lost_its_log_in_a_crash_is_as_it_was_before(
    processes: Processes,
) -> None:
    """SQLite cannot tell: what stood only in the log is gone, the rest is whole."""
    before = await enqueue(processes.database)
    dead = processes.start("enqueuer", point("die", "committed", _sql._INSERT_COLUMNS))
    dead.wait_for("broken")
    assert dead.popen.wait(20) == 9
    processes.database.with_name("q.db-wal").unlink()
    async with TaskQueue(SQLiteBackend(processes.database)) as queue:
        assert query(processes.database, "PRAGMA integrity_check") == [("ok",)]
        found = query(processes.database, "SELECT id FROM tasks ORDER BY seq")
        assert found == [(task_id,) for task_id in before]
        assert await Worker(SQLiteBackend(processes.database)).drain() == len(before)
        assert (await queue.get_task(before[0])).status is TaskStatus.SUCCESS


async def test_a_second_backend_of_a_process_leaves_the_locks_of_the_first_alone(
    processes: Processes,
) -> None:
    """POSIX locks end when any descriptor of the file is closed, by whoever in the process.

    A process that then took itself for the last one would remove the log that is in use.
    """
    first, second = SQLiteBackend(processes.database), SQLiteBackend(processes.database)
    async with TaskQueue(first) as queue, TaskQueue(second):
        await queue.enqueue(note, 1)
        log = processes.database.with_name("q.db-wal")
        before = log.stat().st_ino
        assert processes.start("enqueuer").popen.wait(20) == 0
        assert log.stat().st_ino == before
        await queue.enqueue(note, 2)
        counting = [sys.executable, "-c", COUNT, str(processes.database)]
        assert (await anyio.run_process(counting)).stdout.strip() == b"5"


COUNT = """
import sqlite3, sys
print(*sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM tasks").fetchone())
"""
