"""A row that another program has written breaks no list, no overview and no worker."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sitq import Admin, SQLiteBackend, TaskFilter, TaskQueue, Worker, task
from sitq.administration import WorkerReport, WorkerState

pytestmark = pytest.mark.anyio

FAR = 2**62


@task
async def fail() -> None:
    raise ValueError("no luck")


class Store:
    """A store, its clients, and the connection of another program."""

    def __init__(self, path: Path, admin: Admin, queue: TaskQueue) -> None:
        self.path, self.admin, self.queue = path, admin, queue

    def write(self, sql: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(sql, values)

    def insert(self, table: str, row: dict[str, Any]) -> None:
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self.write(f"INSERT INTO {table} ({names}) VALUES ({marks})", *row.values())


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    backend = SQLiteBackend(tmp_path / "q.db")
    async with Admin(backend) as admin, TaskQueue(backend) as queue:
        yield Store(tmp_path / "q.db", admin, queue)


def worker_row(**changes: Any) -> dict[str, Any]:
    now = time.time_ns() // 1000
    return {
        "id": "good",
        "host": "h",
        "pid": 1,
        "version": "1",
        "queues": '["default"]',
        "functions": "[]",
        "slots": 1,
        "running": 0,
        "state": "active",
        "lease": 30.0,
        "started_at": now,
        "seen_at": now,
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"queues": "{"},
        {"queues": "5"},
        {"queues": "[5]"},
        {"queues": '{"mail": 1}'},
        {"queues": "[" * 100_000},
        {"functions": "null"},
        {"state": "odd"},
        {"id": ""},
    ],
)
async def test_an_unreadable_worker_is_left_out(store: Store, changes: dict[str, Any]) -> None:
    store.insert("workers", worker_row(id="odd") | changes)
    store.insert("workers", worker_row())
    assert [worker.id for worker in await store.admin.list_workers()] == ["good"]
    view = await store.admin.overview()
    assert [worker.id for worker in view.workers] == ["good"]
    assert [queue.name for queue in view.queues] == ["default"]


@pytest.mark.parametrize("column", ["started_at", "seen_at"])
@pytest.mark.parametrize("moment", [FAR, -FAR])
async def test_a_worker_of_another_age_is_shown(store: Store, column: str, moment: int) -> None:
    store.insert("workers", worker_row(**{column: moment}))
    assert [worker.id for worker in await store.admin.list_workers()] == ["good"]


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "x" * 5000},
        {"paused_by": "x" * 5000},
        {"paused_at": FAR},
        {"paused_at": -FAR},
        {"until": FAR},
    ],
)
async def test_a_pause_is_shown_as_long_as_it_is_obeyed(
    store: Store, changes: dict[str, Any]
) -> None:
    row = {"queue": "default", "reason": "", "paused_by": "", "paused_at": 0, "until": None}
    store.insert("pauses", row | changes)
    store.insert("pauses", row | {"queue": "no queue"})
    assert [pause.queue for pause in await store.admin.list_pauses()] == ["default"]
    (queue,) = (await store.admin.overview()).queues
    assert queue.pause is not None
    assert await store.admin.resume_queue("default")
    assert await store.admin.list_pauses() == []


@pytest.mark.parametrize("ordered", ["odd", "", "lost"])
async def test_an_unknown_order_is_none(store: Store, ordered: str) -> None:
    store.insert("workers", worker_row(ordered=ordered))
    row = {"queue": "default", "reason": "", "paused_by": "", "paused_at": 0}
    store.insert("pauses", row)
    backend = SQLiteBackend(store.path)
    await backend.open()
    with closing(backend.lease_keeper()) as keeper:
        orders = keeper.report(
            WorkerReport(
                id="good",
                host="h",
                pid=1,
                version="1",
                queues=("default",),
                functions=(),
                slots=1,
                running=0,
                state=WorkerState.ACTIVE,
                lease=30.0,
                started_at=datetime.now(UTC),
            )
        )
    assert orders.state is WorkerState.ACTIVE
    assert orders.paused == {"default"}
    await backend.close()


async def test_an_attempt_of_another_age_is_shown(store: Store) -> None:
    task_id = await store.queue.enqueue(fail)
    await Worker(SQLiteBackend(store.path)).drain()
    row = {"seq": 1, "number": 2, "started_at": FAR, "ended_at": -FAR, "error": "E"}
    store.insert("attempts", row)
    assert [each.number for each in await store.admin.get_attempts(task_id)] == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        "enqueued_at = 4611686018427387904",
        "eta = -4611686018427387904",
        "retry_of = 'x'",
    ],
)
async def test_an_unreadable_task_is_left_out_of_lists(store: Store, change: str) -> None:
    ids = [await store.queue.enqueue(fail) for _ in range(3)]
    store.write(f"UPDATE tasks SET {change} WHERE id = ?", ids[1])
    for where in (TaskFilter(), TaskFilter(status="pending")):
        found, cursor = [], None
        for _ in range(4):
            page = await store.admin.list_tasks(where, limit=1, cursor=cursor)
            found += [info.task_id for info in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        assert cursor is None
        assert sorted(found) == [ids[0], ids[2]]
    assert (await store.admin.cancel_tasks(TaskFilter(status="pending"))).done == 2


@pytest.mark.parametrize(
    "change", ["retry = '{'", "headers = '['", "timeout = -1", "queue = 'no queue'"]
)
async def test_a_task_with_unreadable_options_is_not_retried(store: Store, change: str) -> None:
    ids = [await store.queue.enqueue(fail) for _ in range(3)]
    await Worker(SQLiteBackend(store.path)).drain()
    store.write(f"UPDATE tasks SET {change} WHERE id = ?", ids[1])
    result = await store.admin.retry_tasks(TaskFilter(status="failed"))
    assert (result.matched, result.done) == (3, 2)
    ((task_id, reason),) = result.skipped
    assert task_id == ids[1]
    assert "cannot be read" in reason
