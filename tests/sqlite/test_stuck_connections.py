"""A connection that was left within a transaction is usable again, and locks nobody out."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from sitq import SQLiteBackend, TaskQueue
from sitq.errors import BackendError
from sitq.models import LeaseState
from tests.sqlite.failing import Failing
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio

When = Literal["before", "after"]
MOMENTS: list[tuple[str, When]] = [
    ("BEGIN", "after"),
    ("INSERT", "before"),
    ("INSERT", "after"),
    ("COMMIT", "before"),
]
ERRORS = [MemoryError(), KeyboardInterrupt(), sqlite3.OperationalError("disk I/O error")]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    return Failing(monkeypatch)


def others_can_write(path: Path) -> bool:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    return True


def stored(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM tasks").fetchone()[0]
        return count


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("text", "when"), MOMENTS)
async def test_a_transaction_that_was_broken_off_is_rolled_back_at_once(
    tmp_path: Path, failing: Failing, text: str, when: When, error: BaseException
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    with failing.at(text, when, error), pytest.raises((type(error), BackendError)):
        await backend.enqueue([some_task()])
    assert failing.raised == 1
    assert others_can_write(path)
    assert stored(path) == 0
    assert len(await backend.enqueue([some_task()])) == 1
    assert stored(path) == 1
    await backend.close()


@pytest.mark.parametrize("times", [1, 2, 100])
async def test_a_connection_that_cannot_be_rolled_back_is_replaced(
    tmp_path: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    task = some_task()
    await backend.enqueue([task])
    with failing.at("ROLLBACK", "before", MemoryError(), times):
        with pytest.raises(BackendError):
            await backend.enqueue([task])  # its id is taken, so that the transaction fails
        assert failing.raised == min(times, 3)
        assert others_can_write(path)
    assert len(await backend.enqueue([some_task()])) == 1
    # The flushes go on as before.
    assert len((await backend.reserve("w", ["default"], 9, 30.0)).tasks) == 2
    await backend.close()


async def test_a_private_database_is_never_replaced(failing: Failing) -> None:
    backend = SQLiteBackend(":memory:")
    await backend.open()
    task = some_task()
    await backend.enqueue([task])
    with failing.at("ROLLBACK", "before", MemoryError(), 4):
        with pytest.raises(BackendError):
            await backend.enqueue([task])
    await backend.enqueue([some_task()])
    assert len((await backend.reserve("w", ["default"], 9, 30.0)).tasks) == 2
    await backend.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("text", "when"), [("BEGIN", "after"), ("COMMIT", "before")])
async def test_a_heartbeat_that_was_broken_off_holds_no_lock(
    tmp_path: Path, failing: Failing, text: str, when: When, error: BaseException
) -> None:
    path = tmp_path / "q.db"
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.enqueue([some_task()])
    (task,) = (await backend.reserve("w", ["default"], 1, 30.0)).tasks
    keeper = backend.lease_keeper()
    with failing.at(text, when, error), pytest.raises((type(error), BackendError)):
        keeper.renew([task.lease], 30.0)
    assert others_can_write(path)
    assert keeper.renew([task.lease], 30.0) == [LeaseState.HELD]
    keeper.close()
    await backend.close()


async def test_a_read_that_was_broken_off_gets_a_new_connection(
    tmp_path: Path, failing: Failing
) -> None:
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    (task_id,) = await backend.enqueue([some_task()])
    assert (await backend.get_tasks([task_id]))[0] is not None
    with (
        failing.at("SELECT tasks.id", "after", MemoryError()),
        pytest.raises(MemoryError),
    ):
        await backend.get_tasks([task_id])
    assert (await backend.get_tasks([task_id]))[0] is not None
    await backend.close()


@pytest.mark.parametrize(("text", "when"), [("BEGIN", "after"), ("INSERT", "after")])
@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
async def test_a_connection_of_the_users_is_left_as_it_was(
    tmp_path: Path, failing: Failing, text: str, when: When, error: BaseException
) -> None:
    path = tmp_path / "q.db"
    async with TaskQueue(SQLiteBackend(path)) as queue:
        with closing(sqlite3.connect(path, factory=failing.factory)) as own:
            own.execute("CREATE TABLE orders (number)")
            with failing.at(text, when, error), pytest.raises(type(error)):
                await queue.bind(own).enqueue(nothing)
            if text == "BEGIN":
                assert not own.in_transaction
            own.execute("INSERT INTO orders VALUES (1)")
            with failing.at("RELEASE", "before", error), pytest.raises(type(error)):
                await queue.bind(own).enqueue(nothing)
            own.commit()
            assert own.execute("SELECT count(*) FROM orders").fetchone() == (1,)
        assert stored(path) == 0


def nothing() -> None:
    """Do nothing."""
