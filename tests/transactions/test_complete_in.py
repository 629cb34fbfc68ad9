"""A task completes itself in the transaction of its own writes: both count, or neither."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sitq import (
    BackendBusyError,
    LeaseLostError,
    ReservedTask,
    Result,
    RetryPolicy,
    SQLiteBackend,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
    current_task,
    task,
)
from sitq.backends.memory import MemoryBackend
from sitq.backends.sqlite._keeper import FileLeaseKeeper
from sitq.models import LeaseState
from sitq.testing import FakeClock
from tests.transactions.kinds import BLOCKING, BLOCKING_POSTGRES, Own, opened
from tests.transactions.places import Place

pytestmark = pytest.mark.anyio

NOT_COMMITTED = "the transaction that completed this task was not committed"
AGAIN = RetryPolicy(max_attempts=3, delay=0, jitter=0)


class Scene:
    """What the tasks of a test find: their connection, and what they are to do."""

    own: Own
    place: Place
    between: Callable[[], Any]
    after: Callable[[], Any]
    seen: list[object]


async def nothing() -> None:
    pass


@pytest.fixture(autouse=True)
def _scene(place: Place) -> None:
    Scene.place = place
    Scene.between = staticmethod(nothing)
    Scene.after = staticmethod(nothing)
    Scene.seen = []


@pytest.fixture
async def own(own: Own) -> Own:
    Scene.own = own
    return own


@task
async def pay(amount: int) -> int:
    """Write, complete, commit."""
    own = Scene.own
    await own.write(f"paid {amount}")
    await Scene.between()
    await current_task().complete_in(own.given, amount)
    await own.commit()
    await Scene.after()
    return -1


@task
async def pay_and_forget(amount: int) -> int:
    """Roll back after the completion."""
    own = Scene.own
    Scene.seen.append(current_task().attempt)
    await own.write(f"paid {amount}")
    await current_task().complete_in(own.given, amount)
    await own.rollback()
    return amount


@task
async def pay_at_the_second_try(amount: int) -> int:
    """Roll the first transaction back, and commit the second."""
    own = Scene.own
    for number in range(2):
        await own.begin_again() if number else None
        await own.write(f"paid {amount + number}")
        await current_task().complete_in(own.given, amount + number)
        await (own.commit() if number else own.rollback())
    return -1


@task
async def pay_twice(amount: int) -> None:
    """Complete twice in one transaction."""
    own = Scene.own
    await own.write(f"paid {amount}")
    await current_task().complete_in(own.given)
    try:
        await current_task().complete_in(own.given)
    finally:
        await own.rollback()


@task
@asynccontextmanager
async def working(place: Place, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(place.backend(), **{"poll_interval": 3600.0, "lease": 5.0} | options)
    async with anyio.create_task_group() as group:
        await group.start(worker.start)
        try:
            with anyio.fail_after(30):
                yield worker
        finally:
            with anyio.CancelScope(shield=True):
                await worker.stop()


async def outcome(queue: TaskQueue, task_id: str) -> Result[object]:
    result = await queue.get_result(task_id)
    assert result is not None
    return result


async def test_a_commit_is_the_success_and_its_waiters_are_woken(
    queue: TaskQueue,
    place: Place,
    own: Own,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The waiter is told at the commit, while the function still runs; it looks by itself never."""
    monkeypatch.setattr("sitq.waiting._LOOK_EVERY", 3600.0)
    release = anyio.Event()
    Scene.after = staticmethod(release.wait)
    async with working(place):
        task_id = await queue.enqueue(pay, 7)
        result = await outcome(queue, task_id)
        assert place.notes == ["paid 7"]
        release.set()
    assert queue.deserialize_result(result) == 7
    assert result == await outcome(queue, task_id)
    assert (await queue.get_task(task_id)).attempts == 1
    assert place.look(place.lost) == [(0,)]
    assert caplog.records == []


