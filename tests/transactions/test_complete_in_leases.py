"""A task that completes itself: what its lease and its cancellation come to."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from sitq import (
    BackendBusyError,
    LeaseLostError,
    ReservedTask,
    SQLiteBackend,
    TaskQueue,
    TaskStatus,
    Worker,
    current_task,
    task,
)
from sitq.backends.sqlite._lease_keeper import FileLeaseKeeper
from sitq.models import Lease, LeaseState
from sitq.testing import FakeClock
from sitq.worker._worker_run import WorkerRun
from tests.transactions.kinds import Own
from tests.transactions.places import Place
from tests.transactions.scene import Scene, outcome, pay, working

pytestmark = pytest.mark.anyio


async def test_the_function_may_go_on_after_a_heartbeat_has_found_no_lease(
    queue: TaskQueue,
    place: Place,
    own: Own,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lease is gone with the success; nobody cancels or warns because of that."""
    lose = WorkerRun._lose
    lost, went_on = anyio.Event(), anyio.Event()

    def note(self: WorkerRun, lease: Lease) -> None:
        lose(self, lease)
        lost.set()

    async def go_on() -> None:
        await lost.wait()
        await checkpoint()  # a cancellation would come here
        went_on.set()

    monkeypatch.setattr(WorkerRun, "_lose", note)
    Scene.after = staticmethod(go_on)
    await queue.enqueue(pay, 7)
    async with working(place, lease=0.5):
        await went_on.wait()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("kind", ["sqlite3"], indirect=True)
async def test_heartbeats_before_the_store_has_judged_warn_of_nothing(
    queue: TaskQueue,
    place: Place,
    own: Own,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The function has ended, and its outcome waits for an unavailable store."""
    renew, finish = FileLeaseKeeper.renew, SQLiteBackend.finish
    lost = threading.Event()

    def beat(*args: Any) -> list[LeaseState]:
        states = renew(*args)
        if LeaseState.LOST in states:
            lost.set()
        return states

    async def refuse(*args: Any) -> list[bool]:
        if not lost.is_set():
            raise BackendBusyError("locked")
        return await finish(*args)

    monkeypatch.setattr(FileLeaseKeeper, "renew", beat)
    monkeypatch.setattr(SQLiteBackend, "finish", refuse)
    async with working(place, lease=0.3):
        task_id = await queue.enqueue(pay, 7)
        await anyio.to_thread.run_sync(lost.wait)
    assert (await outcome(queue, task_id)).status is TaskStatus.SUCCESS
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["cannot store outcomes, will try again: locked"]


async def test_a_lost_lease_raises_and_the_writes_are_rolled_back(
    queue: TaskQueue, place: Place, own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task was taken back between its start and its completion; its worker has not heard."""
    monkeypatch.setattr("sitq.worker._worker_run.WorkerRun._lose", lambda *_: None)
    if own.begins:
        pytest.skip("its transaction is open, so that nobody can take the task back")
    raised: list[BaseException] = []
    task_id = await queue.enqueue(late, 7)

    async def lose() -> None:
        ahead = place.backend(clock=FakeClock(datetime.now(UTC) + timedelta(hours=1)))
        await ahead.open()
        tasks: tuple[ReservedTask, ...] = ()
        while not tasks:  # what the worker's heartbeat holds at this moment is passed over
            await ahead.sweep(3)
            tasks = (await ahead.reserve("other", ("default",), 1, 30.0)).tasks
        assert [again.epoch for again in tasks] == [2]
        await ahead.close()

    Scene.between = staticmethod(lose)
    Scene.seen = raised  # type: ignore[assignment]
    worker = Worker(place.backend(), max_concurrency=1)  # it has no room for the second attempt
    with anyio.fail_after(30):
        await worker.drain()
    assert [type(error) for error in raised] == [LeaseLostError]
    assert place.notes == []
    info = await queue.get_task(task_id)
    assert (info.status, info.attempts) == (TaskStatus.IN_PROGRESS, 1)


@task
async def late(amount: int) -> int:
    """Lose the lease, then write and try to complete."""
    await Scene.between()
    own = Scene.own
    await own.write(f"paid {amount}")
    try:
        await current_task().complete_in(own.given, amount)
    except LeaseLostError as error:
        Scene.seen.append(error)
        await own.rollback()
        raise
    await own.commit()
    return amount


async def test_a_cancellation_after_the_commit_changes_nothing(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    Scene.after = staticmethod(anyio.sleep_forever)
    async with working(place, shutdown_timeout=0.1):
        task_id = await queue.enqueue(pay, 7)
        await outcome(queue, task_id)
        assert await queue.cancel(task_id) is False
    assert (await outcome(queue, task_id)).status is TaskStatus.SUCCESS
