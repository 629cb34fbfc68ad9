"""What was acknowledged is on the disk; what need not be does not wait for it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest

from sitq import SQLiteBackend, UnknownOutcomeError
from sitq.backends.sqlite import _durability
from sitq.models import Outcome
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio


class Disk:
    """Keeps, at each flush of the log, what a power cut would leave from then on."""

    def __init__(self, path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._copy = copy
        self._fdatasync = os.fdatasync
        self.flushes = 0
        self.fails = False
        monkeypatch.setattr(os, "fdatasync", self._flush)

    def _flush(self, file: int) -> None:
        if self.fails:
            raise OSError(errno.EIO, "the disk is gone")
        self._fdatasync(file)
        # The file before its log: a checkpoint in between leaves the log as it is.
        for end in ("", "-wal"):
            shutil.copy(f"{self._path}{end}", f"{self._copy}{self.flushes + 1}{end}")
        self.flushes += 1

    def ids(self) -> set[str]:
        """The tasks that are there after the power has come back."""
        with closing(sqlite3.connect(f"{self._copy}{self.flushes}")) as connection:
            return {row[0] for row in connection.execute("SELECT id FROM tasks")}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path / "q.db", tmp_path / "left-", monkeypatch)


async def test_a_task_is_on_the_disk_when_enqueue_returns(tmp_path: Path, disk: Disk) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()

    async def caller() -> None:
        for count in (1, 3, 1):
            ids = await backend.enqueue([some_task() for _ in range(count)])
            assert disk.ids().issuperset(ids)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(caller)
    await backend.close()


async def test_the_holder_of_a_key_is_on_the_disk_before_its_id_is_returned(
    tmp_path: Path, disk: Disk
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    (holder,) = await backend.enqueue([some_task(unique_key="key")])
    flushes = disk.flushes
    assert await backend.enqueue([some_task(unique_key="key")]) == [holder]
    assert disk.flushes > flushes
    await backend.close()


async def test_a_reservation_waits_for_no_disk_and_is_on_it_after_the_next_sweep(
    tmp_path: Path, disk: Disk
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    await backend.enqueue([some_task(), some_task()])
    before = disk.flushes
    await backend.reserve("w", ["default"], 1, 30.0)
    assert disk.flushes == before
    await backend.sweep(3)
    assert disk.flushes == before + 1
    await backend.sweep(3)
    assert disk.flushes == before + 1  # there is nothing new
    await backend.reserve("w", ["default"], 1, 30.0)
    await backend.close()
    assert disk.flushes == before + 2


async def test_an_outcome_takes_the_reservation_before_it_to_the_disk(
    tmp_path: Path, disk: Disk
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    await backend.enqueue([some_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    before = disk.flushes
    assert await backend.finish([Outcome.success(task.lease, b"\xc0")]) == [True]
    await backend.sweep(3)
    await backend.close()
    assert disk.flushes == before  # SQLite's own flush was enough


async def test_normal_leaves_all_to_sqlite(tmp_path: Path, disk: Disk) -> None:
    backend = SQLiteBackend(tmp_path / "q.db", synchronous="NORMAL")
    await backend.open()
    await backend.enqueue([some_task()])
    await backend.reserve("w", ["default"], 1, 30.0)
    await backend.sweep(3)
    await backend.close()
    assert disk.flushes == 0


@contextmanager
def read(path: Path) -> Iterator[sqlite3.Connection]:
    """Read for a long time: the log cannot be emptied meanwhile."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tasks").fetchone()
        yield reader


async def test_what_the_disk_refuses_is_said_to_be_unknown(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_durability, "FLUSH_SECONDS", 0.05)
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    disk.fails = True
    with (
        read(tmp_path / "q.db"),
        pytest.raises(UnknownOutcomeError, match=r"enqueue on .*unknown: .*the log is in use"),
    ):
        await backend.enqueue([some_task()])
    # It is there, and a caller who trusts the error does not store it again.
    assert len((await backend.reserve("w", ["default"], 1, 30.0)).tasks) == 1
    assert await backend.sweep(3) == (0, 0, 0)
    disk.fails = False
    await backend.close()


async def test_a_flush_that_failed_is_made_up_for_by_emptying_the_log(
    tmp_path: Path, disk: Disk
) -> None:
    """What the disk refused once, it may have forgotten: the next flush says nothing of it."""
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    for _ in range(20):
        await backend.enqueue([some_task()])
    disk.fails = True
    (task_id,) = await backend.enqueue([some_task()])
    assert (tmp_path / "q.db-wal").stat().st_size == 0
    shutil.copy(path, tmp_path / "alone.db")
    with closing(sqlite3.connect(tmp_path / "alone.db")) as connection:
        assert (task_id,) in connection.execute("SELECT id FROM tasks").fetchall()
    await backend.close()


async def test_nothing_is_acknowledged_on_top_of_a_flush_that_failed(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what SQLite has flushed itself: in a gap of the log it would be lost as well."""
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    with read(path), monkeypatch.context() as patch:
        patch.setattr(_durability, "FLUSH_SECONDS", 0.05)
        disk.fails = True
        with pytest.raises(UnknownOutcomeError):
            await backend.enqueue([some_task()])
        disk.fails = False
        with pytest.raises(UnknownOutcomeError, match="finish on .*the log is in use"):
            await backend.finish([Outcome.success(task.lease, b"\xc0")])
        # A reservation need not survive a power cut, and so it waits for nothing.
        assert len((await backend.reserve("w", ["default"], 1, 30.0)).tasks) == 1
    (task_id,) = await backend.enqueue([some_task()])
    assert (await backend.get_tasks([task_id]))[0] is not None
    assert (tmp_path / "q.db-wal").stat().st_size == 0
    await backend.close()
