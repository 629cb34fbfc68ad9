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
from sitq.backends._standby import PendingReservation, ReserveOnCommitBackend
from sitq.backends.sqlite._wakeups import WakeupFile
from sitq.errors import BackendError
from sitq.protocols import Listener
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


class Deaf:
    """A listener of somebody who does not listen."""

    async def wait(self) -> None:
        raise AssertionError("nobody listens here")


class Waiting:
    """A wish of one worker's, and whether it has been fulfilled."""

    def __init__(
        self,
        backend: SQLiteBackend,
        limit: int = 10,
        queue: str = "default",
        listener: Listener | None = None,
    ) -> None:
        self.fulfilled = anyio.Event()
        self.standby: PendingReservation = backend.reserve_on_commit(
            "worker", [queue], limit, 30.0, listener or Deaf(), self.fulfilled.set
        )

    async def ids(self) -> list[str]:
        reservation = await self.standby.end()
        return [] if reservation is None else [task.id for task in reservation.tasks]


async def status_of(backend: SQLiteBackend, task_id: str) -> TaskStatus:
    (info,) = await backend.get_tasks([task_id])  # type: ignore[list-item]
    assert info is not None
    return info.status


async def test_what_is_stored_is_reserved_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as backend:
        assert isinstance(backend, ReserveOnCommitBackend)
        before = backend.clock.monotonic()
        waiting = Waiting(backend)
        ids = await backend.enqueue([some_task(), some_task()])
        await waiting.fulfilled.wait()
        reservation = await waiting.standby.end()
        assert reservation is not None
        assert [task.id for task in reservation.tasks] == ids
        assert {(task.epoch, task.attempt) for task in reservation.tasks} == {(1, 1)}
        assert reservation.wait is None
        assert before <= waiting.standby.asked_at <= backend.clock.monotonic()


async def test_what_others_store_is_reserved_once_they_ring(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with opened(path) as backend, opened(path) as other:
        async with backend.listen("tasks") as mine, backend.listen("tasks") as another:
            waiting = Waiting(backend, listener=mine)
            ids = await other.enqueue([some_task(), some_task()])
            with anyio.fail_after(5):
                await another.wait()  # it is told, since it has no wish
                await waiting.fulfilled.wait()
            assert await waiting.ids() == ids
            with anyio.move_on_after(0.05) as scope:
                await mine.wait()
            assert scope.cancelled_caught


async def test_news_that_give_nothing_tell_when_something_is_due(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with opened(path) as backend, opened(path) as other:
        async with backend.listen("tasks") as mine:
            waiting = Waiting(backend, listener=mine)
            await other.enqueue([some_task(eta=datetime.now(UTC) + timedelta(hours=1))])
            with anyio.fail_after(5):
                await waiting.fulfilled.wait()
            reservation = await waiting.standby.end()
            assert reservation is not None
            assert reservation.tasks == ()
            assert reservation.wait is not None
            assert 3500 < reservation.wait <= 3600


async def test_news_that_cannot_be_looked_at_are_told_as_an_error(tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    async with opened(path) as backend, opened(path) as other:
        async with backend.listen("tasks") as mine:
            waiting = Waiting(backend, listener=mine)
            path.rename(tmp_path / "elsewhere.db")
            WakeupFile(f"{path}-bell").signal({"tasks"})
            with anyio.fail_after(5):
                await waiting.fulfilled.wait()
            with pytest.raises(BackendError, match="disappeared"):
                await waiting.standby.end()
            (tmp_path / "elsewhere.db").rename(path)
        assert await other.enqueue([some_task()])


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
