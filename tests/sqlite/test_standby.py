"""A worker that stands by gets a task in the transaction that stores it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sitq import SQLiteBackend, TaskStatus
from sitq.standby import Standby, StandbyBackend
from tests.sqlite.samples import some_task

pytestmark = pytest.mark.anyio

LATER = datetime.now(UTC) + timedelta(hours=1)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SQLiteBackend]:
    backend = SQLiteBackend(path)
    await backend.open()
    await backend.open()  # the worker, and the queue
    try:
        yield backend
    finally:
        await backend.close()
        await backend.close()


class Waiting:
    """A wish of one worker's, and whether it has been fulfilled."""

    def __init__(self, backend: SQLiteBackend, limit: int = 10, queue: str = "default") -> None:
        self.fulfilled = anyio.Event()
        standby = backend.stand_by("worker", [queue], limit, 30.0, self.fulfilled.set)
        assert standby is not None
        self.standby: Standby = standby

    async def ids(self) -> list[str]:
        return [task.id for task in (await self.standby.end()).tasks]


async def status_of(backend: SQLiteBackend, task_id: str) -> TaskStatus:
    (info,) = await backend.get_tasks([task_id])  # type: ignore[list-item]
    assert info is not None
    return info.status


async def test_what_is_stored_is_reserved_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend:
        assert isinstance(backend, StandbyBackend)
        before = backend.clock.monotonic()
        waiting = Waiting(backend)
        ids = await backend.enqueue([some_task(), some_task()])
        await waiting.fulfilled.wait()
        reservation = await waiting.standby.end()
        assert [task.id for task in reservation.tasks] == ids
        assert {(task.epoch, task.attempt) for task in reservation.tasks} == {(1, 1)}
        assert reservation.wait is None
        assert before <= waiting.standby.asked_at <= backend.clock.monotonic()


async def test_a_worker_that_is_alone_need_not_stand_by(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend:
        await backend.close()
        assert backend.stand_by("worker", ["default"], 10, 30.0, lambda: None) is None
        await backend.open()


async def test_a_wish_that_has_ended_takes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend:
        waiting = Waiting(backend)
        assert await waiting.ids() == []
        (task_id,) = await backend.enqueue([some_task()])
        assert await status_of(backend, task_id) is TaskStatus.PENDING
        assert not waiting.fulfilled.is_set()


async def test_it_waits_on_while_what_is_stored_is_not_for_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend:
        waiting = Waiting(backend)
        await backend.enqueue([some_task(eta=LATER)])
        await backend.enqueue([some_task(queue="other")])
        assert not waiting.fulfilled.is_set()
        (task_id,) = await backend.enqueue([some_task()])
        await waiting.fulfilled.wait()
        assert await waiting.ids() == [task_id]


async def test_one_task_goes_to_one_of_several(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend:
        first, second = Waiting(backend), Waiting(backend)
        (one,) = await backend.enqueue([some_task()])
        await first.fulfilled.wait()
        assert not second.fulfilled.is_set()
        (other,) = await backend.enqueue([some_task()])
        await second.fulfilled.wait()
        assert [await first.ids(), await second.ids()] == [[one], [other]]


async def test_others_are_told_of_what_is_left_only(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with opened(path) as backend, opened(path) as other:
        async with backend.listen("tasks") as here, other.listen("tasks") as there:
            waiting = Waiting(backend, limit=1)
            await backend.enqueue([some_task()])
            await waiting.fulfilled.wait()
            for listener in (here, there):
                with anyio.move_on_after(0.05) as scope:
                    await listener.wait()
                assert scope.cancelled_caught
            waiting_again = Waiting(backend, limit=1)
            await backend.enqueue([some_task(), some_task()])
            with anyio.fail_after(5):
                await here.wait()
                await there.wait()
            assert len(await waiting_again.ids()) == 1
            assert len(await waiting.ids()) == 1


@pytest.mark.parametrize("turns", range(12))
async def test_whoever_is_gone_before_the_end_leaves_nothing_behind(
    tmp_path: Path, turns: int
) -> None:
    async with opened(tmp_path / "q.db") as backend:
        waiting = Waiting(backend)
        taken: list[str] = []

        async def end() -> None:
            taken.extend(await waiting.ids())

        async with anyio.create_task_group() as group:
            group.start_soon(backend.enqueue, [some_task(), some_task()])
            for _ in range(turns):
                await checkpoint()
            async with anyio.create_task_group() as ending:
                ending.start_soon(end)
                await checkpoint()
                ending.cancel_scope.cancel()
        reserved = (await backend.reserve("another", ["default"], 10, 30.0)).tasks
        assert len(taken) + len(reserved) == 2