async def test_nobody_sees_the_success_before_the_commit(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    task_id = await queue.enqueue(pay_and_forget, 7)
    statuses = []

    rollback = own.rollback

    async def look_and_roll_back() -> None:
        statuses.append((await queue.get_task(task_id)).status)
        await rollback()

    own.rollback = look_and_roll_back  # type: ignore[method-assign]
    await Worker(place.backend()).drain()
    assert statuses == [TaskStatus.IN_PROGRESS]


async def test_a_rollback_is_a_failure_that_says_so(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    task_id = await queue.enqueue(pay_and_forget, 7)
    await Worker(place.backend()).drain()
    result = await outcome(queue, task_id)
    assert (result.status, place.notes) == (TaskStatus.FAILED, [])
    assert NOT_COMMITTED in str(result.error)


async def test_a_rollback_is_retried_under_the_tasks_policy(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    if own.begins:
        pytest.skip("its transactions have to be opened by hand")
    task_id = await queue.options(retry=AGAIN).enqueue(pay_and_forget, 7)
    await Worker(place.backend()).drain()
    result = await outcome(queue, task_id)
    assert Scene.seen == [1, 2, 3]
    assert (result.status, result.attempts) == (TaskStatus.FAILED, 3)


async def test_a_second_transaction_may_complete_what_the_first_did_not(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    task_id = await queue.enqueue(pay_at_the_second_try, 7)
    await Worker(place.backend()).drain()
    assert queue.deserialize_result(await outcome(queue, task_id)) == 8
    assert place.notes == ["paid 8"]


async def test_what_the_function_does_after_the_commit_changes_nothing(
    queue: TaskQueue, place: Place, own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("too late")

    Scene.after = staticmethod(fail)
    task_id = await queue.options(retry=AGAIN).enqueue(pay, 7)
    await Worker(place.backend()).drain()
    result = await outcome(queue, task_id)
    assert (result.status, result.error) == (TaskStatus.SUCCESS, None)
    assert queue.deserialize_result(result) == 7
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_the_function_may_go_on_for_many_heartbeats_after_the_commit(
    queue: TaskQueue, place: Place, own: Own, caplog: pytest.LogCaptureFixture
) -> None:
    """The lease is gone with the success; nobody cancels or warns because of that."""
    went_on = anyio.Event()

    async def go_on() -> None:
        await anyio.sleep(1.0)  # real time: two leases, and six heartbeats
        went_on.set()

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
    """The function has ended, and what it comes to waits for a store in trouble."""
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
    monkeypatch.setattr("sitq.worker._session.Session._lose", lambda *_: None)
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


async def test_the_second_completion_in_a_transaction_is_refused(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    task_id = await queue.enqueue(pay_twice, 7)
    await Worker(place.backend()).drain()
    result = await outcome(queue, task_id)
    assert "completed itself already" in str(result.error)
    assert place.notes == []


@pytest.mark.parametrize(
    ("value", "error"), [("seven", ValidationError), (object(), ValidationError)]
)
async def test_a_value_is_checked_as_a_returned_one(
    queue: TaskQueue, place: Place, own: Own, value: object, error: type[Exception]
) -> None:
    task_id = await queue.enqueue(pay_with_it, 1)
    Scene.seen = [value]
    await Worker(place.backend()).drain()
    result = await outcome(queue, task_id)
    assert (result.status, place.notes) == (TaskStatus.FAILED, [])
    assert str(result.error).startswith(f"sitq.errors.{error.__name__}: ")


@task
async def pay_with_it(_amount: int) -> int:
    """Complete with what the scene holds."""
    own = Scene.own
    await own.write("paid")
    try:
        await current_task().complete_in(own.given, Scene.seen[0])
    finally:
        await own.rollback()
    return 1


@task
def pay_in_thread(kind: str, amount: int) -> int:
    """The same in a plain function, with a connection of the thread's own."""

    async def main() -> None:
        async with opened(kind, Scene.place) as own:
            await own.write(f"paid {amount}")
            current_task().complete_in_sync(own.given, amount)
            await own.commit()

    from sitq._loops import run_inline

    run_inline(main())
    return -1


@pytest.mark.parametrize("kind", [*BLOCKING, *BLOCKING_POSTGRES])
async def test_a_plain_function_completes_itself_too(
    queue: TaskQueue, place: Place, kind: str
) -> None:
    place.prepare()
    async with working(place):
        task_id = await queue.enqueue(pay_in_thread, kind, 7)
        result = await outcome(queue, task_id)
    assert queue.deserialize_result(result) == 7
    assert place.notes == ["paid 7"]


@task
async def misuse(amount: int) -> int:
    """Use the form for plain functions with a connection that must be awaited."""
    own = Scene.own
    try:
        current_task().complete_in_sync(own.given, amount)
    finally:
        await own.rollback()
    return 1


@pytest.mark.parametrize("kind", ["aiosqlite"], indirect=True)
async def test_the_plain_form_refuses_a_connection_that_must_be_awaited(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    task_id = await queue.enqueue(misuse, 7)
    await Worker(place.backend()).drain()
    assert "has to be awaited" in str((await outcome(queue, task_id)).error)


@task
async def complete_nowhere() -> None:
    """Complete where the store is in memory."""
    import sqlite3

    with pytest.raises(UsageError, match="MemoryBackend"):
        with closing(sqlite3.connect(":memory:")) as connection:
            await current_task().complete_in(connection)


async def test_a_store_that_cannot_says_so() -> None:
    backend = MemoryBackend()
    async with TaskQueue(backend) as queue:
        task_id = await queue.enqueue(complete_nowhere)
        await Worker(backend).drain()
        result = await outcome(queue, task_id)
        assert result.status is TaskStatus.SUCCESS, result.error


async def test_a_cancellation_after_the_commit_changes_nothing(
    queue: TaskQueue, place: Place, own: Own
) -> None:
    Scene.after = staticmethod(anyio.sleep_forever)
    async with working(place, shutdown_timeout=0.1):
        task_id = await queue.enqueue(pay, 7)
        await outcome(queue, task_id)
        assert await queue.cancel(task_id) is False
    assert (await outcome(queue, task_id)).status is TaskStatus.SUCCESS
