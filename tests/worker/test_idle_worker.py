"""An idle worker starts what is stored, and goes on after a reservation that failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker
from sitq.backends.sqlite._wakeups import WakeupFile
from sitq.models import Reservation
from tests.worker.gate import GATE, bounded, ended, until

pytestmark = pytest.mark.anyio


async def nothing() -> None:
    pass


class Counted(SQLiteBackend):
    """A store that counts the reservations that were asked for."""

    reservations = 0

    async def reserve(self, *request: Any) -> Reservation:
        self.reservations += 1
        return await super().reserve(*request)


@asynccontextmanager
async def working(path: Path, places: int = 2) -> AsyncIterator[tuple[TaskQueue, Counted]]:
    """A queue, and an idle worker on the same backend."""
    backend = Counted(path)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, max_concurrency=places, poll_interval=60)
        await group.start(worker.start)
        await until(lambda: backend.reservations)
        yield queue, backend
        GATE.opened.set()
        await worker.stop()


async def test_it_starts_what_another_process_stores(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with working(path), TaskQueue(SQLiteBackend(path)) as other:
        for _ in range(3):
            assert (await ended(other, await other.enqueue(nothing))).status is TaskStatus.SUCCESS


async def test_what_another_process_stores_for_later_starts_at_its_eta(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with working(path), TaskQueue(SQLiteBackend(path)) as other:
        eta = datetime.now(UTC) + timedelta(seconds=0.2)
        result = await ended(other, await other.options(eta=eta).enqueue(nothing))
        assert result.started_at is not None
        assert eta <= result.started_at < eta + timedelta(seconds=5)


async def test_a_task_that_comes_while_all_places_are_in_use_starts_afterwards(
    tmp_path: Path,
) -> None:
    async with working(tmp_path / "q.db", places=1) as (queue, _):
        await queue.enqueue(bounded)
        await until(GATE.entered.is_set)
        task_id = await queue.enqueue(nothing)
        GATE.opened.set()
        assert (await ended(queue, task_id)).status is TaskStatus.SUCCESS


async def test_a_reservation_that_failed_is_not_the_last(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "q.db", tmp_path / "elsewhere.db"
    async with working(path) as (_, backend), TaskQueue(SQLiteBackend(path)) as other:
        await anyio.wait_all_tasks_blocked()
        before = backend.reservations
        path.rename(elsewhere)
        WakeupFile(f"{path}-bell").signal({"tasks"})
        await until(lambda: backend.reservations > before)
        elsewhere.rename(path)
        assert (await ended(other, await other.enqueue(nothing))).status is TaskStatus.SUCCESS
