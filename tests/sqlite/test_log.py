"""The write-ahead log is short again once a long reader has gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sitq import SQLiteBackend
from sitq.backends.sqlite import _file
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio

LIMIT = 200_000


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_file, "LOG_LIMIT", LIMIT)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read for a long time, as a backup or a report may."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tasks").fetchone()
        yield


async def grow(backend: SQLiteBackend, batches: int = 30) -> None:
    """Have the log grow well past the limit."""
    for _ in range(batches):
        await backend.enqueue([some_task(headers={"k": "v" * 1000}) for _ in range(30)])


def size(path: Path) -> int:
    return path.with_name("q.db-wal").stat().st_size


async def test_a_sweep_empties_the_log_when_a_long_reader_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    with reading(path):
        await grow(backend)
        before = size(path)
        assert before > 4 * LIMIT
        assert await backend.sweep(3) == (0, 0, 0)
        assert size(path) == before  # the reader may still need it
    await backend.sweep(3)
    assert size(path) == 0
    await backend.enqueue([some_task()])
    assert len((await backend.reserve("w", ["default"], 2000, 30.0)).tasks) == 902
    await backend.close()


async def test_without_a_worker_the_next_writes_make_the_log_short(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    with reading(path):
        await grow(backend, 80)
        assert size(path) > 1000 * 4096  # SQLite itself tries to copy it from here on
    for _ in range(3):  # the first copies it into the file, the next begins it anew
        await backend.enqueue([some_task()])
    assert size(path) <= LIMIT
    await backend.close()


async def test_a_short_log_is_left_to_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    before = size(path)
    assert 0 < before < LIMIT
    await backend.sweep(3)
    assert size(path) == before
    await backend.close()
