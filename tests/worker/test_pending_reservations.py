"""An idle worker leaves a pending reservation, which the next commit of a new task carries out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from sitq import SQLiteBackend, TaskQueue, TaskStatus, Worker
from sitq.backends._standby import PendingReservation
from sitq.backends.sqlite._wakeups import WakeupFile
from sitq.errors import BackendError
from sitq.models import Reservation
from tests.sqlite.samples import locked
from tests.worker.gate import GATE, bounded, ended, until

pytestmark = pytest.mark.anyio


async def nothing() -> None:
    pass


class Watched(SQLiteBackend):
    """A store that records pending reservations and their limits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pending: list[tuple[int, PendingReservation]] = []
        self.reservations = 0

    async def reserve(self, *request: Any) -> Reservation:
        self.reservations += 1
        return await super().reserve(*request)

    def reserve_on_commit(self, *request: Any) -> PendingReservation:
        _, _, limit, *_ = request
        standby = super().reserve_on_commit(*request)
        self.pending.append((limit, standby))
        return standby

    async def until_another(self, than: int) -> None:
        """Wait until there are more pending reservations than so many."""
        await until(lambda: len(self.pending) > than)


@asynccontextmanager
async def working(
    path: Path, places: int = 2
) -> AsyncIterator[tuple[TaskQueue, Watched, Worker, anyio.abc.TaskGroup]]:
    """A queue, and an idle worker on the same backend."""
    backend = Watched(path)
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, max_concurrency=places, poll_interval=60)
        await group.start(worker.start)
        await until(lambda: backend.pending)
        yield queue, backend, worker, group
        GATE.opened.set()
        await worker.stop()


def is_carried_out(standby: Any) -> bool:
    """Return whether a transaction has taken the request, with or without the lock it needs."""
    return standby._request not in standby._commits._pending_reserves


async def test_it_takes_what_it_can_start_and_leaves_the_rest_to_others(tmp_path: Path) -> None:
    async with working(tmp_path / "q.db", places=1) as (queue, backend, _, _):
        assert [limit for limit, _ in backend.pending] == [1]
        await queue.enqueue(bounded)
        await until(GATE.entered.is_set)
        await anyio.wait_all_tasks_blocked()
        pending = len(backend.pending)
        task_id = await queue.enqueue(nothing)
        assert (await queue.get_task(task_id)).status is TaskStatus.PENDING
        assert len(backend.pending) == pending
        GATE.opened.set()
        assert (await ended(queue, task_id)).status is TaskStatus.SUCCESS
        await backend.until_another(pending)


async def test_it_takes_what_another_process_signals_without_asking_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "q.db"
    async with working(path) as (_, backend, _, _), TaskQueue(SQLiteBackend(path)) as other:
        await anyio.wait_all_tasks_blocked()
        before = backend.reservations
        for _ in range(3):
            pending = len(backend.pending)
            task_id = await other.enqueue(nothing)
            assert (await ended(other, task_id)).status is TaskStatus.SUCCESS
            await backend.until_another(pending)
        assert backend.reservations == before


async def test_what_another_process_stores_for_later_starts_at_its_eta(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with working(path) as (_, _, _, _), TaskQueue(SQLiteBackend(path)) as other:
        eta = datetime.now(UTC) + timedelta(seconds=0.2)
        result = await ended(other, await other.options(eta=eta).enqueue(nothing))
        assert result.started_at is not None
        assert eta <= result.started_at < eta + timedelta(seconds=1)


async def test_a_reservation_that_failed_is_not_the_last(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "q.db", tmp_path / "elsewhere.db"
    async with working(path) as (_, backend, _, _), TaskQueue(SQLiteBackend(path)) as other:
        await anyio.wait_all_tasks_blocked()
        pending = len(backend.pending)
        path.rename(elsewhere)
        WakeupFile(f"{path}-bell").signal({"tasks"})
        await backend.until_another(pending)
        elsewhere.rename(path)
        assert (await ended(other, await other.enqueue(nothing))).status is TaskStatus.SUCCESS


class Refusing(SQLiteBackend):
    """A store that refuses pending reservations."""

    def reserve_on_commit(self, *_: object) -> PendingReservation:
        raise BackendError("reserve_on_commit: not today")


async def test_a_worker_goes_on_where_it_cannot_leave_a_reservation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Refusing(tmp_path / "q.db")
    async with TaskQueue(backend) as queue, anyio.create_task_group() as group:
        worker = Worker(backend, poll_interval=60)
        await group.start(worker.start)
        await until(lambda: "not today" in caplog.text)
        for _ in range(3):
            assert (await ended(queue, await queue.enqueue(nothing))).status is TaskStatus.SUCCESS
        await worker.stop()
    assert caplog.text.count("not today") == 1


async def test_the_lease_counts_from_when_the_lock_was_had(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with working(path) as (queue, backend, _, group):
        (_, standby) = backend.pending[-1]
        with locked(path):
            group.start_soon(queue.enqueue, nothing)
            await until(lambda: is_carried_out(standby))
            had_at = backend.clock.monotonic()
        await until(lambda: standby.asked_at)
        assert standby.asked_at >= had_at


async def test_a_stop_does_not_wait_for_a_pending_reservation(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with working(path) as (queue, backend, worker, group):
        (_, standby) = backend.pending[-1]
        with locked(path):
            group.start_soon(queue.enqueue, bounded)
            await until(lambda: is_carried_out(standby))
            with anyio.fail_after(5):
                await worker.stop()
        # What was reserved for it all the same is handed back.
        async with backend.listen("tasks") as listener:
            with anyio.move_on_after(0.1):
                await listener.wait()
        reservation = await backend.reserve("another", ["default"], 1, 30.0)
        assert [task.attempt for task in reservation.tasks] == [1]
        assert not GATE.entered.is_set()
