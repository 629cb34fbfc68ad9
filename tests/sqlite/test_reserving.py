"""A reservation reads tasks as one text, and of many queues no more than it needs."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sitq import ReservedTask, SQLiteBackend, Task
from sitq.backends.sqlite import _sql
from sitq.backends.sqlite._operations import SQLiteTransaction
from sitq.ids import new_task_id

pytestmark = pytest.mark.anyio

PAST = datetime(2020, 1, 1, tzinfo=UTC)


async def reserve_all(
    path: Path, tasks: list[Task], queues: list[str], limit: int
) -> list[ReservedTask]:
    """Store tasks and reserve them, so many at a time."""
    backend = SQLiteBackend(path)
    await backend.open()
    try:
        await backend.enqueue(tasks)
        found: list[ReservedTask] = []
        while reserved := (await backend.reserve("worker", queues, limit, 30.0)).tasks:
            found += reserved
        return found
    finally:
        await backend.close()


@pytest.mark.parametrize("queues", [["default"], ["default", "other"]])
async def test_payloads_of_any_size_come_back(tmp_path: Path, queues: list[str]) -> None:
    payloads = [random.randbytes(size) for size in (0, 1, 4096, 4097, 300_000)]
    tasks = [Task(id=new_task_id(), function="m:f", payload=payload) for payload in payloads]
    found = await reserve_all(tmp_path / "q.db", tasks, queues, 3)
    assert [task.payload for task in found] == payloads


async def test_a_timeout_and_texts_of_all_kinds_come_back_exactly(tmp_path: Path) -> None:
    headers = {"quote": '"\\', "line": "a\nb", "letters": "ä\U0001f600"}
    options = [
        {"timeout": 0.1 + 0.2},
        {"timeout": 1e-300},
        {"timeout": 315_360_000.0, "headers": headers},
        {"headers": headers},
    ]
    tasks = [
        Task(id=new_task_id(), function="m:<locals>.f\u2028", payload=b"", **each)  # type: ignore[arg-type]
        for each in options
    ]
    found = await reserve_all(tmp_path / "q.db", tasks, ["default"], 10)
    assert [task.timeout for task in found] == [task.timeout for task in tasks]
    assert [dict(task.headers) for task in found] == [dict(task.headers) for task in tasks]
    assert {task.function for task in found} == {"m:<locals>.f\u2028"}


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_tasks_of_many_queues_come_by_eta_and_insertion(tmp_path: Path, limit: int) -> None:
    """Also where many share an eta, and one queue has nearly all that come first."""
    queues = [f"q{number}" for number in range(6)]
    drawn = random.Random(limit)
    tasks = [
        Task(
            id=new_task_id(),
            function="m:f",
            payload=b"",
            queue=queues[0] if number < 60 else drawn.choice(queues),
            eta=PAST + timedelta(seconds=drawn.randrange(3) + number // 60),
        )
        for number in range(200)
    ]
    found = await reserve_all(tmp_path / "q.db", tasks, queues, limit)
    expected = sorted(enumerate(tasks), key=lambda each: (each[1].eta, each[0]))
    assert [task.id for task in found] == [task.id for _, task in expected]


async def test_a_reservation_among_many_queues_reads_few_keys_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    rows = SQLiteTransaction.rows

    def counted(
        work: SQLiteTransaction, sql: str, parameters: object = ()
    ) -> list[tuple[object, ...]]:
        nonlocal read
        found = rows(work, sql, parameters)
        read += len(found) if sql is _sql.DUE_KEYS else 0
        return found

    monkeypatch.setattr(SQLiteTransaction, "rows", counted)
    queues = [f"q{number}" for number in range(20)]
    tasks = [
        Task(id=new_task_id(), function="m:f", payload=b"", queue=queue)
        for queue in queues
        for _ in range(100)
    ]
    backend = SQLiteBackend(tmp_path / "q.db")
    await backend.open()
    try:
        await backend.enqueue(tasks)
        reservation = await backend.reserve("worker", queues, 40, 30.0)
    finally:
        await backend.close()
    assert len(reservation.tasks) == 40
    assert 40 < read <= 20 * 8 + 40 + 8
