"""A file that is replaced or removed under its users: they go over to the store that comes next."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import anyio
import pytest

from sitq import (
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    SQLiteBackend,
    TaskId,
    TaskQueue,
    TaskStatus,
    Worker,
)
from sitq.models import LeaseState
from tests.sqlite.samples import make_store, some_task

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


async def note(number: int) -> int:
    return number


def back_up(path: Path, copy: Path) -> None:
    """Copy a store as SQLite's documentation says."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.chmod(0o600)


def remove(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-bell"):
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)


def ids(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {row[0] for row in connection.execute("SELECT id FROM tasks")}


async def enqueue(queue: TaskQueue, number: int) -> TaskId[int]:
    """Enqueue as soon as there is a store; no try takes long."""
    with anyio.fail_after(PATIENCE):
        while True:
            with anyio.fail_after(5), suppress(BackendError):
                return await queue.enqueue(note, number)
            await anyio.sleep(0.01)


@pytest.mark.parametrize("tidy", [True, False])
async def test_a_worker_goes_on_with_a_backup_that_was_put_in_place(
    tmp_path: Path, tidy: bool
) -> None:
    path, copy = tmp_path / "q.db", tmp_path / "backup"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        kept = [await queue.enqueue(note, number) for number in range(3)]
        back_up(path, copy)
        async with anyio.create_task_group() as group:
            worker = Worker(SQLiteBackend(path), poll_interval=0.05)
            await group.start(worker.start)
            for task_id in kept:
                assert await queue.get_result(task_id, timeout=PATIENCE) is not None
            if tidy:
                remove(path)
            copy.replace(path)
            new = await enqueue(queue, 4)
            # In the backup the old ones have not run yet.
            for task_id in [*kept, new]:
                result = await queue.get_result(task_id, timeout=PATIENCE)
                assert result is not None
                assert result.status is TaskStatus.SUCCESS
            await worker.stop()
    assert ids(path) == {*kept, new}


async def test_a_worker_waits_until_a_removed_store_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue, anyio.create_task_group() as group:
        await queue.enqueue(note, 1)
        worker = Worker(SQLiteBackend(path), poll_interval=0.05)
        await group.start(worker.start)
        remove(path)
        with anyio.fail_after(5), pytest.raises(BackendConnectionError, match="disappeared"):
            await queue.enqueue(note, 2)
        assert not path.exists()  # nobody but a fresh opening makes it
        async with TaskQueue(SQLiteBackend(path)) as other:
            task_id = await other.enqueue(note, 3)
            assert await other.get_result(task_id, timeout=PATIENCE) is not None
            task_id = await enqueue(queue, 4)
            assert await other.get_result(task_id, timeout=PATIENCE) is not None
        await worker.stop()
    assert task_id in ids(path)


async def test_a_late_close_leaves_the_log_of_the_next_store_alone(tmp_path: Path) -> None:
    """SQLite's last connection to a file removes the log by its name, whosever it is by now."""
    path = tmp_path / "q.db"
    old, new = SQLiteBackend(path), SQLiteBackend(path)
    await old.open()
    (gone,) = await old.enqueue([some_task()])
    (task,) = (await old.reserve("w", ["default"], 1, 30.0)).tasks
    await old.get_tasks([gone])
    keeper = old.lease_keeper()
    keeper.renew([task.lease], 30.0)
    remove(path)
    await new.open()
    stored = await new.enqueue([some_task()])
    log = path.with_name("q.db-wal").stat().st_ino
    keeper.close()
    await old.close()
    assert path.with_name("q.db-wal").stat().st_ino == log
    stored += await new.enqueue([some_task()])
    await new.close()
    assert ids(path) == set(stored)


async def test_all_users_go_over_and_leave_the_log_of_the_old_store_behind(
    tmp_path: Path,
) -> None:
    """SQLite would take it for the new store's own, and damage that with what is in it."""
    path, other = tmp_path / "q.db", tmp_path / "other.db"
    await make_store(other)
    one, two = SQLiteBackend(path), SQLiteBackend(path)
    await one.open()
    await two.open()
    old = await one.enqueue([some_task() for _ in range(100)])
    path.rename(tmp_path / "old.db")
    other.replace(path)
    stored = []
    for backend in (one, two, one):
        stored += await backend.enqueue([some_task()])
        assert (await backend.get_tasks(stored[-1:]))[0] is not None
    await one.close()
    await two.close()
    assert ids(path) >= set(stored)
    assert len(ids(path)) == 4
    assert ids(tmp_path / "old.db") == set(old)  # nothing of it was only in the log


async def test_a_file_that_is_put_back_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    stored = await backend.enqueue([some_task()])
    path.rename(tmp_path / "old.db")
    path.write_text("This is no database.\n" * 500)
    path.chmod(0o600)
    for _ in range(2):
        with pytest.raises(BackendFormatError, match="not an SQLite database"):
            await backend.enqueue([some_task()])
    (tmp_path / "old.db").replace(path)
    stored += await backend.enqueue([some_task()])
    await backend.close()
    assert ids(path) == set(stored)


async def test_a_lease_keeper_goes_over_too(tmp_path: Path) -> None:
    path, copy = tmp_path / "q.db", tmp_path / "backup"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    keeper = backend.lease_keeper()
    assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
    back_up(path, copy)
    copy.replace(path)
    with pytest.raises(BackendConnectionError, match="replaced"):
        keeper.renew([task.lease], 30.0)
    await backend.enqueue([some_task()])
    assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
    keeper.close()
    await backend.close()


async def test_a_store_that_was_damaged_gives_way_to_a_backup(tmp_path: Path) -> None:
    path, copy = tmp_path / "q.db", tmp_path / "backup"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    back_up(path, copy)
    await backend.enqueue([some_task() for _ in range(50)])
    os.truncate(path.with_name("q.db-wal"), 4000)
    with pytest.raises(BackendConnectionError, match="cut short"):
        await backend.enqueue([some_task()])
    copy.replace(path)
    (task_id,) = await backend.enqueue([some_task()])
    await backend.close()
    assert len(ids(path)) == 2
    assert task_id in ids(path)
    assert (tmp_path / "q.db-wal-left").stat().st_size == 4000
