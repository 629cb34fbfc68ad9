"""Callers that are cancelled leave no lock, no broken queue and no lost reservation behind."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sitq import TaskQueue, TaskStatus, Worker, call
from sitq.models import Outcome, Progress
from tests.faults.places import Place, backend_at, new_place, query

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("SITQ_CANCEL_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)


async def note(number: int) -> int:
    return number


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store."""
    return new_place(request.param, tmp_path)


def assert_not_locked(place: Place) -> None:
    """Another connection gets the write lock, as soon as a unit under way has ended."""
    if isinstance(place, str):
        lock = "DO 'BEGIN LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE; END'"
        query(place, lock)
        return
    with closing(sqlite3.connect(place, timeout=5, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


async def cancelled_after(steps: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Cancel some work after so many turns of the loop; tell if it came to its end before."""
    ended = False

    async def run() -> None:
        nonlocal ended
        await work()
        ended = True

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return ended


async def test_five_hundred_callers_at_once_store_five_hundred_tasks(place: Place) -> None:
    async with TaskQueue(backend_at(place)) as queue:
        ids: list[str] = []

        async def enqueue(number: int) -> None:
            ids.append(await queue.enqueue(note, number))

        async with anyio.create_task_group() as group:
            for number in range(500):
                group.start_soon(enqueue, number)
        assert len(set(ids)) == 500
        worker = Worker(backend_at(place), max_concurrency=50)
        assert await worker.drain() == 500
        results = [await queue.get_result(task_id, timeout=0) for task_id in ids]
        assert {queue.deserialize_result(result) for result in results if result} == set(range(500))


async def test_callers_cancelled_at_random_leave_a_working_queue(place: Place) -> None:
    """What was acknowledged is there; what was not may be; nothing else is."""
    print(f"seed {SEED} (SITQ_CANCEL_SEED)")
    chance = random.Random(SEED)
    acknowledged: set[str] = set()
    async with TaskQueue(backend_at(place)) as queue:

        async def enqueue(number: int) -> None:
            with anyio.move_on_after(chance.uniform(0, 0.02)):
                acknowledged.add(await queue.enqueue(note, number))

        async def wait(task_id: str) -> None:
            with anyio.move_on_after(chance.uniform(0, 0.02)):
                await queue.get_result(task_id)

        first = await queue.enqueue(note, -1)
        async with anyio.create_task_group() as group:
            for number in range(250):
                group.start_soon(enqueue, number)
                group.start_soon(wait, first)
        assert_not_locked(place)
        drained = await Worker(backend_at(place), max_concurrency=50).drain()
        assert len(acknowledged) + 1 <= drained <= 251
        for task_id in acknowledged:
            result = await queue.get_result(task_id, timeout=0)
            assert result is not None
            assert result.status is TaskStatus.SUCCESS
        assert await queue.get_result(first, timeout=5) is not None


@pytest.mark.parametrize("steps", range(8))
async def test_every_call_cancelled_at_every_step_leaves_no_lock(place: Place, steps: int) -> None:
    backend = backend_at(place)
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(note, 1)
        await queue.options(queue="away").enqueue(note, 2)
        (away,) = (await backend.reserve("w", ["away"], 1, 30.0)).tasks
        works: list[Callable[[], Awaitable[Any]]] = [
            lambda: queue.enqueue(note, 3),
            lambda: queue.enqueue_many([call(note, 4)] * 20),
            lambda: queue.get_result(task_id, timeout=0),
            lambda: queue.get_result(task_id),
            lambda: queue.get_task(task_id),
            lambda: queue.prune(0),
            lambda: backend.reserve("w", ["default"], 5, 30.0),
            lambda: backend.sweep(3),
            lambda: backend.set_progress(away.lease, Progress(done=1)),
            lambda: backend.finish([Outcome.release(away.lease)]),
            lambda: queue.cancel(task_id),
            lambda: Worker(backend).drain(),
            lambda: Worker(backend).start(),
            lambda: TaskQueue(backend_at(place)).connect(),
        ]
        for work in works:
            await cancelled_after(steps, work)
            assert_not_locked(place)
            await queue.enqueue(note, 5)


@pytest.mark.parametrize("steps", range(12))
async def test_a_reservation_whose_caller_is_gone_is_handed_back(place: Place, steps: int) -> None:
    backend = backend_at(place)
    async with TaskQueue(backend) as queue:
        ids = await queue.enqueue_many([call(note, number) for number in range(10)])
        got: list[Any] = []

        async def reserve() -> None:
            got.extend((await backend.reserve("w", ["default"], 10, 3600.0)).tasks)

        await cancelled_after(steps, reserve)
        await queue.enqueue(note, 10)  # a write comes after all writes before it; a read need not
        infos = [await queue.get_task(task_id) for task_id in ids]
        expected = TaskStatus.IN_PROGRESS if got else TaskStatus.PENDING
        assert {info.status for info in infos} == {expected}
        assert {info.attempts for info in infos} == {1 if got else 0}
        assert {info.crashes for info in infos} == {0}
