"""Files that were swapped, cut or linked: nothing more is acknowledged, and nothing is harmed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sitq import BackendConnectionError, SQLiteBackend
from tests.sqlite.samples import make_store, some_task

pytestmark = pytest.mark.anyio


# -- the database ----------------------------------------------------------------------------


async def test_a_file_with_two_names_is_refused_by_either(tmp_path: Path) -> None:
    """Each name would have a log of its own, and would not see what is in the other's."""
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    await make_store(one)
    two.hardlink_to(one)
    for path in (one, two):
        with pytest.raises(BackendConnectionError, match=f"{path.name} has another name"):
            await SQLiteBackend(path).open()
    two.unlink()
    await make_store(one)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_the_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(BackendConnectionError, match="another user .uid 12345.; run this as its"):
        await SQLiteBackend(path).open()


# -- its log and index -----------------------------------------------------------------------


def remove_index(path: Path) -> None:
    path.with_name("q.db-shm").unlink()


def replace_index(path: Path) -> None:
    index = path.with_name("q.db-shm")
    shutil.copy(index, path.with_name("copy"))
    path.with_name("copy").replace(index)


def empty_log(path: Path) -> None:
    os.truncate(path.with_name("q.db-wal"), 0)


def cut_log(path: Path) -> None:
    log = path.with_name("q.db-wal")
    os.truncate(log, log.stat().st_size - 1)


def replace_log(path: Path) -> None:
    log = path.with_name("q.db-wal")
    shutil.copy(log, path.with_name("copy"))
    path.with_name("copy").replace(log)


@pytest.mark.parametrize("harm", [remove_index, replace_index, empty_log, cut_log, replace_log])
async def test_what_is_beside_the_file_is_watched_like_it(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    (task_id,) = await backend.enqueue([some_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    keeper = backend.lease_keeper()
    keeper.renew([task.lease], 30.0)
    harm(path)
    for _ in range(2):
        with pytest.raises(BackendConnectionError, match=r"q\.db-(wal|shm)"):
            await backend.enqueue([some_task()])
        with pytest.raises(BackendConnectionError, match=r"q\.db-(wal|shm)"):
            await backend.get_tasks([task_id])
        with pytest.raises(BackendConnectionError, match=r"q\.db-(wal|shm)"):
            keeper.renew([task.lease], 30.0)
    keeper.close()
    await backend.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_log_that_sqlite_has_emptied_is_in_order(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    for _ in range(3):
        await backend.enqueue([some_task() for _ in range(200)])
        with closing(sqlite3.connect(path)) as other:
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        assert path.with_name("q.db-wal").stat().st_size == 0
        await backend.enqueue([some_task()])
        assert (await backend.reserve("w", ["default"], 500, 30.0)).tasks
    await backend.close()


# -- the wake-up file ------------------------------------------------------------------------


def make_pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def make_second_name(path: Path, precious: Path) -> None:
    path.hardlink_to(precious)


def make_folder(path: Path, _: Path) -> None:
    path.mkdir()


STANDINS = [make_pipe, make_link, make_second_name, make_folder]


@pytest.mark.parametrize("stand_in", STANDINS)
async def test_without_a_safe_wake_up_file_news_is_found_by_polling(
    tmp_path: Path, stand_in: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path, precious = tmp_path / "q.db", tmp_path / "precious"
    await make_store(path)
    path.with_name("q.db-bell").unlink()
    precious.write_text("years of work")
    stand_in(path.with_name("q.db-bell"), precious)
    here, there = SQLiteBackend(path), SQLiteBackend(path)
    with anyio.fail_after(10):
        await here.open()
        assert caplog.text.count("cannot use the wake-up file") == 1
        await there.open()
        async with here.listen("tasks") as listener:
            await listener.wait()  # the first look cannot tell, so it says yes
            (task_id,) = await there.enqueue([some_task()])
            await listener.wait()
        await there.cancel(task_id)
        await here.close()
        await there.close()
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("stand_in", STANDINS)
async def test_a_wake_up_file_that_is_swapped_blocks_no_process(
    tmp_path: Path, stand_in: Callable[[Path, Path], None]
) -> None:
    path, precious = tmp_path / "q.db", tmp_path / "precious"
    precious.write_text("years of work")
    backend = SQLiteBackend(path)
    await backend.open()
    (task_id,) = await backend.enqueue([some_task()])
    path.with_name("q.db-bell").unlink()
    stand_in(path.with_name("q.db-bell"), precious)
    with anyio.fail_after(10):
        await backend.reserve("w", ["default"], 1, 30.0)
        assert await backend.cancel(task_id)  # which is told by opening and closing the file
        async with backend.listen("cancels"):
            await backend.enqueue([some_task()])
        await backend.close()
    assert precious.read_text() == "years of work"
