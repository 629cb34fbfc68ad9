"""The schema: what the migrations make, once, and what a failed one leaves."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from sitq.backends.sqlite import SQLiteBackend, _schema
from sitq.errors import BackendError
from sitq.ids import new_task_id
from tests.migrated_keys import check_keys
from tests.migrated_states import OLD_TASKS, check_states
from tests.sqlite.samples import make_store

pytestmark = pytest.mark.anyio

LATEST = _schema.migrations()[-1][0]


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
    later = (*_schema.migrations(), (LATEST + 1, "ALTER TABLE leases ADD COLUMN colour TEXT;"))
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
        assert connection.execute("PRAGMA user_version").fetchone() == (LATEST + 1,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(leases)")]
        assert columns.count("colour") == 1


async def test_a_failed_migration_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    await make_store(path)
    broken = (LATEST + 1, "ALTER TABLE leases ADD COLUMN colour TEXT; CREATE TABLE tasks (x);")
    later = (*_schema.migrations(), broken)
    with monkeypatch.context() as patch:
        patch.setattr(_schema, "migrations", lambda: later)
        with pytest.raises(BackendError, match="already exists"):
            await SQLiteBackend(path).open()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (LATEST,)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(leases)")]
        assert "colour" not in columns


async def test_a_file_of_the_first_format_keeps_its_tasks_and_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    waits, runs, asked, ended = old = [new_task_id() for _ in range(4)]
    rows = [
        {"id": waits, "status": "pending", "epoch": 0, "end": None},
        {"id": runs, "status": "in_progress", "epoch": 1, "end": None},
        {"id": asked, "status": "in_progress", "epoch": 1, "end": None},
        {"id": ended, "status": "failed", "epoch": 1, "end": 1},
    ]
    with monkeypatch.context() as patch, closing(sqlite3.connect(path)) as connection:
        first = _schema.migrations()[:1]
        patch.setattr(_schema, "migrations", lambda: first)
        _schema.migrate(connection, str(path))
        connection.executemany(
            "INSERT INTO tasks (id, status, queue, priority, eta, function, epoch, attempts,"
            " finished_at, delete_at, unique_key, result_ttl, enqueued_at, payload)"
            " VALUES (:id, :status, 'default', 0, 1, 'm:f', :epoch, :epoch, :end,"
            " :end + 9000000000000000, :id, 3600000000, 1, x'90')",
            rows,
        )
        connection.execute(
            "INSERT INTO leases SELECT seq, 1, 'w', 9000000000000000, id = ?, NULL FROM tasks"
            " WHERE status = 'in_progress'",
            (asked,),
        )
        connection.commit()
    path.chmod(0o600)
    await check_keys(SQLiteBackend(path), *old)


INSERT_OLD = """
    INSERT INTO tasks (id, status, queue, priority, eta, function, epoch, attempts, started_at,
                       finished_at, delete_at, result_ttl, enqueued_at, payload, value, error)
    VALUES (:id, :status, 'default', 0, :eta, 'm:f', :epoch, :epoch, :started, :end,
            :end + 1000000000000, 3600000000, 1, x'90', :value, :error)
"""


@pytest.mark.parametrize("number", [1, 2])
async def test_a_file_of_an_older_format_keeps_all_tasks_and_is_administered(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    now = time.time_ns() // 1000
    with monkeypatch.context() as patch, closing(sqlite3.connect(path)) as connection:
        old_format = _schema.migrations()[:number]
        patch.setattr(_schema, "migrations", lambda: old_format)
        _schema.migrate(connection, str(path))
        for old in OLD_TASKS:
            values = old._asdict() | {
                "id": old.id,
                "eta": now + 3600 * 10**6 if old.scheduled else 1,
                "started": 1 if old.epoch else None,
                "end": now if old.is_final else None,
            }
            connection.execute(INSERT_OLD, values)
        connection.execute(
            "INSERT INTO leases SELECT seq, epoch, 'old', 9000000000000000, 0, NULL FROM tasks"
            " WHERE status = 'in_progress'"
        )
        connection.commit()
    path.chmod(0o600)
    await check_states(SQLiteBackend(path))
    await make_store(tmp_path / "new.db")
    assert schema_of(path) == schema_of(tmp_path / "new.db")


def schema_of(path: Path) -> list[tuple[str, str]]:
    statement = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()
