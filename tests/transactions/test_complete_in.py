"""A task completes itself in the transaction of its own writes: both count, or neither."""

from __future__ import annotations

import logging
from contextlib import closing

import anyio
import pytest

from sitq import (
    RetryPolicy,
    TaskQueue,
    TaskStatus,
    UsageError,
    ValidationError,
    Worker,
    current_task,
    task,
)
from sitq.backends.memory import MemoryBackend
from tests.transactions.kinds import BLOCKING, BLOCKING_POSTGRES, Own, opened
from tests.transactions.places import Place
from tests.transactions.scene import Scene, outcome, pay, pay_and_forget, working

pytestmark = pytest.mark.anyio

NOT_COMMITTED = "the transaction that completed this task was not committed"
AGAIN = RetryPolicy(max_attempts=3, delay=0, jitter=0)


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


async def test_a_commit_is_the_success_and_its_waiters_are_woken(
    queue: TaskQueue,
    place: Place,
    own: Own,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The waiter is told at the commit, while the function still runs; it looks by itself never."""
    monkeypatch.setattr("sitq.queue._waiting._LOOK_EVERY", 3600.0)
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


async def test_the_success_is_not_visible_before_the_commit(
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
