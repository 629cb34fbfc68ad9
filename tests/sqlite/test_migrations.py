"""The schema: what the migrations make, once, and what a failed one leaves."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend, _schema
from sitq.errors import BackendError
from tests.sqlite.samples import make_store

pytestmark = pytest.mark.anyio


async def test_the_schema_is_that_of_the_migrations(tmp_path: Path) -> None:
    await make_store(tmp_path / "q.db")
    statement = "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
    with (
        closing(sqlite3.connect(tmp_path / "q.db")) as stored,
        closing(sqlite3.connect(":memory:")) as replayed,
    ):
        for _, script in _schema.migrations():
            replayed.executescript(script)
        assert stored.execute(statement).fetchall() == replayed.execute(statement).fetchall() != []


async def test_an_older_store_is_migrated_once_while_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    later = (*_schema.migrations(), (2, "ALTER TABLE leases ADD COLUMN colour TEXT;"))
    monkeypatch.setattr(_schema, "migrations", lambda: later)
    errors: list[BaseException] = []
    barrier = threading.Barrier(8)

    def migrate() -> None:
        try:
            with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
                barrier.wait()
                _schema.migrate(connection, str(path))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    backend = SQLiteBackend(path)
    await backend.open()
    assert len((await backend.reserve("w", ["default"], 5, 30.0)).tasks) == 1
    await backend.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(leases)")]
        assert columns.count("colour") == 1


async def test_a_failed_migration_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    broken = (2, "ALTER TABLE leases ADD COLUMN colour TEXT; CREATE TABLE tasks (x);")
    later = (*_schema.migrations(), broken)
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "migrations", lambda: later)
        with pytest.raises(BackendError, match="already exists"):
            await SQLiteBackend(path).open()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(leases)")]
        assert "colour" not in columns
