"""The database file: private, recognised, refused, migrated, and never made over."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sitq.backends.sqlite import SQLiteBackend
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.errors import (
    BackendConnectionError,
    BackendError,
    BackendFormatError,
    BackendFullError,
    UsageError,
    ValidationError,
)
from tests.sqlite.samples import make_store, some_task

pytestmark = pytest.mark.anyio


async def refused(path: Path, kind: type[BackendError], text: str) -> None:
    """Opening is refused with an error of that kind, and the file keeps every byte."""
    before = path.read_bytes()
    with pytest.raises(kind, match=text) as caught:
        await SQLiteBackend(path).open()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


async def test_all_files_are_private(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    await backend.enqueue([some_task()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    await backend.close()
    assert modes == dict.fromkeys(["q.db", "q.db-wal", "q.db-shm", "q.db-bell"], 0o600)


async def test_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    path.write_text("Dear diary, today I was mistaken for a database.\n" * 100)
    path.chmod(0o600)
    await refused(path, BackendFormatError, "not an SQLite database")


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE birds (name)")
        connection.commit()
    await refused(path, BackendFormatError, "another program")


async def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")
        connection.commit()
    await refused(path, BackendFormatError, "newer sitq")


async def test_a_store_without_its_tables_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE leases")
        connection.execute("DROP TABLE tasks")
        connection.commit()
    await refused(path, BackendFormatError, "lost its tables")


@pytest.mark.parametrize("keep", [0, 50, 4096, -4096])
async def test_a_truncated_store_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "q.db"
    await make_store(path, tasks=50)
    os.truncate(path, keep if keep >= 0 else path.stat().st_size + keep)
    await refused(path, BackendFormatError, "empty now|cut short")


async def test_an_empty_file_without_a_past_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    path.touch(mode=0o600)
    await make_store(path)
    assert path.read_bytes().startswith(b"SQLite format 3")


async def test_a_removed_store_may_be_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    path.unlink()
    await make_store(path)


async def test_the_log_of_a_store_that_was_moved_away_is_kept(tmp_path: Path) -> None:
    """A new store is made without it, and who moved the old one can put both together again."""
    path, log = tmp_path / "q.db", tmp_path / "q.db-wal"
    log.write_bytes(b"all that was acknowledged last")
    path.with_name("q.db-shm").write_bytes(b"\0" * 32768)
    await make_store(path)
    assert path.with_name("q.db-wal-left").read_bytes() == b"all that was acknowledged last"
    assert not log.exists()


async def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    await make_store(tmp_path / "real.db")
    link = tmp_path / "q.db"
    link.symlink_to("real.db")
    await refused(link, BackendConnectionError, "symbolic link")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
async def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    path.chmod(mode)
    await refused(path, BackendConnectionError, "other users")


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendConnectionError, match="not a plain file"):
        await SQLiteBackend(tmp_path).open()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendConnectionError, match="does its folder exist"):
        await SQLiteBackend(tmp_path / "nowhere" / "q.db").open()


@pytest.mark.parametrize("path", [b"q.db", "", None, 7, "a\0b"])
def test_a_path_must_be_text(path: Any) -> None:
    with pytest.raises(ValidationError, match="path: .*got"):
        SQLiteBackend(path)


def test_synchronous_has_two_values() -> None:
    with pytest.raises(ValidationError, match="synchronous: .*got str"):
        SQLiteBackend("q.db", synchronous="OFF")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["50% off?.db", "a#b.db", "ü ä.db", "two  spaces.db"])
async def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    await make_store(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 0
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}-bell"}


@pytest.mark.parametrize(("level", "expected"), [("FULL", 2), ("NORMAL", 1)])
async def test_synchronous_is_what_was_asked_for(tmp_path: Path, level: Any, expected: int) -> None:
    backend = SQLiteBackend(tmp_path / "q.db", synchronous=level)
    await backend.open()
    state = backend._open_counter._open
    assert state is not None

    def written_with(work: SQLiteTransaction, _: list[None]) -> list[tuple[int, str]]:
        (level,) = work.execute("PRAGMA synchronous").fetchone()
        (mode,) = work.execute("PRAGMA journal_mode").fetchone()
        return [(level, mode)]

    answers: list[tuple[int, str]] = await state.database.write(written_with, [None])
    ((found, mode),) = answers
    await backend.close()
    assert (found, mode) == (expected, "wal")


async def test_a_removed_file_takes_no_more_tasks(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    path.unlink()
    with pytest.raises(BackendConnectionError, match="enqueue on .*disappeared|has disappeared"):
        await backend.enqueue([some_task()])
    await backend.close()


async def test_no_task_goes_to_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    path.rename(tmp_path / "old.db")
    await make_store(path)
    (task_id,) = await backend.enqueue([some_task()])
    await backend.close()
    with closing(sqlite3.connect(path)) as connection:
        assert (task_id,) in connection.execute("SELECT id FROM tasks").fetchall()


async def test_a_full_database_is_a_typed_error_and_heals(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    state = backend._open_counter._open
    assert state is not None

    async def limit_pages(pages: int) -> int:
        """Have the connection that writes use so many pages at most; it tells how many it has."""

        def unit(work: SQLiteTransaction, _: list[None]) -> list[int]:
            work.execute(f"PRAGMA max_page_count = {pages}")
            return list(work.execute("PRAGMA page_count").fetchone())

        return (await state.database.write(unit, [None]))[0]

    await limit_pages(await limit_pages(100_000))
    with pytest.raises(BackendFullError, match="enqueue on .*full"):
        await backend.enqueue([some_task(headers={"k": "v" * 5000}) for _ in range(10)])
    await limit_pages(100_000)
    assert len(await backend.enqueue([some_task()])) == 1
    assert (await backend.reserve("w", ["default"], 100, 30.0)).wait is None
    await backend.close()


async def test_one_instance_serves_one_loop_at_a_time(
    tmp_path: Path, anyio_backend_name: str
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    errors: list[BaseException] = []

    def elsewhere() -> None:
        import anyio

        for operation in (backend.open, lambda: backend.enqueue([some_task()])):
            try:
                anyio.run(operation, backend=anyio_backend_name)
            except UsageError as error:
                errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(errors) == 2
    assert all("another event loop" in str(error) for error in errors)
    await backend.close()


def test_an_instance_left_open_by_a_loop_that_ended_opens_again(tmp_path: Path) -> None:
    import anyio

    backend = SQLiteBackend(tmp_path / "q.db")

    async def forgetful() -> int:
        await backend.open()
        await backend.enqueue([some_task()])
        return len((await backend.reserve("w", ["default"], 10, 30.0)).tasks)

    assert [anyio.run(forgetful, backend=loop) for loop in ("asyncio", "trio", "asyncio")] == [
        1,
        1,
        1,
    ]


async def test_a_closed_backend_says_how_to_open_it(tmp_path: Path) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    with pytest.raises(UsageError, match="not open"):
        await backend.enqueue([some_task()])
    with pytest.raises(UsageError, match="not open"):
        backend.lease_keeper()


def test_a_forked_child_has_to_make_its_own(tmp_path: Path) -> None:
    script = f"""
import anyio, os
from sitq.backends.sqlite import SQLiteBackend
from sitq.errors import UsageError
async def main():
    backend = SQLiteBackend({str(tmp_path / "q.db")!r})
    await backend.open()
    child = os.fork()
    if child == 0:
        try:
            await backend.get_tasks([])
        except UsageError as error:
            os._exit(7 if "fork" in str(error) else 1)
        os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    await backend.close()
anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "7"
